"""Which column holds what, and whether every row of it can be used. An error says where the first bad row stands."""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from paring.recipes.readers import Table

USUAL = {"text": ("text", "sentence", "content"), "label": ("label", "labels", "class", "category")}


def find(table: Table, what: str, wanted: str | None, where: str) -> str:
    """The column for ``what``, "text" or "label": the one wanted, else the one of a usual name.

    Raises:
        ValueError: it is not there, or several have usual names; lists the columns, names the nearest and the flag.
    """
    flag = f"--{what}-column"
    listed = ", ".join(table.columns)
    if wanted is not None:
        if wanted not in table.columns:
            raise ValueError(f"data: {where} has no column {wanted!r}; it has {listed}{_nearest(wanted, table)} ({flag})")
        return wanted
    usual = [name for name in USUAL[what] if name in table.columns]
    if what in usual or len(usual) == 1:
        return usual[0]
    if usual:
        raise ValueError(f"data: {where} has several columns for the {what}: {', '.join(usual)}; choose with {flag}")
    raise ValueError(f"data: {where} has no column {what!r}; it has {listed}{_nearest(what, table)}; name it with {flag}")


def find_image(table: Table, where: str) -> str:
    """The one column of images.

    Raises:
        ValueError: there is none, or more than one.
    """
    features = {} if table.dataset is None else table.dataset.features
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if len(images) != 1:
        raise ValueError(
            f"data: {where} has {len(images)} columns of images among {', '.join(table.columns)}; expected one: "
            "an image folder, or a dataset saved with a feature of type datasets.Image"
        )
    return images[0]


def texts(table: Table, column: str) -> list[str]:
    """The texts of all rows.

    Raises:
        ValueError: one is missing, or no text.
    """
    values = table.column(column)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            got = "missing" if value is None else f"{value!r} ({type(value).__name__})"
            raise ValueError(f"data: {table.place(row)}: {column!r} is {got}; expected a text: fill it in or remove the row")
    return values


def label_texts(table: Table, column: str) -> list[str]:
    """The labels of all rows, by name: text as it is, whole numbers without a fraction, numbers of classes by their names.

    Raises:
        ValueError: one is missing, or neither text nor whole number, or the number of no class.
    """
    values = table.column(column)
    names = table.class_names.get(column)
    return [_label(value, names, table, column, row) for row, value in enumerate(values)]


def _label(value: Any, names: Sequence[str] | None, table: Table, column: str, row: int) -> str:
    if isinstance(value, str) and value.strip():
        return value
    missing = value is None or value == "" or isinstance(value, str) or (isinstance(value, float) and math.isnan(value))
    if missing or (names is not None and value == -1):  # -1 stands for a missing class in saved datasets
        raise ValueError(f"data: {table.place(row)}: {column!r} is missing; fill it in, or remove the row or its split")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int):
        raise ValueError(f"data: {table.place(row)}: {column!r} is {value!r}; expected the name or the whole number of a class")
    if names is None:
        return str(value)
    if not 0 <= value < len(names):
        raise ValueError(f"data: {table.place(row)}: {column!r} is {value}; expected 0 to {len(names) - 1}, a class's number")
    return names[value]


def in_order(labels: set[str]) -> tuple[str, ...]:
    """Numbers by size when all are numbers, else alphabetically."""
    try:
        return tuple(sorted(labels, key=lambda label: (float(label), label)))
    except ValueError:
        return tuple(sorted(labels))


def _nearest(name: str, table: Table) -> str:
    near = get_close_matches(name, table.columns, n=1, cutoff=0.4)
    return f"; nearest: {near[0]!r}" if near else ""
