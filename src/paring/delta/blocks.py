"""Rectangles of a tensor, read and written in place.

Every tensor is read as a matrix in its stored order, ``[shape[0], prod(shape[1:])]`` (a vector as one column), whatever
its strides are.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rect:
    """Rows ``row:row_stop`` and columns ``column:column_stop`` of a tensor read as a matrix."""

    row: int
    row_stop: int
    column: int
    column_stop: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.row_stop - self.row, self.column_stop - self.column

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        return self.row, self.row_stop, self.column, self.column_stop


def matrix_shape(shape: torch.Size) -> tuple[int, int]:
    """The shape of a tensor of at least one dimension, read as a matrix."""
    return shape[0], int(shape[1:].numel()) if len(shape) > 1 else 1


def whole(tensor: Tensor) -> Rect:
    """The rectangle that covers a tensor; a scalar counts as one by one."""
    rows, columns = matrix_shape(tensor.shape or torch.Size((1,)))
    return Rect(0, rows, 0, columns)


def view(tensor: Tensor, rect: Rect) -> Tensor | None:
    """The rectangle as a view ``[rows, columns]``, or None where the strides allow none (a channels-last kernel)."""
    if tensor.ndim > 2 and not tensor.is_contiguous():
        return None
    matrix = tensor if tensor.ndim == 2 else tensor.view(matrix_shape(tensor.shape or torch.Size((1,))))
    return matrix[rect.row : rect.row_stop, rect.column : rect.column_stop]


def read(tensor: Tensor, rect: Rect) -> Tensor:
    """A contiguous copy of the rectangle, ``[rows, columns]``."""
    seen = view(tensor.detach(), rect)
    if seen is None:
        seen = tensor.detach()[_scattered(tensor, rect)]
    return seen.clone(memory_format=torch.contiguous_format)


def write(tensor: Tensor, rect: Rect, values: Tensor) -> None:
    """Puts ``values`` (``[rows, columns]``, any float type, any device) into the rectangle, in place."""
    with torch.no_grad():
        repeated = [d for d in range(tensor.ndim) if tensor.stride(d) == 0 and tensor.shape[d] > 1]
        if repeated:  # an expanded tensor holds each entry once and refuses to be written as a whole
            full = read(tensor, whole(tensor))
            full[rect.row : rect.row_stop, rect.column : rect.column_stop] = values.to(tensor.device, tensor.dtype)
            full = full.view(tensor.shape)
            for d in repeated:
                tensor, full = tensor.narrow(d, 0, 1), full.narrow(d, rect.row if d == 0 else 0, 1)
            tensor.copy_(full)
            return
        seen = view(tensor, rect)
        if seen is None:
            tensor[_scattered(tensor, rect)] = values.to(tensor.device, tensor.dtype)
        else:
            seen.copy_(values)


def _scattered(tensor: Tensor, rect: Rect) -> tuple[slice | Tensor, ...]:
    columns = torch.arange(rect.column, rect.column_stop, device=tensor.device)
    return (slice(rect.row, rect.row_stop), *torch.unravel_index(columns, tensor.shape[1:]))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Bitwise equality: NaN equals itself, and 0.0 differs from -0.0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def overlap(rects: Sequence[Rect]) -> bool:
    """Whether any two share an entry: a sweep over the rows, with the column ranges open at each."""
    events = sorted(
        [(r.row, 1, r.column, r.column_stop) for r in rects] + [(r.row_stop, 0, r.column, r.column_stop) for r in rects]
    )
    open_: list[tuple[int, int]] = []  # disjoint, sorted
    for _, opens, start, stop in events:
        at = bisect_left(open_, (start, stop))
        if not opens:
            open_.pop(at)
        elif (at < len(open_) and open_[at][0] < stop) or (at and open_[at - 1][1] > start):
            return True
        else:
            open_.insert(at, (start, stop))
    return False
