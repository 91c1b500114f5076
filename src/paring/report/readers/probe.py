"""The folder of ``paring probe``, of any kind: claim, verdict and its numbers, figure, tables. See docs/probe.md."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paring.report.document import Block, Cell, Column, Document, Facts, Form, Picture, Section, Table
from paring.report.numbers import duration, text
from paring.report.readers.parts import counted, name_of, settings, unreadable
from paring.report.readers.probe_figures import probe_figure
from paring.report.record import Record, ReportError, read_record

RECORD, CELLS, FIGURE = "probe.json", "cells.jsonl", "figure.svg"
_LONG = 40  # a table of more rows is folded
_MOST_TABLE, _MOST_FIGURE = 64 << 20, 2 << 20  # bytes; the page has 5 MB
_MORE = "\0more"  # no column's name: values beyond the last column
_ANSWER = {True: "holds", False: "does not hold", None: "undecided"}


def marks(folder: Path) -> bool:
    return (folder / RECORD).is_file()


def read(folder: Path) -> Document:
    """Also of a probe that was stopped: then the cells that are finished."""
    gaps: list[str] = []
    record = read_record(folder / RECORD)
    finished = record.text("state") == "finished"
    cells = _cells(folder, gaps)
    tables = _written(folder, record.record("tables"), gaps) if finished else _of_cells(cells)
    planned = f" of {text(record.number('num_planned'), 'count')}" if "num_planned" in record else ""
    stats = [(f"{text(len(cells), 'count')}{planned}", "finished cells")]
    sections = []
    if finished:
        verdict = record.record("verdict")
        answer = _ANSWER[verdict.truth("holds") if "holds" in verdict else None]
        stats = [
            (answer, "the verdict"),
            (text(record.number("num_cells"), "count"), "cells measured"),
            (duration(record.number("seconds")), "for all of them"),
        ]
        numbers = [(key.replace("_", " "), _number(value)) for key, value in verdict.record("numbers").plain()]
        sections.append(Section("Verdict", [f"{_capital(verdict.text('sentence'))}."]))
        drawn = probe_figure(record.text("kind"), record.text("title"), tables)
        sections.append(Section("Figure", [drawn] if drawn else _picture(folder, record, gaps)))
        sections.append(Section("Numbers of the verdict", [Facts(numbers)]))
    else:
        gaps.append(
            "The probe was stopped, or goes on still: no verdict yet. The same command goes on. Finished cells are shown."
        )
    names = dict(record.record("columns").plain()) if "columns" in record else {}
    # Of a finished probe the figure is there; else something to look at is.
    shown: list[Block] = [
        _table(name, rows, names, folded=len(rows) > _LONG and (finished or i > 0))
        for i, (name, rows) in enumerate(tables.items())
    ]
    sections.append(Section("Tables", shown or ["There is none."]))
    sections.append(Section("Configuration", _configuration(record)))
    sections.append(Section("Made with", [Facts(list(record.record("versions").plain()))]))
    lead = f"{record.text('claim')} ({record.text('source')}). Measured on {_subject(folder, record)}."
    kind = f"paring probe {record.text('kind')} · {folder.resolve().name}"
    return Document(kind, record.text("title"), lead, sections, stats, gaps)


def _subject(folder: Path, record: Record) -> str:
    """Model, data and when."""
    places = dict(record.record("places").plain())
    found = f"the model {name_of(places['model'])}" if "model" in places else "a model"
    found += f" and the data {name_of(places['data'])}" if "data" in places else ""
    return found + (f", {record.text('begun')[:10]}" if "begun" in record else "")


def _configuration(record: Record) -> list[Block]:
    places = [(key, name_of(value)) for key, value in record.record("places").plain()]
    facts = [(key.replace("_", " "), value) for key, value in record.record("facts").plain()] if "facts" in record else []
    known = [(f"{key} known by", record.text(key)) for key in ("model", "data") if key in record]
    found: list[Block] = [Facts([*places, *known, *facts]), *settings(record.record("settings"))]
    if any(True for _ in record.record("subject").plain()):
        found += settings(record.record("subject"))
    return [*found, *(record.texts("notes") if "notes" in record else [])]


def _picture(folder: Path, record: Record, gaps: list[str]) -> list[Block]:
    path = folder / FIGURE
    try:
        if path.stat().st_size > _MOST_FIGURE:
            gaps.append(f"{FIGURE} has {path.stat().st_size:,} bytes, more than the {_MOST_FIGURE:,} of a figure on this page.")
            return ["It is too large to be shown here."]
        return [Picture(record.text("title"), path.read_bytes())]
    except OSError:
        gaps.append(f"There is no {FIGURE}: it was removed, or the probe was asked for none.")
        return ["It is missing."]


def _written(folder: Path, named: Record, gaps: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The tables that the record names, from their CSV files."""
    found = {}
    for name, file in named.plain():
        path = folder / file
        if Path(file).name != file:
            raise ReportError(f"{named.where}: {name!r} is {file!r}; expected the name of a file in the folder")
        try:
            if path.stat().st_size > _MOST_TABLE:
                raise ValueError(f"it has {path.stat().st_size:,} bytes, more than {_MOST_TABLE:,}")
            rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8"), newline=""), restval="", restkey=_MORE))
            if any(_MORE in row for row in rows):
                raise ValueError("a row has more values than there are columns")
            found[name] = [{k: _value(v) for k, v in row.items()} for row in rows]
        except (OSError, ValueError, csv.Error) as error:
            gaps.append(unreadable(path, error))
    return found


