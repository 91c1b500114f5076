"""A probe's folder: what was asked, the cells that are finished, and what came of them.

    probe.json    kind, claim, model, settings, versions; columns and tables in words; in the end the verdict and its numbers
    cells.jsonl   one JSON object a line, in the order in which cells finished:
                  {"key": "…", "cell": {"layer": …}, "seconds": 1.2, "tables": {"groups": [{…}, …]}}
    NAME.csv      a table: the rows of all cells, each beginning with the cell's own columns
    verdict.txt   the verdict, one sentence a line
    figure.svg, figure.png

A cell is written when it is finished, so a killed probe goes on with the others; a last line that was cut off is dropped.
"""

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from paring.files import replacing, write_bytes
from paring.probe.kind import Cell, Row, Tables
from paring.resumed import differences, lock, whole_lines

RECORD, CELLS, VERDICT, FIGURE = "probe.json", "cells.jsonl", "verdict.txt", "figure"
FORMAT = "paring probe 1"
SAME = ("kind", "revision", "settings", "subject", "model", "config", "data")  # of a probe and what goes on with it
Record = dict[str, Any]


@dataclass(frozen=True)
class Finished:
    """A cell's numbers."""

    key: str
    cell: Mapping[str, Any]
    seconds: float
    tables: Tables


class Folder:
    """A new or an earlier folder of the same probe; a context manager.

    Args:
        path: the folder; made when missing.
        head: the record as it is when a probe begins; ``SAME`` of it must be those of the folder.

    Attributes:
        record: the head, of an earlier folder what it says.
        cells: finished ones, by key.

    Raises:
        ValueError: the folder holds another probe (names what differs), something that is none, or a damaged one; nothing is
            changed then. Or another process works there.
    """

    def __init__(self, path: Path, head: Record) -> None:
        self.path = path
        self.cells: dict[str, Finished] = {}
        self.record = _begun(path, head)
        self._file: BinaryIO = (path / CELLS).open("a+b")
        try:
            if not lock(self._file):
                raise ValueError(f"--out: another process is probing in {path}; wait for it, or take another folder")
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def add(self, key: str, cell: Cell, seconds: float, tables: Tables) -> Finished:
        """Appends a finished cell, whole and on disk; what is no finite number becomes None."""
        plain = {name: [_plain(row) for row in rows] for name, rows in tables.items()}
        found = Finished(key, _plain(cell.what), round(seconds, 4), plain)
        line = json.dumps(vars(found), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.cells[key] = found
        return found

    def save(self, record: Record, more: Mapping[str, bytes]) -> None:
        """What came of the cells: files by name, and last the record that speaks of them."""
        for name, content in more.items():
            write_bytes(self.path / name, content)
        self.record = record
        write_bytes(self.path / RECORD, _document(record))

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        length = 0
        for number, line in enumerate(whole_lines(content), start=1):
            self._take(line, number)
            length += len(line)
        if length < len(content):  # a line half written when its process was killed
            self._file.truncate(length)

    def _take(self, line: bytes, number: int) -> None:
        try:
            entry = json.loads(line)
            if set(entry) != {"key", "cell", "seconds", "tables"} or not isinstance(entry["tables"], dict):
                raise KeyError
            self.cells[entry["key"]] = Finished(**entry)
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{self.path / CELLS}, line {number}, is not what a probe writes; take another folder, or remove that line: "
                "its cell is then measured again"
            ) from None


def gathered(cells: list[Finished]) -> Tables:
    """All tables, their rows in the order of the cells, each beginning with its cell's columns."""
    found: Tables = {}
    for one in cells:
        for name, rows in one.tables.items():
            found.setdefault(name, []).extend({**one.cell, **row} for row in rows)
    return found


def as_csv(rows: list[Row]) -> bytes:
    """A table with a header; None is an empty value. Columns are in the order in which they first appear."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if row.get(name) is None else row[name] for name in columns] for row in rows])
    return text.getvalue().encode()


def _begun(path: Path, head: Record) -> Record:
    """The record of an earlier probe like this one; of a new folder the head, written there."""
    record = path / RECORD
    if not record.exists():
        there = [p.name for p in path.iterdir() if not p.name.startswith(f".{RECORD}.tmp-")] if path.is_dir() else []
        if path.exists() and (there or not path.is_dir()):
            what = f"holds {', '.join(sorted(there)[:3])} and no {RECORD}" if there else "is a file"
            raise ValueError(f"--out: {path} {what}; expected a new or empty folder, or that of the same probe")
        path.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another process was quicker; what it wrote is read below
            with replacing(record, overwrite=False) as temporary:
                temporary.write_bytes(_document(head))
    try:
        there = json.loads(record.read_bytes())
        if there["format"] != FORMAT:
            raise KeyError
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"--out: {record} is no record of this version ({FORMAT!r}); take another folder") from None
    asked = json.loads(json.dumps(head))
    differing = [d for part in SAME for d in differences(there.get(part), asked[part], part)]
    if differing:
        raise ValueError(
            f"--out: {path} holds another probe; take another folder, or probe as there. What differs: "
            + "; ".join(differing[:5])
        )
    return dict(there)


def _plain(row: Mapping[str, Any]) -> Row:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _document(record: Record) -> bytes:
    return (json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
