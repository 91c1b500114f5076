"""One panel of a figure as SVG, drawn from the numbers.

A panel is drawn for a width in pixels of the reader's screen, so that letters have their size on a phone, too. What the
script of the page needs for showing values (``page.js``) stands in ``data-`` attributes; without it the drawing is the same.
"""

import json
import math
from collections.abc import Mapping, Sequence

from paring.report.document import Axis, Panel, Series
from paring.report.markup import Markup, Value, element, joined
from paring.report.numbers import size, text
from paring.report.scale import Scale, drawable, scale

_LETTER, _LINE = 6.6, 13  # width and height of a tick's text, in pixels
_TOP, _RIGHT = 26, 14
_MARKERS = 40  # a line of more points has none
_NUM_STYLES = 10  # of lines: .s0 to .s9 in page.css
REFERENCE = -1  # the style of what is drawn across, to compare with: in the colour of the text
NUM_SHAPES = 4


def draw(
    panel: Panel, among: Sequence[Panel], styles: Mapping[str, int], name: str, width: int, height: int, most: int
) -> Markup:
    """The panel.

    Args:
        among: panels, itself one of them, with which it shares the ranges of axes of the same label.
        styles: number of the style by name of series.
        name: what a screen reader says of it.
        most: points of a series that are drawn; of more, the least and greatest of each stretch.
    """
    xs = [x for p in among if p.x.label == panel.x.label for s in p.series if s.shape != "level" for x, _ in s.points]
    ys = [y for p in among if p.y.label == panel.y.label for s in _held(p) for _, y in s.points]
    y = scale(panel.y, ys, height - _bottom(), _TOP, max(2, round((height - 60) / 42)))
    left = 12 + _LETTER * max((len(tick(t, panel.y)) for t in y.ticks), default=1)
    longest = max((len(tick(t, panel.x)) for t in _x(panel.x, xs, left, width, 5).ticks), default=1)
    x = _x(panel.x, xs, left, width, max(2, round((width - left) / (_LETTER * longest + 34))))

    groups = [_series(s, styles[s.name], panel, x, y, most) for s in panel.series]
    attributes: dict[str, Value] = {
        "viewBox": f"0 0 {width} {height}",
        "class": "plot",
        "role": "img",
        "aria-label": name,
        "tabindex": 0,
        "data-x": panel.x.label,
        "data-y": panel.y.label,
        "data-box": f"{_TOP} {height - _bottom()}",
    }
    return element("svg", attributes, _axes(panel, x, y, width, height), *groups)


def tick(value: float, axis: Axis) -> str:
    """The text at a tick, as short as it can be."""
    if axis.form == "count" and abs(value) >= 10_000:
        return "".join(size(value).split()).removesuffix("B")  # 20k, 1.5M
    return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:.3g}"


def style_class(style: int) -> str:
    """Of a series, for page.css."""
    return "series" if style == REFERENCE else f"series s{style % _NUM_STYLES}"


def marker(shape: int, x: float, y: float, radius: float = 3.4) -> str:
    """The path of a mark: circle, square, triangle or diamond."""
    r = radius
    if shape % NUM_SHAPES == 0:
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    if shape % NUM_SHAPES == 1:
        return f"M{x - r * 0.9:.1f} {y - r * 0.9:.1f}h{1.8 * r:.1f}v{1.8 * r:.1f}h{-1.8 * r:.1f}z"
    if shape % NUM_SHAPES == 2:
        return f"M{x:.1f} {y - 1.2 * r:.1f}l{1.15 * r:.1f} {2 * r:.1f}h{-2.3 * r:.1f}z"
    return f"M{x:.1f} {y - 1.3 * r:.1f}l{1.2 * r:.1f} {1.3 * r:.1f}l{-1.2 * r:.1f} {1.3 * r:.1f}l{-1.2 * r:.1f} {-1.3 * r:.1f}z"


