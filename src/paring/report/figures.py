"""Figures as HTML: a caption, a legend whose entries the script makes switches, panels, and the numbers as a table."""

from collections.abc import Mapping, Sequence

from paring.report.document import Album, Cell, Column, Figure, Panel, Picture, Strip, Table
from paring.report.limits import Limits
from paring.report.markup import Markup, element, joined
from paring.report.plot import draw, marker, shape_of, style_class
from paring.report.tables import render_table

_WIDE, _HALF, _NARROW = (900, 360), (420, 290), (310, 250)  # of one panel, of two, and of more or on a phone
_LEVELS = 15  # of grey in small images


def render_figure(figure: Figure, styles: Mapping[str, int], number: int, limits: Limits) -> Markup:
    """One figure. ``styles``: number of the style by name of series."""
    count = {1: " alone", 2: " pair"}.get(len(figure.panels), "")
    panels = [_panel(figure, panel, styles, limits) for panel in figure.panels]
    longest = max((len(s.points) for panel in figure.panels for s in panel.series), default=0)
    note = figure.note
    if longest > limits.points:
        note += f" Of lines of up to {longest:,} points those are drawn that stand out, {limits.points:,} at most."
    return element(
        "figure",
        {"class": "figure", "id": f"figure-{number}"},
        element("figcaption", None, figure.caption),
        _legend(figure, styles),
        element("div", {"class": f"panels{count}"}, *panels),
        element("p", {"class": "note"}, note.strip()) if note.strip() else None,
        *(
            render_table(table, f"figure-{number}-numbers{f'-{i}' if i > 1 else ''}", limits)
            for i, table in enumerate(_numbers(figure), 1)
        ),
    )


def render_album(album: Album) -> Markup:
    """Groups of small images side by side."""
    groups = []
    for title, summary, strips in album.groups:
        rows = [
            element("div", {"class": "strip"}, element("span", {"class": "side"}, s.name), _strip(s, title)) for s in strips
        ]
        groups.append(element("li", None, element("h3", None, title), *rows, element("p", {"class": "note"}, summary)))
    return element(
        "figure",
        {"class": "figure"},
        element("figcaption", None, album.caption),
        element("ul", {"class": "album"}, *groups),
    )


def render_picture(picture: Picture) -> Markup:
    """As an image: no script in it runs, nothing is fetched."""
    from base64 import b64encode

    source = "data:image/svg+xml;base64," + b64encode(picture.svg).decode()
    image = element("img", {"src": source, "alt": picture.caption, "class": "picture"})
    scroll = element("div", {"class": "scroll", "role": "region", "aria-label": picture.caption, "tabindex": 0}, image)
    return element("figure", {"class": "figure"}, element("figcaption", None, picture.caption), scroll)


def _panel(figure: Figure, panel: Panel, styles: Mapping[str, int], limits: Limits) -> Markup:
    name = f"{figure.caption}{': ' + panel.title if panel.title else ''}. The numbers are in the table that follows."
    among = figure.panels if figure.shared else [panel]
    sizes = {"narrow": _NARROW} | ({"wide": _WIDE if len(figure.panels) == 1 else _HALF} if len(figure.panels) <= 2 else {})
    drawn = [
        element("div", {"class": of}, draw(panel, among, styles, name, *size, limits.points)) for of, size in sizes.items()
    ]
    return element("div", {"class": "panel"}, element("h3", None, panel.title) if panel.title else None, *drawn)


def _legend(figure: Figure, styles: Mapping[str, int]) -> Markup | None:
    """An entry a name, with what stands for it; None where there is but one."""
    shapes: dict[str, set[str]] = {}
    for panel in figure.panels:
        for s in panel.series:
            shapes.setdefault(s.name, set()).add(s.shape)
    items = []
    for name, of in shapes.items():
        style = styles[name]
        parts = []
        if of & {"line", "step"}:
            parts.append(element("path", {"d": "M1 6H27", "class": f"line d{shape_of(style)}"}))
        elif "level" in of:
            parts.append(element("path", {"d": "M1 6H27", "class": f"level d{shape_of(style)}"}))
        if of & {"line", "dots"}:
            parts.append(element("path", {"d": marker(shape_of(style), 14, 6, 3.4), "class": "marks"}))
        attributes = {"viewBox": "0 0 28 12", "class": f"swatch {style_class(style)}", "aria-hidden": "true"}
        items.append(element("li", {"data-series": name}, element("svg", attributes, *parts), element("span", None, name)))
    return element("ul", {"class": "legend"}, *items) if len(items) > 1 else None


def _numbers(figure: Figure) -> list[Table]:
    """What is drawn, a row a point: a table for panels whose numbers are of one kind."""
    kinds: dict[tuple[str, str, str], list[Panel]] = {}
    for panel in figure.panels:
        kinds.setdefault((panel.x.label, panel.x.form, panel.y.form), []).append(panel)
    return [_table(figure, panels, alone=len(kinds) == 1) for panels in kinds.values()]


def _table(figure: Figure, panels: Sequence[Panel], alone: bool) -> Table:
    titled = len(figure.panels) > 1
    labelled = any(s.labels for p in panels for s in p.series)
    x, y = panels[0].x, panels[0].y
    name = y.label if len({p.y.label for p in panels}) == 1 else "value"
    columns = [Column("panel")] if titled else []
    columns += [Column("series"), Column(x.label, x.form), Column(name, y.form)]
    columns += [Column("point")] if labelled else []
    rows: list[list[Cell]] = []
    for panel in panels:
        for s in panel.series:
            for i, (px, py) in enumerate(s.points):
                row: list[Cell] = [panel.title] if titled else []
                row += [s.name, None if s.shape == "level" else px, py]
                rows.append([*row, *([s.labels[i] if s.labels else None] if labelled else [])])
    of = "" if alone else f", {name} by {x.label}"
    return Table(f"The numbers of: {figure.caption}{of}", columns, rows, folded=True)


def _strip(strip: Strip, title: str) -> Markup:
    """The images side by side; each level of grey is one path, in the colour of the text."""
    if not strip.images:
        return Markup("")
    rows, columns = len(strip.images[0]), max(len(row) for row in strip.images[0])
    step = columns + 1
    levels: dict[int, list[str]] = {}
    for i, image in enumerate(strip.images):
        for top, row in enumerate(image):
            for left, ink in enumerate(row):
                level = min(max(round(ink * _LEVELS), 0), _LEVELS)
                if level:
                    levels.setdefault(level, []).append(f"M{i * step + left} {top}h1v1h-1z")
    paths = [
        element("path", {"d": "".join(d), "fill-opacity": f"{level / _LEVELS:.2f}"}) for level, d in sorted(levels.items())
    ]
    texts = [
        element("text", {"x": i * step + columns / 2, "y": rows + 3.2, "class": "digit"}, label)
        for i, label in enumerate(strip.labels)
    ]
    height = rows + (4 if strip.labels else 0)
    said = f"{title}, {strip.name}" + (f": labels {', '.join(strip.labels)}" if strip.labels else "")
    box = f"0 0 {len(strip.images) * step - 1} {height}"
    return element("svg", {"viewBox": box, "class": "images", "role": "img", "aria-label": said}, joined(*paths), *texts)
