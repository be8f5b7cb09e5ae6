"""Pieces of an HTML page: tables, numbers, pictures. Text comes in escaped unless a function says otherwise."""

import base64
import io
import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from metagenrl_pl.files import atomic_write
from metagenrl_pl.stats import Interval


class Gallery:
    """The pictures of a page, by name."""

    def __init__(self) -> None:
        self.pictures: dict[str, bytes] = {}

    def add(self, name: str, figure: Figure, description: str) -> str:
        """Draw a figure.

        Args:
            name: becomes a file name; unique.
            figure: to draw.
            description: for readers who do not see it; not escaped yet.

        Returns:
            The HTML of the picture, with the picture in it.
        """
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=130, metadata={"Software": None})  # the same bytes from every version
        assert slug(name) not in self.pictures
        self.pictures[slug(name)] = png.getvalue()
        data = base64.b64encode(png.getvalue()).decode()
        return f'<figure><img alt="{escape(description)}" src="data:image/png;base64,{data}"></figure>'

    def grid(self, pictures: Iterable[str], small: bool = False) -> str:
        """Pictures side by side, as many as the reader's screen is wide."""
        return f'<div class="figures{" small" if small else ""}">\n' + "\n".join(pictures) + "\n</div>"

    def save(self, folder: Path) -> None:
        """Write every picture as `<folder>/<name>.png`."""
        for name, png in self.pictures.items():
            with atomic_write(folder / f"{name}.png") as file:
                file.write(png)


def slug(name: str) -> str:
    """`name` with letters, digits, dots and dashes alone, as a file name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_")


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", own: str | None = None, is_text: bool = False
) -> str:
    """An HTML table that scrolls sideways where it is too wide.

    Args:
        header: not escaped yet.
        rows: of cells.
        caption: below the table.
        own: the first cell of the row to stress.
        is_text: whether cells hold words, which may be broken into lines.
    """
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in header) + "</tr>"]
    for row in rows:
        stressed = ' class="own"' if row[0] == own else ""
        lines.append(f"<tr{stressed}>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>")
    kind = ' class="text"' if is_text else ""
    below = f'\n<p class="dim">{caption}</p>' if caption else ""  # outside of what scrolls, so that a phone shows all of it
    return f'<div class="scroll"><table{kind}>\n' + "\n".join(lines) + f"\n</table></div>{below}"


def bullet_list(items: Iterable[str]) -> str:
    """An HTML list."""
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def number(value: float, decimals: int = 2) -> str:
    """`value` with a fixed number of decimals, never as -0; an agent that diverged has no number."""
    return "diverged" if math.isnan(value) else f"{round(value, decimals) + 0.0:,.{decimals}f}"


def interval_text(interval: Interval, decimals: int = 2) -> str:
    """`mean [low, high]`, the mean alone where there is no interval."""
    if math.isnan(interval.low):
        return number(interval.mean, decimals)
    return f"{number(interval.mean, decimals)} [{number(interval.low, decimals)}, {number(interval.high, decimals)}]"
