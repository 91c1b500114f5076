"""The originals of what a run touches, on disk, each entry once.

A moving slice visits ever more of a matrix. Its originals, needed for an exact way back and for the delta, would
in the end be a second copy of the weights in memory; so they go to a temporary file without a name, which the
operating system removes with the process, however it dies.

Slices are whole rows or whole columns. What was touched is then "row in R or column in C", and what a new slice
touches for the first time is its part outside R and C: a few rectangles, disjoint from all before.
"""

import tempfile
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from paring.delta.blocks import Rect, matrix_shape, read


class Kept(NamedTuple):
    """Where the original of one rectangle lies in the file."""

    rect: Rect
    offset: int
    dtype: torch.dtype


class UndoLog:
    """Originals by tensor name, written at first touch.

    Args:
        directory: where the file lies; None: the system's temporary folder. Its size is that of all entries touched.
    """

    def __init__(self, directory: str | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - open as long as the log lives
        weakref.finalize(self, self._file.close)  # with the log, not when the collector comes round to the file
        self._kept: dict[str, list[Kept]] = defaultdict(list)
        self._touched: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def touch(self, name: str, tensor: Tensor, rect: Rect) -> None:
        """Keeps the original of what ``rect`` (whole rows or whole columns) covers and nothing before it did."""
        rows, columns = matrix_shape(tensor.shape or torch.Size((1,)))
        if name not in self._touched:
            self._touched[name] = np.zeros(rows, bool), np.zeros(columns, bool)
        seen_rows, seen_columns = self._touched[name]
        row_runs = _runs(~seen_rows, rect.row, rect.row_stop)
        column_runs = _runs(~seen_columns, rect.column, rect.column_stop)
        for row, row_stop in row_runs:
            for column, column_stop in column_runs:
                self._append(name, tensor, Rect(row, row_stop, column, column_stop))
        if rect.shape[1] == columns:
            seen_rows[rect.row : rect.row_stop] = True
        if rect.shape[0] == rows:
            seen_columns[rect.column : rect.column_stop] = True

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._kept))

    def rects(self, name: str) -> list[Rect]:
        return [k.rect for k in self._kept[name]]

    def originals(self, name: str) -> Iterator[tuple[Rect, Tensor]]:
        """Every rectangle touched in this tensor, with what stood there before, ``[rows, columns]``."""
        for rect, offset, dtype in self._kept[name]:
            rows, columns = rect.shape
            buffer = bytearray(rows * columns * dtype.itemsize)
            self._file.seek(offset)
            if self._file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
                raise OSError(f"the originals of '{name}' could not be read back: the temporary file was cut short")
            yield rect, torch.frombuffer(buffer, dtype=dtype).view(rows, columns)

    def touched(self, name: str) -> tuple[Tensor, Tensor]:
        """Which rows and which columns have been touched whole, as booleans."""
        rows, columns = self._touched[name]
        return torch.from_numpy(rows.copy()), torch.from_numpy(columns.copy())

    def adopt(self, name: str, tensor: Tensor, rects: Iterable[Rect], rows: Tensor, columns: Tensor) -> None:
        """Keeps the originals of ``rects`` as another log had them (``rects``, ``touched``), for a resumed run."""
        for rect in rects:
            self._append(name, tensor, rect)
        self._touched[name] = rows.numpy().copy(), columns.numpy().copy()

    def refuse_other(self, tensors: Mapping[str, Tensor]) -> None:
        """That the tensors are still of the type and extent of which the originals were kept.

        Raises:
            RuntimeError: one is missing, was cast or has another extent, so that originals and values do not compare.
        """
        for name, kept in self._kept.items():
            if name not in tensors:
                raise RuntimeError(f"the model has lost its tensor '{name}', of which the session keeps originals; put it back")
            extents = tuple(len(seen) for seen in self._touched[name])
            now = matrix_shape(tensors[name].shape or torch.Size((1,)))
            if now != extents or any(k.dtype != tensors[name].dtype for k in kept):
                raise RuntimeError(
                    f"'{name}' is {list(now)} {tensors[name].dtype}, its originals are {list(extents)} {kept[0].dtype}: it was "
                    "changed since the session was entered; take the delta and revert before that, or undo the change"
                )

    def clear(self) -> None:
        """Forgets everything, for when the originals are back in place."""
        self._kept.clear()
        self._touched.clear()
        self._file.seek(0)
        self._file.truncate()

    def _append(self, name: str, tensor: Tensor, rect: Rect) -> None:
        offset = self._file.seek(0, 2)
        self._file.write(_bytes(read(tensor, rect)))
        self._kept[name].append(Kept(rect, offset, tensor.dtype))


def _bytes(values: Tensor) -> memoryview:
    return values.cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _runs(wanted: np.ndarray, start: int, stop: int) -> list[tuple[int, int]]:
    """The stretches of true entries of ``wanted[start:stop]``, as (first, past the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], wanted[start:stop], [False])).astype(np.int8))) + start
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
