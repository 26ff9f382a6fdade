"""Charts as inline SVG: axes, legends, and curves over steps that a page lets people read.

A plotting library would put 50 kB (uPlot) to 4 MB (Plotly) of script into every page; these are a
few kilobytes each and are pictures without any script. `assets/charts.js` adds reading of values.
Colours stay apart for colour-blind readers (after Okabe and Ito 2008, darkened until each has a
contrast of 3 on a white and on a black page), and dashes or the shape of marks repeat them.
"""

import html
import json
import math
from collections.abc import Mapping, Sequence

COLOURS = ("#0072b2", "#d55e00", "#008f68", "#b5679a", "#9a7500", "#3d8fc4", "#7f7f7f", "#8a5bc7")
DASHES = ("", "7 3", "2 3", "8 3 2 3")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT = 580, 240, 56, 34, 30, 150
"""Two charts lie side by side on a page of full width."""


def curves(title: str, values: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Lines over a common axis; without a point anywhere, an empty text.

    The attribute `data-curves` holds the points for `assets/charts.js`.
    """
    every = [point for points in values.values() for point in points]
    if not every:
        return ""
    x_of = Axis(0.0, max(x for x, _ in every), LEFT, WIDTH - RIGHT)
    low = min(0.0, *(y for _, y in every))
    y_of = Axis(low, max(y for _, y in every), HEIGHT - BOTTOM, TOP)
    out = [grid(tick, y_of(tick)) for tick in y_of.ticks()]
    out += [label(f"{tick:g}", x_of(tick), HEIGHT - 10, "middle") for tick in x_of.ticks()]
    drawn = [(index, name) for index, (name, points) in enumerate(values.items()) if points]
    for row, (index, name) in enumerate(drawn):  # without points, but not without its colour
        tint, places = colour(index), [(x_of(x), y_of(y)) for x, y in values[name]]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dash = f' stroke-dasharray="{DASHES[index % 4]}"' if DASHES[index % 4] else ""
        line = f'stroke="{tint}" stroke-width="1.8"{dash}'
        out.append(f'<polyline points="{path}" fill="none" {line}/>')
        if len(places) == 1:  # a line of one point has no length
            x, y = places[0]
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{tint}"/>')
        y = TOP + 18 * row
        left = WIDTH - RIGHT + 14
        out.append(f'<path d="M{left} {y + 2}h22" {line}/>')
        out.append(label(name, left + 28, y + 6, "start"))
    read = {
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "high": x_of.high,
        "series": [{"name": name, "points": values[name]} for _, name in drawn],
    }
    data = f'data-curves="{html.escape(json.dumps(read))}"'
    return svg(title, max(HEIGHT, TOP + 18 * len(drawn)), out, attributes=data)


class Axis:
    """From values to places."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self._low, self.high = low, max(high, low + 1e-9 * max(1.0, abs(low)))
        self._start, self._stop = start, stop

    def __call__(self, value: float) -> float:
        """The place of a value."""
        share = (value - self._low) / (self.high - self._low)
        return self._start + share * (self._stop - self._start)

    def ticks(self) -> list[float]:
        """Four to nine round values."""
        unit = 10.0 ** math.floor(math.log10(self.high - self._low))
        step = next(
            u for u in (unit / 5, unit / 2, unit, 2 * unit) if (self.high - self._low) / u <= 9
        )
        first = math.ceil(self._low / step)
        return [step * k for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def grid(value: float, y: float, right: float = WIDTH - RIGHT) -> str:
    """A horizontal line at a value of the vertical axis, and the value."""
    ends = f'x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"'
    return f'<line {ends} stroke="#8884" />' + label(f"{value:.4g}", LEFT - 6, y + 4, "end")


def mark(index: int, x: float, y: float, told: str = "", *, hollow: bool = False) -> str:
    """A dot, square, triangle or diamond; `told` is shown where a pointer rests on it."""
    shapes = (
        "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
        "M-3.6 -3.6h7.2v7.2h-7.2z",
        "M0 -4.6L4.4 3.6H-4.4z",
        "M0 -5L4.6 0L0 5L-4.6 0z",
    )
    tint = colour(index)
    paint = f'fill="none" stroke="{tint}" stroke-width="1.2"' if hollow else f'fill="{tint}"'
    place = f'transform="translate({x:.1f} {y:.1f})" {paint}'
    inner = f"<title>{html.escape(told)}</title>" if told else ""
    return f'<path d="{shapes[index % 4]}" {place}>{inner}</path>'


def key(index: int, name: str, x: float, y: float) -> list[str]:
    """A line of the legend."""
    return [mark(index, x + 6, y + 2), label(name, x + 18, y + 6, "start")]


def colour(index: int) -> str:
    """Another one for every index: beyond the chosen ones, hues a golden angle apart."""
    if index < len(COLOURS):
        return COLOURS[index]
    later = index - len(COLOURS)
    return f"hsl({137.508 * later % 360:.1f}, 55%, {(45, 62, 52)[later % 3]}%)"


def label(text: str, x: float, y: float, anchor: str) -> str:
    """A small text."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="11">{html.escape(text)}</text>'


def svg(
    title: str, height: float, parts: Sequence[str], *, width: float = WIDTH, attributes: str = ""
) -> str:
    """A picture with its title, in a box that scrolls where the page is narrower."""
    name = html.escape(title)
    heading = f'<text x="0" y="12" font-size="12" font-weight="600">{name}</text>'
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return (
        f'<div class="chart"><svg {size} role="img" {attributes} aria-label="{name}" '
        f'font-family="system-ui, sans-serif">{heading}{"".join(parts)}</svg></div>'
    )
