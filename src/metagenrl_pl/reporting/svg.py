"""Charts as SVG that is part of a page: panels of lines and heat maps.

Colours come from the page's style sheet where they can, so that a chart follows the reader's light or dark scheme. The page's script reads
`data-` attributes: values under the pointer, and what a switch shows and hides. A chart is complete without the script.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 340, 212
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 24, 34  # margins of what is plotted
Points = Sequence[float] | np.ndarray
_LEVELS = 7  # of colour on either side of zero


@dataclass(frozen=True)
class Line:
    """A line of a panel.

    Args:
        key: of the switch that shows it.
        name: beside its values.
        colour: such as `#0072B2`.
        x, y: [points]; points with a NaN are left out.
        low, high: ends of its interval, [points]; None for none.
        style: "solid", "dashed", "level" for a dashed one that is the same everywhere, or "thin" for a faint one that has no values
            under the pointer.
    """

    key: str
    name: str
    colour: str
    x: Points
    y: Points
    low: Points | None = None
    high: Points | None = None
    style: str = "solid"


def line_panel(
    title: str, lines: Sequence[Line], x_label: str, y_label: str, y_range: tuple[float, float] | None = None
) -> Markup:
    """A panel of lines. Intervals may leave it: its height shows what the lines span.

    Args:
        title: above it.
        lines: at least one with a finite point.
        x_label, y_label: of the axes.
        y_range: ends of the vertical axis; None for what the lines span.
    """
    values = np.concatenate([np.asarray(line.y, float) for line in lines])
    values = values[np.isfinite(values)]
    low, high = y_range or _padded(values.min(), values.max())
    x_high = max(max(line.x) for line in lines)
    x_low = min(0.0, min(min(line.x) for line in lines))
    if x_high == x_low:
        x_high = x_low + 1
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def to_x(value: float) -> float:
        return round(_LEFT + (value - x_low) / (x_high - x_low) * (right - _LEFT), 1)

    def to_y(value: float) -> float:
        return round(bottom - (value - low) / (high - low) * (bottom - _TOP), 1)

    parts = [Markup('<text class="title" x="2" y="13">{}</text>').format(title)]
    for tick in _ticks(low, high, 4):
        y = to_y(tick)
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(_LEFT, y, right))
        parts.append(Markup('<text class="tick end" x="{}" y="{}">{}</text>').format(_LEFT - 5, y + 3.5, short_number(tick)))
    for tick in _ticks(x_low, x_high, 4):
        parts.append(Markup('<text class="tick mid" x="{}" y="{}">{}</text>').format(to_x(tick), bottom + 13, short_number(tick)))
    parts.append(Markup('<text class="tick end" x="{}" y="{}">{}</text>').format(right, _HEIGHT - 5, x_label))
    parts.append(Markup('<text class="tick" x="2" y="{}">{}</text>').format(_HEIGHT - 5, y_label))
    drawn = Markup("").join(_draw_line(line, to_x, to_y) for line in sorted(lines, key=lambda line: line.style != "thin"))
    # A nested svg clips what leaves the plot, without an id that would have to be unique on the page.
    clip = Markup('<svg x="{0}" y="{1}" width="{2}" height="{3}" viewBox="{0} {1} {2} {3}">{4}</svg>').format(
        _LEFT, _TOP - 2, right - _LEFT + 2, bottom - _TOP + 4, drawn
    )
    return Markup(
        '<svg class="panel" viewBox="0 0 {} {}" role="img" aria-label="{}" data-x="{}">{}{}<path class="cursor" d=""/></svg>'
    ).format(
        _WIDTH,
        _HEIGHT,
        f"{title}: {y_label} against {x_label}",
        json.dumps([float(end) for end in (x_low, x_high, _LEFT, right, _TOP, bottom)]),
        Markup("").join(parts),
        clip,
    )


def _draw_line(line: Line, to_x: Callable[[float], float], to_y: Callable[[float], float]) -> Markup:
    """A group with the interval, the line and its values."""
    points = [index for index in range(len(line.x)) if math.isfinite(line.y[index])]
    path = "M" + "L".join(f"{to_x(line.x[index]):g} {to_y(line.y[index]):g}" for index in points) if points else ""
    band: Markup | str = ""
    inside: list[int] = []
    if line.low is not None and line.high is not None:
        inside = [index for index in points if math.isfinite(line.low[index])]
        upper = [f"{to_x(line.x[index]):g} {_bounded(to_y(line.high[index])):g}" for index in inside]
        lower = [f"{to_x(line.x[index]):g} {_bounded(to_y(line.low[index])):g}" for index in reversed(inside)]
        if len(inside) > 1:
            band = Markup('<path class="band" d="M{}Z"/>').format("L".join(upper + lower))
    values = [
        [_rounded(line.x[i]), _rounded(line.y[i]), *([_rounded(line.low[i]), _rounded(line.high[i])] if i in inside else [])]  # type: ignore[index]
        for i in points
    ]
    data = Markup("") if line.style == "thin" else Markup(' data-name="{}" data-values="{}"').format(line.name, _compact(values))
    return Markup('<g class="line {}" data-series="{}"{} style="--c:{}">{}<path class="mean" d="{}"/></g>').format(
        line.style, line.key, data, line.colour, band, path
    )


def heat_map(values: np.ndarray, description: str) -> Markup:
    """A heat map around zero on its own scale: red above, blue below, [rows, columns], the first row on top.

    Cells of one colour are one path, so that a map takes about as many bytes as a small PNG and follows the page's colours.
    """
    rows, columns = values.shape
    largest = float(np.abs(values).max()) or 1.0  # zero everywhere: no colour
    levels = np.rint(values / largest * _LEVELS).astype(int)
    paths = []
    for level in np.unique(levels[levels != 0]):
        cells = "".join(_run_path(row, levels[row] == level) for row in range(rows))
        paths.append(Markup('<path class="l{}{}" d="{}"/>').format("p" if level > 0 else "n", abs(level), cells))
    return Markup(
        '<svg class="heat" viewBox="0 0 {0} {1}" width="96" height="96" preserveAspectRatio="none" shape-rendering="crispEdges" '
        'role="img" aria-label="{2}">{3}</svg>'
    ).format(columns, rows, description, Markup("").join(paths))


def _run_path(row: int, inside: np.ndarray) -> str:
    """The stretches of a row that are inside, each as one rectangle."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(int), [0]])))
    return "".join(f"M{start} {row}h{end - start}v1H{start}z" for start, end in zip(edges[::2], edges[1::2], strict=True))


def short_number(value: float) -> str:
    """A tick's label: `0.5`, `250`, `40k`, `1.2M`."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}" if value else "0"


def _ticks(low: float, high: float, number: int) -> list[float]:
    """About so many round numbers between two ends, both included."""
    raw = (high - low) / number
    power = 10 ** math.floor(math.log10(raw))
    step = next(multiple * power for multiple in (1, 2, 2.5, 5, 10) if multiple * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _padded(low: float, high: float) -> tuple[float, float]:
    space = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
    return low - space, high + space


def _bounded(y: float) -> float:
    """Not far outside of the picture, where browsers round."""
    return min(max(y, -_HEIGHT), 2 * _HEIGHT)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}") if abs(value) < 1e4 else round(float(value))


def _compact(values: Sequence[Sequence[float]]) -> Markup:
    return escape(json.dumps([[int(v) if v == int(v) else v for v in point] for point in values], separators=(",", ":")))
