"""Charts as inline SVG: grouped bars and curves, as much as a report needs and no more."""

import html
import math
from collections.abc import Mapping, Sequence

_COLOURS = ("#3b6fb6", "#d1703c", "#4a9a62", "#a05fa8", "#b8961f", "#4fa3a5", "#8a8f98", "#c2476a")
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 720, 260, 56, 34, 30, 150


def bars(title: str, values: Mapping[str, Mapping[str, float]]) -> str:
    """Horizontal bars between 0 and 100.

    Args:
        title: What they show.
        values: By row and by name of the bar; empty gives an empty text.
    """
    names = list(dict.fromkeys(name for row in values.values() for name in row))
    if not names:
        return ""
    thick, left = 12, 150
    step = thick * len(names) + 14
    width = _WIDTH - left - 60
    out: list[str] = []
    for index, (row, found) in enumerate(values.items()):
        top = _TOP + index * step
        out.append(_label(row, left - 8, top + step / 2 - 4, "end"))
        for place, name in enumerate(names):
            if name not in found:
                continue
            y, size = top + place * thick, width * min(max(found[name], 0.0), 100.0) / 100
            box = f'x="{left}" y="{y}" width="{size:.1f}" height="{thick - 2}"'
            out.append(f'<rect {box} fill="{_colour(place)}"/>')
            out.append(_label(f"{found[name]:.1f}", left + size + 5, y + 9, "start"))
    for place, name in enumerate(names):
        out += _key(place, name, left + 110 * place, 20)
    return _svg(title, _TOP + len(values) * step, out)


def curves(title: str, values: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Lines over a common axis; without a point anywhere, an empty text."""
    every = [point for points in values.values() for point in points]
    if not every:
        return ""
    x_of = _Axis(0.0, max(x for x, _ in every), _LEFT, _WIDTH - _RIGHT)
    low = min(0.0, *(y for _, y in every))
    y_of = _Axis(low, max(y for _, y in every), _HEIGHT - _BOTTOM, _TOP)
    out = [_grid(tick, y_of(tick)) for tick in y_of.ticks()]
    out += [_label(f"{tick:g}", x_of(tick), _HEIGHT - 10, "middle") for tick in x_of.ticks()]
    drawn = [(index, name) for index, (name, points) in enumerate(values.items()) if points]
    for row, (index, name) in enumerate(drawn):  # without points, but not without its colour
        colour, places = _colour(index), [(x_of(x), y_of(y)) for x, y in values[name]]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if len(places) == 1:  # a line of one point has no length
            x, y = places[0]
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
        out += _key(index, name, _WIDTH - _RIGHT + 14, _TOP + 18 * row)
    return _svg(title, max(_HEIGHT, _TOP + 18 * len(drawn)), out)


class _Axis:
    """From values to places."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self._low, self._high = low, max(high, low + 1e-9 * max(1.0, abs(low)))
        self._start, self._stop = start, stop

    def __call__(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return self._start + share * (self._stop - self._start)

    def ticks(self) -> list[float]:
        """Four to nine round values."""
        unit = 10.0 ** math.floor(math.log10(self._high - self._low))
        step = next(
            u for u in (unit / 5, unit / 2, unit, 2 * unit) if (self._high - self._low) / u <= 9
        )
        first = math.ceil(self._low / step)
        return [step * k for k in range(first, math.floor(self._high / step + 1e-9) + 1)]


def _grid(value: float, y: float) -> str:
    ends = f'x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
    return f'<line {ends} stroke="#8884" />' + _label(f"{value:.4g}", _LEFT - 6, y + 4, "end")


def _key(index: int, name: str, x: float, y: float) -> list[str]:
    """A line of the legend."""
    mark = f'<rect x="{x}" y="{y}" width="12" height="4" fill="{_colour(index)}"/>'
    return [mark, _label(name, x + 18, y + 6, "start")]


def _colour(index: int) -> str:
    """Another one for every index: beyond the chosen ones, hues a golden angle apart."""
    if index < len(_COLOURS):
        return _COLOURS[index]
    later = index - len(_COLOURS)
    return f"hsl({137.508 * later % 360:.1f}, 55%, {(45, 62, 32)[later % 3]}%)"


def _label(text: str, x: float, y: float, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="11">{html.escape(text)}</text>'


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    name = html.escape(title)
    heading = f'<text x="0" y="12" font-size="12" font-weight="600">{name}</text>'
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:g}" width="{_WIDTH}" height="{height:g}" role="img" '
        f'aria-label="{name}" font-family="system-ui, sans-serif">{heading}{"".join(parts)}</svg>'
    )