def _cells(folder: Path, gaps: list[str]) -> list[Record]:
    found = []
    try:
        with (folder / CELLS).open("rb") as file:
            lines = file.read(_MOST_TABLE).splitlines()
    except OSError as error:
        gaps.append(unreadable(folder / CELLS, error))
        return []
    for number, line in enumerate(lines, 1):
        try:
            found.append(Record(json.loads(line), f"{folder / CELLS}, line {number}"))
        except (ValueError, RecursionError):
            gaps.append(f"{CELLS}, line {number}, is cut off or damaged; the lines after it are not shown.")
            break
    return found


def _of_cells(cells: Sequence[Record]) -> dict[str, list[dict[str, Any]]]:
    """Rows of finished cells, each beginning with its cell's columns."""
    found: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        what = {key: _value(value) for key, value in cell.record("cell").plain()}
        tables = cell.record("tables")
        for name in tables.names:
            found.setdefault(name, []).extend(
                {**what, **{k: _value(v) for k, v in row.plain()}} for row in tables.records(name)
            )
    return found


def _table(name: str, rows: Sequence[Mapping[str, Any]], words: Mapping[str, str], folded: bool) -> Table:
    names = list(dict.fromkeys(key for row in rows for key in row))
    columns = [Column(key.replace("_", " "), _form([row.get(key) for row in rows])) for key in names]
    body: list[list[Cell]] = [
        [_cell(row.get(key), column.form) for key, column in zip(names, columns, strict=True)] for row in rows
    ]
    note = "; ".join(f"{key.replace('_', ' ')}: {words[key]}" for key in names if key in words)
    caption = f"{_capital(name)}, {counted(len(rows), 'row')}"
    return Table(caption, columns, body, note=f"{_capital(note)}." if note else "", folded=folded)


def _form(values: Sequence[Any]) -> Form:
    """A column is of numbers when all of its values are."""
    there = [v for v in values if v is not None]
    if not there or not all(isinstance(v, float) for v in there):
        return "text"
    return "count" if all(math.isfinite(v) and v == int(v) for v in there) else "general"


def _cell(value: Any, form: Form) -> Cell:
    return value if value is None or form != "text" else text(value) if isinstance(value, float) else value


def _value(said: str | None) -> str | float | None:
    """What stands in a CSV file or a record: nothing, a number, or text."""
    if not said:
        return None
    try:
        return float(said)
    except ValueError:
        return said


def _number(said: str) -> str:
    value = _value(said)
    return (
        text(value)
        if isinstance(value, float) and not (math.isfinite(value) and value == int(value))
        else said
        if isinstance(value, str)
        else text(value, "count")
    )


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
