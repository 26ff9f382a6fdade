"""Diagrams of the report: figures with their intervals, accuracy by difficulty, calibration.

An interval is two standard errors to each side, about 95 %.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.reporting.charts import (
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    colour,
    grid,
    key,
    label,
    mark,
    svg,
)

FEW = 0.01
"""Share of all tokens below which a bin of a calibration diagram has a hollow mark."""


@dataclass(frozen=True)
class Point:
    """A figure and its standard error, where there is one."""

    value: float
    error: float | None = None
    note: str = ""

    @property
    def ends(self) -> tuple[float, float]:
        """Two standard errors to each side."""
        spread = 2 * (self.error or 0.0)
        return self.value - spread, self.value + spread


def intervals(title: str, values: Mapping[str, Mapping[str, Point]]) -> str:
    """A line for each row, a mark and an interval for each of its figures.

    Args:
        title: What they show.
        values: By row and by name of the figure; empty gives an empty text.
    """
    names = list(dict.fromkeys(name for row in values.values() for name in row))
    every = [end for row in values.values() for point in row.values() for end in point.ends]
    if not every:
        return ""
    left, right, step = 150, 540, 14 * len(names) + 12
    bottom = TOP + len(values) * step
    x_of = Axis(min(0.0, *every), max(every), left, right)
    out: list[str] = []
    for tick in x_of.ticks():
        x = x_of(tick)
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}" stroke="#8884"/>')
        out.append(label(f"{tick:g}", x, bottom + 14, "middle"))
    for index, (row, found) in enumerate(values.items()):
        top = TOP + index * step
        out.append(label(row, left - 12, top + step / 2 + 4, "end"))
        for place, name in enumerate(names):
            if (point := found.get(name)) is None:
                continue
            y, (low, high) = top + 13 + 14 * place, point.ends
            ends = f'x1="{x_of(low):.1f}" x2="{x_of(high):.1f}" y1="{y}" y2="{y}"'
            out.append(f'<line {ends} stroke="{colour(place)}" stroke-width="2"/>')
            told = f"{row}, {name}: {_spoken(point)}"
            out.append(mark(place, x_of(point.value), y, told))
    if len(names) > 1:
        for place, name in enumerate(names):
            out += key(place, name, left + 110 * place, 24)
    return svg(title, bottom + 22, out)


def by_group(
    title: str, groups: Sequence[str], values: Mapping[str, Sequence[Point | None]]
) -> str:
    """Marks with intervals over named groups, one kind of mark for each row.

    Args:
        title: What they show.
        groups: Names along the horizontal axis.
        values: By row, one point for each group, None where the group is empty.
    """
    points = [point for row in values.values() for point in row if point is not None]
    if not points:
        return ""
    width, height, right = WIDTH, HEIGHT, WIDTH - RIGHT
    high = max(end for point in points for end in point.ends)
    y_of = Axis(0.0, max(high, 1.0), height - 40, TOP)
    out = [grid(tick, y_of(tick), right) for tick in y_of.ticks()]
    wide = (right - LEFT) / len(groups)
    for index, name in enumerate(groups):
        out.append(label(name, LEFT + (index + 0.5) * wide, height - 22, "middle"))
    for place, (row, found) in enumerate(values.items()):
        shift = (place + 1) / (len(values) + 1)
        for index, point in enumerate(found):
            if point is None:
                continue
            x = LEFT + (index + 0.15 + 0.7 * shift) * wide
            low, high = (y_of(max(0.0, end)) for end in point.ends)
            ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"'
            out.append(f'<line {ends} stroke="{colour(place)}" stroke-width="2"/>')
            told = f"{row}, {groups[index]}: {_spoken(point)}"
            out.append(mark(place, x, y_of(point.value), told))
        out += key(place, row, right + 14, TOP + 18 * place)
    return svg(title, max(height, TOP + 18 * len(values)), out, width=width)


def calibration(title: str, bins: Sequence[Mapping[str, float]], truth: str) -> str:
    """Confidence against what is true of it, bin by bin; the diagonal is a calibrated model.

    Bins with few tokens have hollow marks.

    Args:
        title: Of the model.
        bins: `count`, `confidence` and `truth` (means within the bin) of bins that are not empty.
        truth: What the vertical axis shows.
    """
    if not bins:
        return ""
    side, left, top = 190, 44, 30
    total = sum(one["count"] for one in bins)
    x_of, y_of = Axis(0.0, 1.0, left, left + side), Axis(0.0, 1.0, top + side, top)
    frame = (
        f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="#8888"/>'
    )
    diagonal = f'<path d="M{left} {top + side}L{left + side} {top}" stroke="#888" fill="none"/>'
    out = [frame, diagonal]
    for tick in (0.0, 0.5, 1.0):
        out.append(label(f"{tick:g}", x_of(tick), top + side + 14, "middle"))
        out.append(label(f"{tick:g}", left - 6, y_of(tick) + 4, "end"))
    for one in bins:
        x, y = x_of(min(1.0, one["confidence"])), y_of(min(1.0, max(0.0, one["truth"])))
        told = (
            f"confidence {one['confidence']:.3f}, {truth} {one['truth']:.3f}, "
            f"{one['count']:,.0f} tokens"
        )
        few = one["count"] < FEW * total
        out.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y_of(one["confidence"]):.1f}" '
            f'y2="{y:.1f}" stroke="{colour(1)}" stroke-width="{1 if few else 3}"/>'
        )
        tall = 24 * one["count"] / total
        out.append(
            f'<rect x="{x - 3:.1f}" y="{top + side - tall:.1f}" width="6" '
            f'height="{tall:.1f}" fill="#8886"/>'
        )
        out.append(mark(0, x, y, told, hollow=few))
    out.append(label("confidence", left + side / 2, top + side + 28, "middle"))
    middle = top + side / 2
    out.append(
        f'<text x="12" y="{middle}" font-size="11" text-anchor="middle" '
        f'transform="rotate(-90 12 {middle})">{html.escape(truth)}</text>'
    )
    return svg(title, top + side + 36, out, width=left + side + 16)


def _spoken(point: Point) -> str:
    spread = "" if point.error is None else f" ± {2 * point.error:.4g}"
    return f"{point.value:.4g}{spread}{' (' + point.note + ')' if point.note else ''}"
