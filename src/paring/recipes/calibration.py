"""Rows to search on (calibration), to select on (validation) and to report on (test): read alike, and never the same ones.

They are read as ``paring tune`` reads its data. Rows are known by a hash of their content: of a text without case and white
space, of an image its file's bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from paring.recipes.data import Rows, load_rows
from paring.recipes.holdout import hold_out
from paring.recipes.settings import TuneSettings

_SHOWN = 3


@dataclass(frozen=True)
class Files:
    """Where rows lie, each a file, an image folder or a saved dataset of one split.

    Attributes:
        held_out: share of the calibration rows to select on where ``validation`` is None, in (0, 1); 0: none.
    """

    calibration: str
    validation: str | None = None
    test: str | None = None
    held_out: float = 0.0


@dataclass(frozen=True)
class Splits:
    """The rows of ``Files``, and sentences for the user."""

    calibration: Rows
    validation: Rows | None
    test: Rows | None
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of the calibration rows and their labels: 32 hexadecimal digits."""
        labels = self.calibration.labels or [""] * len(self.calibration)
        whole = blake2b(digest_size=16)
        for key, label in zip(self.calibration.keys, labels, strict=True):
            whole.update(key + blake2b(label.encode(), digest_size=16).digest())
        return whole.hexdigest()


def load_splits(files: Files, settings: TuneSettings, labels: Sequence[str], seed: int) -> Splits:
    """Reads and checks all rows.

    Args:
        settings: the task and its columns.
        labels: names of the model's outputs; empty: the task has no labels.
        seed: of what is held out.

    Raises:
        FileNotFoundError, ImportError, ValueError: a file cannot be read, is empty or lacks a column; a label is none of the
            model's; a row stands in two files. The message names the option and the rows.
    """
    notes: list[str] = []
    given = {"--calibration": files.calibration, "--validation": files.validation, "--test": files.test}
    rows = {option: read_split(option, path, settings, labels, notes) for option, path in given.items() if path is not None}
    options = list(rows)
    for i, one in enumerate(options):
        for other in options[i + 1 :]:
            refuse_shared(one, rows[one], other, rows[other])
    calibration, validation = rows["--calibration"], rows.get("--validation")
    if validation is None and files.held_out:
        try:
            stay, held = hold_out(calibration.keys, calibration.labels or [""] * len(calibration), files.held_out, seed)
        except ValueError:
            raise ValueError(
                f"--calibration: {files.calibration} has {len(calibration)} row(s), too few to select on some and search on "
                "the others; give more, or --validation FILE"
            ) from None
        notes.append(
            f"no --validation: {len(held)} of {len(calibration)} calibration rows are held out to select on (seed {seed})"
        )
        calibration, validation = calibration.select(stay), calibration.select(held)
    return Splits(calibration, validation, rows.get("--test"), tuple(notes))


def numbered(rows: Rows | None, labels: Sequence[str]) -> Any:
    """The rows as a dataset with a column ``label`` of positions in ``labels``; without labels, the inputs alone."""
    if rows is None or not labels:
        return None if rows is None else rows.inputs
    position = _positions(labels)
    return rows.inputs.add_column("label", [position[label] for label in rows.labels])


def read_split(option: str, path: str, settings: TuneSettings, labels: Sequence[str], notes: list[str]) -> Rows:
    """The rows of one file, as ``load_splits``; what there is to say goes to ``notes``. An error begins with ``option``."""
    try:
        rows, more = load_rows(path, settings.task, text_column=settings.text_column, label_column=settings.label_column)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{option}: {str(error).removeprefix('data: ')}") from None
    notes += more
    if labels:
        known = _positions(labels)
        unknown = [row for row, label in enumerate(rows.labels) if label not in known]
        if unknown:
            first = unknown[0]
            raise ValueError(
                f"{option}: {rows.place(first)}: the model knows no label {rows.labels[first]!r} ({len(unknown)} such row(s)); "
                f"expected among {', '.join(map(repr, labels[:6]))}{' ...' if len(labels) > 6 else ''}; "
                "--label-column names another column"
            )
    return rows


def _positions(labels: Sequence[str]) -> dict[str, int]:
    """Outputs by label; of a head without names ("LABEL_0") also by number."""
    found = {name: i for i, name in enumerate(labels)}
    if all(name == f"LABEL_{i}" for i, name in enumerate(labels)):
        found |= {str(i): i for i in range(len(labels))}
    return found


def refuse_shared(one: str, rows: Rows, other: str, others: Rows) -> None:
    """That no row stands in both.

    Raises:
        ValueError: one does; names the options ``one`` and ``other``, and the rows.
    """
    first = {key: row for row, key in reversed(list(enumerate(rows.keys)))}
    shared = [(first[key], row) for row, key in enumerate(others.keys) if key in first]
    if shared:
        listed = "; ".join(f"{rows.place(a)} is {others.place(b)}" for a, b in shared[:_SHOWN])
        raise ValueError(
            f"{one} and {other} share {len(shared)} row(s): {listed}{'; ...' if len(shared) > _SHOWN else ''}; expected none: "
            "a score on rows that were searched or selected on is flattered. Remove them from one of the two"
        )
