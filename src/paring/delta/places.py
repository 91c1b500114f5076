"""Where in a tensor the entries of a change lie: everywhere, in rectangles, or scattered.

Each kind of place reads its entries out of a tensor as one flat tensor (``gather``) and writes such a tensor back
(``scatter_``), in the order that the delta's file stores them: a change is then arithmetic on flat tensors alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from paring.delta.blocks import Rect, matrix_shape, overlap, read, whole, write
from paring.delta.errors import DeltaError


@dataclass(frozen=True)
class Everywhere:
    """All ``count`` entries of a tensor, in its stored order."""

    count: int

    def gather(self, tensor: Tensor) -> Tensor:
        return read(tensor, whole(tensor)).view(-1)

    def scatter_(self, tensor: Tensor, values: Tensor) -> None:
        rect = whole(tensor)
        write(tensor, rect, values.view(rect.shape))

    def flat(self, shape: torch.Size) -> Tensor:
        return torch.arange(shape.numel())

    def check(self, shape: torch.Size, where: str) -> None:
        if self.count != shape.numel():
            raise DeltaError(f"{where}: {self.count} values for a tensor of shape {list(shape)}")


@dataclass(frozen=True)
class Blocks:
    """Disjoint rectangles of the tensor read as a matrix ``[shape[0], prod(shape[1:])]``, one after the other."""

    rects: tuple[Rect, ...]

    @property
    def count(self) -> int:
        return sum(r.shape[0] * r.shape[1] for r in self.rects)

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.cat([read(tensor, r).view(-1) for r in self.rects])

    def scatter_(self, tensor: Tensor, values: Tensor) -> None:
        pieces = values.split([r.shape[0] * r.shape[1] for r in self.rects])
        for rect, piece in zip(self.rects, pieces, strict=True):
            write(tensor, rect, piece.view(rect.shape))

    def flat(self, shape: torch.Size) -> Tensor:
        columns = matrix_shape(shape or torch.Size((1,)))[1]
        rows = (torch.arange(r.row, r.row_stop)[:, None] * columns for r in self.rects)
        pieces = [row + torch.arange(r.column, r.column_stop) for row, r in zip(rows, self.rects, strict=True)]
        return torch.cat([p.reshape(-1) for p in pieces])

    def check(self, shape: torch.Size, where: str) -> None:
        rows, columns = matrix_shape(shape or torch.Size((1,)))
        for r in self.rects:
            if not (0 <= r.row < r.row_stop <= rows and 0 <= r.column < r.column_stop <= columns):
                raise DeltaError(f"{where}: block {list(r.bounds)} is not inside its tensor of {rows} by {columns}")
        if overlap(self.rects):
            raise DeltaError(f"{where}: its blocks overlap")


@dataclass(frozen=True, eq=False)
class Scattered:
    """Entries at ``positions`` (integers, increasing) of the tensor in its stored order."""

    positions: Tensor

    @property
    def count(self) -> int:
        return self.positions.numel()

    def gather(self, tensor: Tensor) -> Tensor:
        found = _indexable(tensor.detach()).reshape(-1)[self.positions.to(tensor.device)]
        return found.view(tensor.dtype)

    def scatter_(self, tensor: Tensor, values: Tensor) -> None:
        positions = self.positions.to(tensor.device, torch.int64)
        values = _indexable(values.to(tensor.device, tensor.dtype))
        tensor = _indexable(tensor.detach())
        with torch.no_grad():
            if tensor.is_contiguous():
                tensor.view(-1).index_copy_(0, positions, values)
            else:  # a channels-last kernel: no flat view of the stored order
                tensor[torch.unravel_index(positions, tensor.shape)] = values

    def flat(self, shape: torch.Size) -> Tensor:
        return self.positions.to(torch.int64)

    def check(self, shape: torch.Size, where: str) -> None:
        p = self.positions
        if p.numel() and (int(p[0]) < 0 or int(p[-1]) >= shape.numel() or bool((p[1:] <= p[:-1]).any())):
            raise DeltaError(f"{where}: its positions do not increase within its {shape.numel()} entries")


Places = Everywhere | Blocks | Scattered

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_INDEXABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


def _indexable(tensor: Tensor) -> Tensor:
    """The same memory as integers where torch cannot index the type (float8, float4, uint16 and wider)."""
    if tensor.dtype in _INDEXABLE or tensor.itemsize not in _INTEGERS:
        return tensor
    return tensor.view(_INTEGERS[tensor.itemsize])


def same_places(a: Places, b: Places) -> bool:
    """Whether both name the same entries in the same order, as far as that shows without laying them out."""
    if isinstance(a, Scattered) and isinstance(b, Scattered):
        return a.positions is b.positions or torch.equal(a.positions.to(torch.int64), b.positions.to(torch.int64))
    return a == b
