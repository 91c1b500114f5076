"""One file of rows, or one saved dataset, as columns. Which of them holds which split is ``sources.py``'s matter.

CSV and JSON Lines are read whole, by the standard library: every value of a CSV file is the text that stands there
("NA", "01" and "1.0" included), and an error names the line. Nothing is cached and nothing written.
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paring.tasks.extras import require

NEEDED_FOR = "reading a data set"


@dataclass(frozen=True)
class Table:
    """Rows of one split.

    Attributes:
        columns: their names.
        column: name -> the values, one a row; None where one is missing.
        place: row number from 0 -> where it stands, for a reader.
        num_rows: at least 0.
        class_names: of columns that hold numbers of classes whose names the file knows.
        dataset: a ``datasets.Dataset`` of the same rows, where there may be images.
    """

    columns: tuple[str, ...]
    column: Callable[[str], list[Any]]
    place: Callable[[int], str]
    num_rows: int
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dataset: Any = None


def read_csv(path: Path) -> Table:
    """A file with a header; a comma between values, a tab in ``.tsv``.

    Raises:
        ValueError: it is not UTF-8, has no header or a name in it twice, or a row of more or fewer values; names the line.
    """
    limit = csv.field_size_limit(sys.maxsize)  # a text may well have more than 131,072 letters
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    rows, lines = [], []
    try:
        for row in reader:
            if row:  # an empty line is none
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; expected a quoted text to end with its quote") from None
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise ValueError(f"{path} is empty; expected a first line that names the columns")
    header, rows, lines = rows[0], rows[1:], lines[1:]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"{path}, line 1: the column {twice[0]!r} is there twice; expected every name once")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {line}: {len(row)} value(s); expected {len(header)} ({', '.join(header)}); "
                "a text with commas or line breaks must stand in double quotes"
            )
    return _of_lists(path, {name: [row[i] for row in rows] for i, name in enumerate(header)}, lines)


def read_json(path: Path) -> Table:
    """JSON Lines: an object a line; or one list of objects, in a file that begins with ``[``. What a row lacks is missing.

    Raises:
        ValueError: a line is no JSON or no object; names the line.
    """
    text = _text(path)
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: no JSON: {error.msg}") from None
        return _of_objects(path, rows, None)
    rows, lines = [], []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may stand in a text
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: no JSON: {error.msg}; expected an object a line") from None
            lines.append(number)
    return _of_objects(path, rows, lines)


def read_parquet(path: Path) -> Table:
    """A Parquet file; names of classes and images are known where ``datasets`` wrote it.

    Raises:
        ValueError: it is no Parquet.
    """
    parquet, pyarrow = require("pyarrow.parquet", NEEDED_FOR), require("pyarrow", NEEDED_FOR)
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} could not be read as Parquet: {str(error).splitlines()[0]}") from None
    known = b"huggingface" in (table.schema.metadata or {})
    dataset = require("datasets", NEEDED_FOR).Dataset(table) if known else None
    return Table(
        columns=tuple(table.column_names),
        column=lambda name: table.column(name).to_pylist(),
        place=lambda row: f"{path}, row {row + 1}",
        num_rows=table.num_rows,
        class_names={} if dataset is None else class_names(dataset),
        dataset=dataset,
    )


def of_dataset(dataset: Any, name: str) -> Table:
    """A ``datasets.Dataset``."""
    dataset = dataset.with_format(None)
    return Table(
        columns=tuple(dataset.column_names),
        column=lambda column: list(dataset[column]),
        place=lambda row: f"{name}, row {row + 1}",
        num_rows=len(dataset),
        class_names=class_names(dataset),
        dataset=dataset,
    )


def joined(tables: Sequence[Table]) -> Table:
    """The rows of several files, one after the other; of the columns that all have. One table stays as it is."""
    first = tables[0]
    if len(tables) == 1:
        return first

    def place(row: int) -> str:
        for table in tables:
            if row < table.num_rows:
                break
            row -= table.num_rows
        return table.place(row)

    together = all(table.dataset is not None for table in tables)
    return Table(
        columns=tuple(c for c in first.columns if all(c in table.columns for table in tables)),
        column=lambda name: [value for table in tables for value in table.column(name)],
        place=place,
        num_rows=sum(table.num_rows for table in tables),
        class_names=first.class_names,
        dataset=require("datasets", NEEDED_FOR).concatenate_datasets([t.dataset for t in tables]) if together else None,
    )


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".parquet": read_parquet,
}


def class_names(dataset: Any) -> dict[str, tuple[str, ...]]:
    """The names of the classes, by column, in the order of their numbers."""
    label_type = require("datasets", NEEDED_FOR).ClassLabel
    return {name: tuple(f.names) for name, f in dataset.features.items() if isinstance(f, label_type) and f.names}


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 ({error.reason}); expected a file saved as UTF-8") from None


def _of_objects(path: Path, rows: list[Any], lines: list[int] | None) -> Table:
    """Rows without line numbers are counted."""
    word, numbers = ("row", list(range(1, len(rows) + 1))) if lines is None else ("line", lines)
    for row, number in zip(rows, numbers, strict=True):
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, {word} {number}: got {type(row).__name__}; expected an object with a value for every column"
            )
    names = dict.fromkeys(name for row in rows for name in row)
    return _of_lists(path, {name: [row.get(name) for row in rows] for name in names}, numbers, word)


def _of_lists(path: Path, values: dict[str, list[Any]], numbers: list[int], word: str = "line") -> Table:
    return Table(tuple(values), values.__getitem__, lambda row: f"{path}, {word} {numbers[row]}", len(numbers))
