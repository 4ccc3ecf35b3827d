"""Charts as inline SVG: drawn here, coloured by the page's style, readable without any script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from math import ceil, floor, log10

import msgspec

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 16, 52
COLOURS = 8  # the page's style has as many; further series are dashed
DASHES = ("", "7 4", "2 4", "10 3 2 3")

CHARACTER = 7.8  # the width of one, about

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom


class Axis(msgspec.Struct, frozen=True):
    """Maps values to 0..1. `ticks` are (value, label)."""

    title: str
    place: Callable[[float], float]
    ticks: list[tuple[float, str]]


class Series(msgspec.Struct, frozen=True):
    label: str
    points: list[Point]


def linear(title: str, values: Sequence[float], show: Callable[[float], str], floor_at: float = 0.0) -> Axis:
    """From `floor_at` to a little over the largest value, with about five round ticks."""
    top = max([*values, floor_at]) or 1.0
    top = floor_at + (top - floor_at) * 1.08 if top > floor_at else floor_at + 1.0
    step = _round_step((top - floor_at) / 5.0)
    ticks = [floor_at + i * step for i in range(int((top - floor_at) / step) + 1)]
    return Axis(title, lambda v: (v - floor_at) / (top - floor_at), [(t, show(t)) for t in ticks])


def logarithmic(title: str, values: Sequence[float], show: Callable[[float], str]) -> Axis:
    """Over the positive values, a tick at every power of ten (and at 2 and 5, if there are few)."""
    positive = [v for v in values if v > 0.0] or [1.0]
    low, high = log10(min(positive)), log10(max(positive))
    if high - low < 0.3:
        low, high = low - 0.15, high + 0.15
    decades = range(floor(low), ceil(high) + 1)
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    ticks = [m * 10.0**d for d in decades for m in steps if low - 0.01 <= log10(m * 10.0**d) <= high + 0.01]
    return Axis(title, lambda v: (log10(max(v, 10.0**low)) - low) / (high - low), [(t, show(t)) for t in ticks])


def ratios(title: str, values: Sequence[float]) -> Axis:
    """Around 1, as far to both sides as the values go, at most a factor of a hundred: further out is at the edge."""
    reach = min(max([abs(log10(v)) for v in values if v > 0.0] + [log10(1.1)]) * 1.05, 2.0)
    marks = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
    shown = [m for m in marks if abs(log10(m)) <= reach and (reach < 0.7 or m not in (0.8, 0.9, 1.1, 1.25))]
    return Axis(title, lambda v: (log10(max(v, 1e-9)) + reach) / (2.0 * reach), [(m, f"{m:g}") for m in shown])


def nines(title: str, largest: float = 4.0) -> Axis:
    """Shares of calls, stretched towards 100 %: every nine takes as much room. Values are numbers of nines."""
    shares = ("0 %", "90 %", "99 %", "99.9 %", "99.99 %")
    known = [(log10(2.0), "50 %"), *((float(n), share) for n, share in enumerate(shares))]
    return Axis(title, lambda v: v / largest, [tick for tick in known if tick[0] <= largest + 1e-9])


def line_chart(name: str, description: str, x: Axis, y: Axis, series: Sequence[Series], under: Series | None) -> str:
    """Lines, one for each series; `under` is a broad one below them, to hold them against."""
    body = [_grid(x, y)]
    if under is not None:
        path = _path(x, y, under.points)
        body.append(f'<path class="under" d="{path}"><title>{escape(under.label)}</title></path>')
    for index, line in enumerate(series):
        path = _path(x, y, line.points)
        dash = DASHES[index // COLOURS % len(DASHES)]
        style = f' stroke-dasharray="{dash}"' if dash else ""
        body.append(
            f'<path class="line c{index % COLOURS}" data-series="{index}" d="{path}"{style}>'
            f"<title>{escape(line.label)}</title></path>"
        )
    return _svg(name, description, body)


def plane(name: str, description: str, x: Axis, y: Axis, points: Sequence[Series], front: Sequence[Point]) -> str:
    """A labelled point for each series; `front` joins those that no other beats in both directions."""
    places = [(_x(x, point.points[0][0]), _y(y, point.points[0][1])) for point in points]
    taken = [(px - 7.5, py - 7.5, px + 7.5, py + 7.5) for px, py in places]
    body = [_grid(x, y)]
    if len(front) > 1:
        path = _path(x, y, front)
        body.append(f'<path class="front" d="{path}"><title>no other is better in both</title></path>')
    for index, (point, (px, py)) in enumerate(zip(points, places, strict=True)):
        dot = f'<circle cx="{px:.1f}" cy="{py:.1f}" r="6.5"/>{_label(point.label, px, py, taken)}'
        named = f"{dot}<title>{escape(point.label)}</title>"
        body.append(f'<g class="point c{index % COLOURS}" data-series="{index}" tabindex="0">{named}</g>')
    return _svg(name, description, body)


def intervals(name: str, description: str, x: Axis, rows: Sequence[tuple[str, float, float, float]]) -> str:
    """A row for each (label, low, middle, high): a dot with its interval. The first row stands out."""
    gutter, line = 210, 30
    height = TOP + line * len(rows) + BOTTOM
    width = WIDTH - RIGHT

    def place(value: float) -> float:
        return gutter + min(max(x.place(value), 0.0), 1.0) * (width - gutter)

    body = ['<g class="grid">']
    for value, label in x.ticks:
        at = place(value)
        body.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        body.append(f'<text x="{at:.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">{escape(label)}</text>')
    body.append("</g>")
    for index, (label, low, middle, high) in enumerate(rows):
        at = TOP + line * index + line / 2
        name_of = f'<text x="{gutter - 14}" y="{at + 4:.1f}" text-anchor="end">{escape(label)}</text>'
        body.append(
            f'<g class="interval {"c0" if index == 0 else "muted"}">{name_of}'
            f'<line x1="{place(low):.1f}" x2="{place(high):.1f}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<circle cx="{place(middle):.1f}" cy="{at:.1f}" r="5"/></g>'
        )
    body.append(
        f'<text class="axis" x="{(gutter + width) / 2}" y="{height - 8}" text-anchor="middle">{escape(x.title)}</text>'
    )
    return _svg(name, description, body, height)


def _svg(name: str, description: str, body: Sequence[str], height: int = HEIGHT) -> str:
    id = "".join(c if c.isalnum() else "-" for c in name.lower())
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{id}-t {id}-d">'
        f'<title id="{id}-t">{escape(name)}</title><desc id="{id}-d">{escape(description)}</desc>{"".join(body)}</svg>'
    )


def _grid(x: Axis, y: Axis) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = ['<g class="grid">']
    for value, label in x.ticks:
        at = _x(x, value)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{escape(label)}</text>')
    for value, label in y.ticks:
        at = _y(y, value)
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    parts += ["</g>", _title((LEFT + right) / 2, HEIGHT - 8, x.title), _title(13, (TOP + bottom) / 2, y.title, -90)]
    return "".join(parts)


def _title(x: float, y: float, text: str, turn: int = 0) -> str:
    where = f'transform="translate({x:.1f} {y:.1f}) rotate({turn})"' if turn else f'x="{x:.1f}" y="{y:.1f}"'
    return f'<text class="axis" {where} text-anchor="middle">{escape(text)}</text>'


def _label(text: str, x: float, y: float, taken: list[Box]) -> str:
    """A point's name near it, where it covers neither another name nor a point."""
    width = CHARACTER * len(text)
    places = [(x + 11.0, y + 4.0), (x - 11.0 - width, y + 4.0), (x - width / 2, y - 13.0), (x - width / 2, y + 22.0)]
    places += [(x + 9.0, y + 4.0 + shift) for shift in (18.0, -18.0, 34.0, -34.0, 50.0, -50.0, 66.0, -66.0)]
    places += [(x - 9.0 - width, at) for _, at in places[4:]]
    boxes = [(left, at - 11.0, left + width, at + 3.0) for left, at in places]
    inside = [
        box for box in boxes if box[0] >= LEFT and box[2] <= WIDTH - 4 and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM
    ]
    free = [box for box in inside if not any(_overlap(box, other) for other in taken)]
    box = (free or inside or boxes)[0]
    taken.append(box)
    before = box[2] < x
    anchor = ' text-anchor="end"' if before else ""
    return f'<text x="{box[2] if before else box[0]:.1f}" y="{box[3] - 3.0:.1f}"{anchor}>{escape(text)}</text>'


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _path(x: Axis, y: Axis, points: Sequence[Point]) -> str:
    return "".join(f"{'L' if i else 'M'}{_x(x, px):.1f} {_y(y, py):.1f}" for i, (px, py) in enumerate(points))


def _x(axis: Axis, value: float) -> float:
    return LEFT + min(max(axis.place(value), 0.0), 1.0) * (WIDTH - RIGHT - LEFT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - min(max(axis.place(value), 0.0), 1.0) * (HEIGHT - BOTTOM - TOP)


def _round_step(rough: float) -> float:
    scale = 10.0 ** floor(log10(rough))
    return next(m * scale for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * scale >= rough * 0.999)
