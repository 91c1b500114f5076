"""Tables as HTML that a script can sort, and as CSV in a link that needs no script."""

import csv
import io
import math
import re
from base64 import b64encode
from collections.abc import Sequence

from paring.report.document import Cell, Column, Table
from paring.report.limits import Limits
from paring.report.markup import Markup, element
from paring.report.numbers import raw, text

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins so is run by spreadsheets
_LONGEST_CELL, _SHORT = 400, 20  # letters; a short one stays on one line


def render_table(table: Table, slug: str, limits: Limits) -> Markup:
    """One table. ``slug``: the file name of its CSV, and part of its id; unique on the page."""
    rows = table.rows[: limits.rows]
    best = [_best(column, [row[i] for row in table.rows]) for i, column in enumerate(table.columns)]
    largest = [
        _largest(column, [row[i] for row in (*table.rows, *([] if table.summed else table.foot))])
        for i, column in enumerate(table.columns)
    ]
    head = [element("th", {"scope": "col", "class": _kind(c)}, c.name) for c in table.columns]
    body = [
        element("tr", {"class": "marked" if i in table.marked else None}, *_cells(table, row, best, largest, i in table.marked))
        for i, row in enumerate(rows)
    ]
    foot = [
        element("tr", None, *_cells(table, row, [None] * len(row), [0.0] * len(row) if table.summed else largest, False))
        for row in table.foot
    ]
    name = f"{slug}-caption"
    grid = element(
        "table",
        {"class": "grid", "id": slug},
        element("caption", {"id": name}, element("span", None, table.caption)),
        element("thead", None, element("tr", None, *head)),
        element("tbody", None, *body),
        element("tfoot", None, *foot) if foot else None,
    )
    note = f"{table.note} " + (f"▸ {table.mark}. " if table.marked and table.mark else "")
    if len(table.rows) > len(rows):
        note += f"{len(rows):,} of {len(table.rows):,} rows are shown. "
    if len(table.rows) > limits.csv_rows:
        note += f"The CSV has {limits.csv_rows:,} of them. "
    foot_line = element("p", {"class": "note"}, note, _download(table, slug, limits))
    scroll = element("div", {"class": "scroll", "role": "region", "aria-labelledby": name, "tabindex": 0}, grid)
    if table.folded:
        return element("details", {"class": "table"}, element("summary", None, table.caption), scroll, foot_line)
    return element("div", {"class": "table"}, scroll, foot_line)


def as_csv(table: Table, most: int | None = None) -> str:
    """The rows, then the foot's, with all digits (RFC 4180); a quote stands before text that a spreadsheet would run."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([_harmless(column.name) for column in table.columns])
    for row in (*table.rows[:most], *table.foot):
        writer.writerow([_harmless(cell) if isinstance(cell, str) else raw(cell) for cell in row])
    return buffer.getvalue()


def slug_of(caption: str, number: int) -> str:
    """A name for files and ids, of letters, digits and dashes."""
    words = re.sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")
    return f"table-{number}-{words[:40].strip('-')}".rstrip("-")


def _download(table: Table, slug: str, limits: Limits) -> Markup:
    content = as_csv(table, limits.csv_rows).encode("utf-8", "replace")
    link = f"data:text/csv;charset=utf-8;base64,{b64encode(content).decode()}"
    return element(
        "a", {"href": link, "download": f"{slug}.csv", "class": "csv", "aria-label": f"CSV of: {table.caption}"}, "CSV"
    )


def _cells(
    table: Table, row: Sequence[Cell], best: Sequence[float | None], largest: Sequence[float], marked: bool
) -> list[Markup]:
    found = []
    for i, (column, cell) in enumerate(zip(table.columns, row, strict=True)):
        said = text(cell, column.form)
        said = said if len(said) <= _LONGEST_CELL else said[: _LONGEST_CELL - 1] + "…"
        number = isinstance(cell, int | float)
        content: list[str | None] = [element("strong", None, said) if number and cell == best[i] else said]
        if column.bar and number and math.isfinite(cell) and largest[i] > 0:  # type: ignore[arg-type]
            share = min(max(cell / largest[i], 0.0), 1.0)  # type: ignore[operator]
            bar = element("rect", {"width": f"{100 * share:.1f}%", "height": "100%"})
            content.append(element("svg", {"class": "bar", "aria-hidden": "true"}, bar))
        if i == 0 and marked:
            content.insert(0, element("span", {"class": "mark", "title": table.mark}, "▸ "))
        kind = _kind(column) + (" short" if len(said) <= _SHORT else "")
        attributes = {"class": kind, "data-value": raw(cell) if number else None}
        first = {"scope": "row"} if i == 0 else {}
        found.append(element("th" if i == 0 else "td", {**attributes, **first}, *content))
    return found


def _kind(column: Column) -> str:
    return "text" if column.form == "text" else "number"


def _largest(column: Column, values: Sequence[Cell]) -> float:
    return max((v for v in values if isinstance(v, int | float) and math.isfinite(v)), default=0.0) if column.bar else 0.0


def _best(column: Column, values: Sequence[Cell]) -> float | None:
    there = [v for v in values if isinstance(v, int | float) and math.isfinite(v)]
    if column.best is None or len(set(there)) < 2:
        return None
    return max(there) if column.best == "high" else min(there)


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
