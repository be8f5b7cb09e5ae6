"""What a report is made of: tables, pictures, lists and words, as data. The template `report.html` makes them HTML and escapes them."""

import base64
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from matplotlib.figure import Figure

from metagenrl_pl.common.files import atomic_write
from metagenrl_pl.results.statistics import Interval


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    kind: ClassVar = "words"
    text: str
    title: str = ""
    is_dim: bool = True


@dataclass(frozen=True)
class Table:
    """A table that scrolls sideways where it is too wide, with a caption below it.

    Args:
        header: of the columns.
        rows: of cells.
        title: above the table.
        caption: below it.
        own: the first cell of the row to stress.
        is_text: whether cells hold words, which may be broken into lines.
    """

    kind: ClassVar = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    caption: str = ""
    own: str | None = None
    is_text: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture and its description, for readers who do not see it."""

    png: bytes
    description: str

    @property
    def source(self) -> str:
        """The picture as an address that holds all of it."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side, as many as the reader's screen is wide, with a caption above them.

    Small ones belong to the part before them and have a smaller title.
    """

    kind: ClassVar = "pictures"
    pictures: Sequence[Picture]
    title: str = ""
    caption: str = ""
    is_small: bool = False


@dataclass(frozen=True)
class Settings:
    """Lines of code that are shown when asked for."""

    kind: ClassVar = "settings"
    lines: Sequence[str]


Part = Words | Table | Pictures | Settings


@dataclass(frozen=True)
class Section:
    """Parts under a title, which links lead to by `anchor`."""

    title: str
    anchor: str
    parts: Sequence[Part]


class Gallery:
    """The pictures of a page, by name."""

    def __init__(self) -> None:
        self.pictures: dict[str, bytes] = {}

    def add(self, name: str, figure: Figure, description: str) -> Picture:
        """Draw a figure; `name` becomes a file name and is unique."""
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=130, metadata={"Software": None})  # the same bytes from every version
        assert to_file_name(name) not in self.pictures
        self.pictures[to_file_name(name)] = png.getvalue()
        return Picture(png.getvalue(), description)

    def save(self, folder: Path) -> None:
        """Write every picture as `<folder>/<name>.png`."""
        for name, png in self.pictures.items():
            with atomic_write(folder / f"{name}.png") as file:
                file.write(png)


def to_file_name(name: str) -> str:
    """`name` with letters, digits, dots and dashes alone, as a file name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_")


def format_number(value: float, decimals: int = 2) -> str:
    """`value` with a fixed number of decimals, never as -0; an agent that diverged has no number."""
    return "diverged" if math.isnan(value) else f"{round(value, decimals) + 0.0:,.{decimals}f}"


def format_interval(interval: Interval, decimals: int = 2) -> str:
    """`mean [low, high]`, the mean alone where there is no interval."""
    if math.isnan(interval.low):
        return format_number(interval.mean, decimals)
    return f"{format_number(interval.mean, decimals)} [{format_number(interval.low, decimals)}, {format_number(interval.high, decimals)}]"
