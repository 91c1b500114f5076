"""What ``paring tune`` learns from: splits of texts or images with labels, read from what lies on disk, checked and cut.

sources, readers (what is there) -> columns (which column, are all rows sound) -> holdout (a validation split). Nothing is
downloaded, cached or written.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from paring.recipes.columns import find, find_image, in_order, label_texts, texts
from paring.recipes.holdout import hold_out, num_shared, text_key
from paring.recipes.readers import NEEDED_FOR, Table
from paring.recipes.settings import TASKS, Task
from paring.recipes.sources import read
from paring.tasks.extras import require


@dataclass(frozen=True)
class Data:
    """Splits to train, select and report on.

    Attributes:
        train, validation, test: ``datasets.Dataset``; test may be None. Columns: ``text`` (str) or ``image`` (a PIL image),
            and, but for causal-lm, ``label``, a position in ``labels``.
        labels: names; as the data counts its classes, else numbers by size, else alphabetical. Empty for causal-lm.
        notes: sentences for the user.
        num_chosen_and_reported: test rows that stand in validation too.
    """

    train: Any
    validation: Any
    test: Any
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    num_chosen_and_reported: int = 0


@dataclass(frozen=True)
class Rows:
    """One split.

    Attributes:
        inputs: a dataset of one column.
        keys: of the inputs; equal for identical ones.
        labels: their names; empty: there are none.
        place: row number from 0 -> where it stands, for a reader.
    """

    inputs: Any
    keys: Sequence[bytes]
    labels: Sequence[str]
    place: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, rows: list[int]) -> "Rows":
        labels = [self.labels[row] for row in rows] if self.labels else []
        return Rows(self.inputs.select(rows), [self.keys[row] for row in rows], labels, lambda row: self.place(rows[row]))

    def numbered(self, names: Sequence[str]) -> Any:
        number = {name: i for i, name in enumerate(names)}
        return self.inputs.add_column("label", [number[label] for label in self.labels]) if names else self.inputs


def load_examples(
    path: str | Path,
    task: Task,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    validation: float = 0.1,
    seed: int = 0,
) -> Data:
    """Reads a data set.

    Args:
        path: a CSV, TSV, JSON Lines or Parquet file; a folder of them, named train, validation (valid, val, dev, eval) and
            test; a folder with a folder of images for every class, or that under train, validation and test; or a dataset
            as ``save_to_disk`` writes it.
        task: what it is for.
        text_column, label_column: None: of the usual names, text and label first.
        validation: share of the train rows held out where there is no validation split, in (0, 1).
        seed: of what is held out.

    Raises:
        FileNotFoundError: there is no such path. ImportError: the package ``datasets`` is missing.
        ValueError: it cannot be read, a column is missing, a split is empty, a row is not sound, or a split has labels that
            the train split lacks; the message says where and what to do.
    """
    if not 0 < validation < 1:
        raise ValueError(f"validation is {validation}; expected a share of the rows, more than 0 and less than 1")
    _check(task, text_column, label_column)
    path = Path(path).expanduser()
    tables, notes = read(path)
    splits: dict[str, Rows] = {}
    for split, table in tables.items():
        where = f"the {split} split of {path}" if len(tables) > 1 else str(path)
        splits[split] = _rows(table, task, text_column, label_column, where, notes)
    known = _label_names(tables["train"], label_column, splits) if task != "causal-lm" else ()
    if "validation" not in splits:
        train = splits["train"]
        stay, held = hold_out(train.keys, train.labels or [""] * len(train.keys), validation, seed)
        splits |= {"train": train.select(stay), "validation": train.select(held)}
        notes.append(f"no validation split: {len(held)} of {len(train.keys)} train rows held out (seed {seed})")
    chosen_and_reported = 0
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if other in splits and (shared := num_shared(splits[one].keys, splits[other].keys)):
            chosen_and_reported = shared if one == "validation" else 0
            total = len(splits[other].keys)
            notes.append(f"{shared} of {total} {other} rows stand in {one} too: the {other} score is flattered")
    done = {split: rows.numbered(known) for split, rows in splits.items()}
    return Data(done["train"], done["validation"], done.get("test"), known, tuple(notes), chosen_and_reported)


def load_rows(
    path: str | Path, task: Task, *, text_column: str | None = None, label_column: str | None = None
) -> tuple[Rows, list[str]]:
    """The rows of a file, an image folder or a saved dataset that holds one split, and sentences for the user.

    Raises:
        FileNotFoundError, ImportError, ValueError: as ``load_examples``; or there are several splits.
    """
    _check(task, text_column, label_column)
    path = Path(path).expanduser()
    tables, notes = read(path)
    if len(tables) > 1:
        raise ValueError(f"data: {path} holds several splits ({', '.join(tables)}); expected one: name its file or folder")
    return _rows(tables["train"], task, text_column, label_column, str(path), notes), notes


def _check(task: Task, text_column: str | None, label_column: str | None) -> None:
    if task not in TASKS:
        raise ValueError(f"task is {task!r}; expected one of {', '.join(TASKS)}")
    if task == "image-classification" and text_column is not None:
        raise ValueError(f"text_column is {text_column!r}; image-classification reads no text: leave --text-column out")
    if task == "causal-lm" and label_column is not None:
        raise ValueError(f"label_column is {label_column!r}; causal-lm has no labels: leave --label-column out")


def _rows(table: Table, task: Task, text_column: str | None, label_column: str | None, where: str, notes: list[str]) -> Rows:
    if not table.num_rows:
        raise ValueError(f"data: {where} has no rows; expected at least one")
    if task == "image-classification":
        return _image_rows(table, label_column, where)
    return _text_rows(table, task, text_column, label_column, where, notes)


def _text_rows(
    table: Table, task: Task, text_column: str | None, label_column: str | None, where: str, notes: list[str]
) -> Rows:
    values = texts(table, find(table, "text", text_column, where))
    labels = label_texts(table, find(table, "label", label_column, where)) if task == "text-classification" else []
    empty = [row for row, text in enumerate(values) if not text.strip()]
    there = [row for row, text in enumerate(values) if text.strip()]
    if empty and task == "text-classification":
        raise ValueError(f"data: {table.place(empty[0])}: the text is empty; fill it in or remove the row")
    if empty:  # paragraphs are often parted by empty rows; there is no token in them to learn
        if len(empty) == len(values):
            raise ValueError(f"data: {where} has only empty texts; expected at least one with words")
        notes.append(f"{len(empty)} of {len(values)} texts of {where} are empty and were left out")
        values = [values[row] for row in there]
    dataset = require("datasets", NEEDED_FOR).Dataset.from_dict({"text": values})
    return Rows(dataset, [text_key(text) for text in values], labels, lambda row: table.place(there[row]))


def _image_rows(table: Table, label_column: str | None, where: str) -> Rows:
    column = find_image(table, where)
    labels = label_texts(table, find(table, "label", label_column, where))
    inputs = table.dataset.select_columns([column])
    raw = inputs.cast_column(column, require("datasets", NEEDED_FOR).Image(decode=False))
    keys = [_image_key(row[column], table.place(number)) for number, row in enumerate(raw)]
    return Rows(inputs if column == "image" else inputs.rename_column(column, "image"), keys, labels, table.place)


def _image_key(image: dict[str, Any] | None, place: str) -> bytes:
    """A hash of the file's bytes, after a look whether it is an image.

    Raises:
        ValueError: it is missing or damaged.
    """
    pillow = require("PIL.Image", "reading images")
    if image is None:
        raise ValueError(f"data: {place}: the image is missing; add it or remove the row")
    try:
        content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        with pillow.open(io.BytesIO(content)) as opened:
            opened.load()
    except Exception as error:  # decoders fail in many ways; SyntaxError is one of them
        raise ValueError(f"data: {place} could not be read as an image ({error}); replace or remove it") from None
    return blake2b(content, digest_size=16).digest()


def _label_names(train: Table, label_column: str | None, splits: dict[str, Rows]) -> tuple[str, ...]:
    """All labels, in their order.

    Raises:
        ValueError: the train split has one label only; or another split has labels that it lacks.
    """
    known = set(splits["train"].labels)
    for split, rows in splits.items():
        lacking = in_order(set(rows.labels) - known)
        if lacking:
            raise ValueError(
                f"data: the {split} split has {len(lacking)} label(s) that the train split lacks: "
                f"{', '.join(map(repr, lacking[:5]))}{' ...' if len(lacking) > 5 else ''}; expected among "
                f"{', '.join(map(repr, in_order(known)[:5]))}{' ...' if len(known) > 5 else ''}"
            )
    if len(known) < 2:
        raise ValueError(f"data: all train rows have the label {next(iter(known))!r}; expected at least two labels")
    return train.class_names.get(find(train, "label", label_column, "train")) or in_order(known)
