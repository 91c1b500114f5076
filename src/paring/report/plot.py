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
_MARK = 5.0  # half of a mark's width, about
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
    left = 12 + _LETTER * max(map(len, ticks(y.ticks, panel.y)), default=1)
    longest = max(map(len, ticks(_x(panel.x, xs, left, width, 5).ticks, panel.x)), default=1)
    x = _x(panel.x, xs, left, width, max(2, round((width - left) / (_LETTER * longest + 34))))

    single = [s.points[0] for s in panel.series if s.shape == "dots" and len(s.points) == 1]
    marks = [(x(px), y(py)) for px, py in single if drawable(px, x.log) and py is not None and y.holds(py)]
    names = Names(x, height - _bottom(), marks)
    groups = [_series(s, styles[s.name], panel, x, y, most, names) for s in panel.series]
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


def ticks(values: Sequence[float], axis: Axis) -> list[str]:
    """The texts at ticks, as short as they can be told apart."""
    for digits in (6, 9, 15):
        found = [_tick(value, axis, digits) for value in values]
        if len(set(found)) == len(found):
            break
    return found


def _tick(value: float, axis: Axis, digits: int) -> str:
    if axis.form == "share":
        return f"{100 * value:.{digits}g}%"
    if axis.form == "count" and abs(value) >= 10_000 and digits == 6:
        return "".join(size(value).split()).removesuffix("B")  # 20k, 1.5M
    return f"{value:,.{digits}g}" if abs(value) < 1e6 or digits > 6 else f"{value:.3g}"


def style_class(style: int) -> str:
    """Of a series, for page.css."""
    return "series" if style == REFERENCE else f"series s{style % _NUM_STYLES}"


def shape_of(style: int) -> int:
    """Which dash and mark: such that colours that some eyes cannot tell apart have different ones, and 40 styles differ."""
    colour = style % _NUM_STYLES
    return 3 if style == REFERENCE else (colour + colour // NUM_SHAPES + style // _NUM_STYLES) % NUM_SHAPES


def marker(shape: int, x: float, y: float, radius: float = 3.4) -> str:
    """The path of a mark: circle, square, triangle or diamond."""
    r = radius
    if shape == 0:
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    if shape == 1:
        return f"M{x - r * 0.9:.1f} {y - r * 0.9:.1f}h{1.8 * r:.1f}v{1.8 * r:.1f}h{-1.8 * r:.1f}z"
    if shape == 2:
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
    for value, said in zip(y.ticks, ticks(y.ticks, panel.y), strict=True):
        at = f"{y(value):.1f}"
        parts.append(element("line", {"x1": f"{left:.1f}", "x2": width - _RIGHT, "y1": at, "y2": at, "class": "grid"}))
        parts.append(element("text", {"x": f"{left - 6:.1f}", "y": at, "dy": "0.32em", "class": "tick end"}, said))
    parts.append(element("line", {"x1": f"{left:.1f}", "x2": width - _RIGHT, "y1": foot, "y2": foot, "class": "axis"}))
    last = -math.inf  # where the text before ends
    for value, said in zip(x.ticks, ticks(x.ticks, panel.x), strict=True):
        at = f"{x(value):.1f}"
        parts.append(element("line", {"x1": at, "x2": at, "y1": foot, "y2": foot + 4, "class": "axis"}))
        if x(value) - _LETTER * len(said) / 2 > last:
            parts.append(element("text", {"x": at, "y": foot + _LINE + 4, "class": "tick middle"}, said))
            last = x(value) + _LETTER * len(said) / 2 + 2
    parts.append(element("text", {"x": width - _RIGHT, "y": foot + 2 * _LINE + 10, "class": "label end"}, panel.x.label))
    return element("g", {"aria-hidden": "true"}, *parts)


def _series(series: Series, style: int, panel: Panel, x: Scale, y: Scale, most: int, names: "Names") -> Markup:
    attributes = {"class": style_class(style) + (" faint" if series.faint else ""), "data-series": series.name}
    if series.shape == "level":
        value = series.points[0][1] if series.points else None
        if value is None or not y.holds(value):
            return element("g", attributes)
        at = f"{y(value):.1f}"
        ends = {"x1": f"{x.start - 6:.1f}", "x2": f"{x.stop + 6:.1f}"}
        line = element("line", {**ends, "y1": at, "y2": at, "class": f"level d{shape_of(style)}"})
        several = sum(s.shape == "level" for s in panel.series) > 1
        named = names.along(series.name, y(value)) if several else None
        return element("g", {**attributes, "data-level": text(value, panel.y.form)}, line, named)

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
        parts.append(element("path", {"d": path, "class": f"line d{shape_of(style)}"}))
    if series.shape == "dots" and (series.faint or len(places) > _MARKERS):
        parts.append(element("path", {"d": "".join(f"M{px} {py}h0" for px, py in places), "class": "cloud"}))
    elif series.shape == "dots" or (series.shape == "line" and len(places) <= _MARKERS and not series.faint):
        radius = 4.6 if series.shape == "dots" else 3.0
        parts.append(
            element("path", {"d": "".join(marker(shape_of(style), px, py, radius) for px, py in places), "class": "marks"})
        )
    if len(places) == 1 and all(s.shape in ("dots", "level") and len(s.points) == 1 for s in panel.series):
        parts += [named for named in [names.beside(series.name, places[0])] if named is not None]
    data = json.dumps(shown, ensure_ascii=False, separators=(",", ":"))
    return joined(element("g", {**attributes, "data-shape": series.shape, "data-points": data}, *parts))


class Names:
    """Names in a panel, each where it meets no other and none of the marks; where there is no room there is none (the legend
    has them all)."""

    def __init__(self, x: Scale, bottom: float, marks: Sequence[tuple[float, float]]) -> None:
        self._x, self._bottom = x, bottom
        self._taken = [(px - _MARK, px + _MARK, py - _MARK, py + _MARK) for px, py in marks]

    def beside(self, name: str, place: tuple[float, float]) -> Markup | None:
        """To the right or to the left of a point."""
        to_left = place[0] > (self._x.start + self._x.stop) / 2
        return self._put(name, place[0] + (-10 if to_left else 10), place[1], to_left) or self._put(
            name, place[0] + (10 if to_left else -10), place[1], not to_left
        )

    def along(self, name: str, at: float) -> Markup | None:
        """Above or below the right end of a line across."""
        return self._put(name, self._x.stop, at - 8, True) or self._put(name, self._x.stop, at + 8, True)

    def _put(self, name: str, x: float, y: float, to_left: bool) -> Markup | None:
        width = _LETTER * len(name)
        box = (x - width if to_left else x, x if to_left else x + width, y - _LINE / 2, y + _LINE / 2)
        inside = box[0] >= self._x.start - 6 and box[1] <= self._x.stop + 6 and box[2] >= _TOP - 6 and box[3] <= self._bottom
        if not inside or any(box[0] < b and a < box[1] and box[2] < d and c < box[3] for a, b, c, d in self._taken):
            return None
        self._taken.append(box)
        attributes: dict[str, Value] = {"x": round(x, 1), "y": round(y, 1), "dy": "0.32em", "aria-hidden": "true"}
        return element("text", {**attributes, "class": "name end" if to_left else "name"}, name)


def _path(places: Sequence[tuple[float, float]], step: bool) -> str:
    parts = [f"M{places[0][0]} {places[0][1]}"]
    for px, py in places[1:]:
        parts.append(f"H{px}V{py}" if step else f"L{px} {py}")
    return "".join(parts)