def thinned(points: Sequence[tuple[float, float | None]], most: int) -> list[int]:
    """Which points are drawn: all, or of each of equally long stretches the first, the least and the greatest; and the last."""
    if len(points) <= max(most, 8):
        return list(range(len(points)))
    stretches = max(most // 3, 2)
    chosen = {len(points) - 1}
    for i in range(stretches):
        stretch = range(i * len(points) // stretches, (i + 1) * len(points) // stretches)
        values = [(y, at) for at in stretch if (y := points[at][1]) is not None and math.isfinite(y)]
        chosen |= {stretch[0], *((min(values)[1], max(values)[1]) if values else ())}
    return sorted(chosen)


def _held(panel: Panel) -> Sequence[Series]:
    """What the axes are made for."""
    return [s for s in panel.series if s.held] or panel.series


def _bottom() -> int:
    return 2 * _LINE + 16


def _x(axis: Axis, values: Sequence[float], left: float, width: int, count: int) -> Scale:
    return scale(axis, values, left + 6, width - _RIGHT - 6, count)


def _axes(panel: Panel, x: Scale, y: Scale, width: int, height: int) -> Markup:
    foot = height - _bottom()
    left = x.start - 6
    parts = [element("text", {"x": 0, "y": 12, "class": "label"}, panel.y.label)]
    for value in y.ticks:
        at = f"{y(value):.1f}"
        parts.append(element("line", {"x1": f"{left:.1f}", "x2": width - _RIGHT, "y1": at, "y2": at, "class": "grid"}))
        parts.append(
            element("text", {"x": f"{left - 6:.1f}", "y": at, "dy": "0.32em", "class": "tick end"}, tick(value, panel.y))
        )
    parts.append(element("line", {"x1": f"{left:.1f}", "x2": width - _RIGHT, "y1": foot, "y2": foot, "class": "axis"}))
    for value in x.ticks:
        at = f"{x(value):.1f}"
        parts.append(element("line", {"x1": at, "x2": at, "y1": foot, "y2": foot + 4, "class": "axis"}))
        parts.append(element("text", {"x": at, "y": foot + _LINE + 4, "class": "tick middle"}, tick(value, panel.x)))
    parts.append(element("text", {"x": width - _RIGHT, "y": foot + 2 * _LINE + 10, "class": "label end"}, panel.x.label))
    return element("g", {"aria-hidden": "true"}, *parts)


def _series(series: Series, style: int, panel: Panel, x: Scale, y: Scale, most: int) -> Markup:
    attributes = {"class": style_class(style) + (" faint" if series.faint else ""), "data-series": series.name}
    if series.shape == "level":
        value = series.points[0][1] if series.points else None
        if value is None or not y.holds(value):
            return element("g", attributes)
        at = f"{y(value):.1f}"
        line = element("line", {"x1": f"{x.start - 6:.1f}", "x2": f"{x.stop + 6:.1f}", "y1": at, "y2": at, "class": "level"})
        return element("g", {**attributes, "data-level": text(value, panel.y.form)}, line)

    stretches: list[list[tuple[float, float]]] = [[]]  # apart where a value is missing
    shown = []
    for i in thinned(series.points, most):
        px, py = series.points[i]
        if py is None or not drawable(px, x.log) or not y.holds(py):
            stretches.append([])
            continue
        place = round(x(px), 1), round(y(py), 1)
        stretches[-1].append(place)
        more = [series.labels[i]] if series.labels else []
        shown.append([*place, text(px, panel.x.form), text(py, panel.y.form), *more])
    places = [place for stretch in stretches for place in stretch]
    parts = []
    if series.shape in ("line", "step"):
        path = "".join(_path(stretch, series.shape == "step") for stretch in stretches if stretch)
        parts.append(element("path", {"d": path, "class": f"line d{style % NUM_SHAPES}"}))
    if series.shape == "dots" and (series.faint or len(places) > _MARKERS):
        parts.append(element("path", {"d": "".join(f"M{px} {py}h0" for px, py in places), "class": "cloud"}))
    elif series.shape == "dots" or (series.shape == "line" and len(places) <= _MARKERS and not series.faint):
        radius = 4.6 if series.shape == "dots" else 3.0
        parts.append(element("path", {"d": "".join(marker(style, px, py, radius) for px, py in places), "class": "marks"}))
    if len(places) == 1 and all(s.shape == "dots" and len(s.points) == 1 for s in panel.series):
        parts.append(_named(series.name, places[0], x))
    data = json.dumps(shown, ensure_ascii=False, separators=(",", ":"))
    return joined(element("g", {**attributes, "data-shape": series.shape, "data-points": data}, *parts))


def _named(name: str, place: tuple[float, float], x: Scale) -> Markup:
    """The name beside its only point, on the side that has more room."""
    to_left = place[0] > (x.start + x.stop) / 2
    attributes: dict[str, Value] = {"x": place[0] + (-10 if to_left else 10), "y": place[1], "dy": "0.32em"}
    return element("text", {**attributes, "class": "name end" if to_left else "name", "aria-hidden": "true"}, name)


def _path(places: Sequence[tuple[float, float]], step: bool) -> str:
    parts = [f"M{places[0][0]} {places[0][1]}"]
    for px, py in places[1:]:
        parts.append(f"H{px}V{py}" if step else f"L{px} {py}")
    return "".join(parts)
