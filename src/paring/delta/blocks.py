"""A delta as rectangles: what a run changed in each tensor, beside what stood there before.

Every tensor is read as a matrix in its stored order, ``[shape[0], prod(shape[1:])]`` (a vector as one column). The
rectangles of one tensor never overlap, so their differences add up to the task vector ``tau = theta_ft - theta_pre``.
Keeping both sides makes the delta exact both ways: ``apply`` then ``remove`` gives back bitwise the same base, and a
base that differs under a rectangle is refused, where adding a difference would be wrong in silence.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from paring.delta.claims import refuse_claimed
from paring.delta.names import ModelTensors


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


@dataclass(frozen=True)
class Block:
    """One rectangle: its values in the base and after the run, ``[rows, columns]`` in the tensor's dtype, on the CPU."""

    rect: Rect
    before: Tensor
    after: Tensor

    @property
    def difference(self) -> Tensor:
        """This rectangle of the task vector, in fp32 (fp64 for fp64 weights)."""
        wide = torch.promote_types(self.after.dtype, torch.float32)
        return self.after.to(wide) - self.before.to(wide)


@dataclass(frozen=True)
class Delta:
    """What a run changed: parameter or buffer name -> disjoint rectangles.

    Attributes:
        blocks: by the name the tensor has in the model's ``state_dict``.
        shapes: the shape of each of these tensors.
        fresh: names of tensors that were not pretrained (a new head): they are not compared with the base, and after
            ``apply`` on a model whose head was initialised otherwise, ``remove`` leaves the head this delta began with.
    """

    blocks: Mapping[str, tuple[Block, ...]]
    shapes: Mapping[str, torch.Size]
    fresh: frozenset[str] = field(default_factory=frozenset)

    @property
    def nbytes(self) -> int:
        """Bytes that must be kept to have the result again on the same base."""
        return sum(b.after.numel() * b.after.element_size() for _, b in self)

    def __iter__(self) -> Iterator[tuple[str, Block]]:
        for name, blocks in self.blocks.items():
            for block in blocks:
                yield name, block

    def apply(self, model: nn.Module) -> None:
        """Turns the base into the tuned model, in place and bitwise.

        Raises:
            ValueError: a tensor is missing, has another extent, or holds other values than the base did;
                nothing is changed then.
            RuntimeError: a session is open on the model or a part of it, and would overwrite the result.
        """
        refuse_claimed(model, "the delta cannot be applied")
        self._replace(model, [(name, b.rect, b.before, b.after) for name, b in self])

    def remove(self, model: nn.Module) -> None:
        """Turns the tuned model back into the base, in place and bitwise; ``fresh`` tensors too. Raises as ``apply``."""
        refuse_claimed(model, "the delta cannot be removed")
        self._replace(model, [(name, b.rect, b.after, b.before) for name, b in self])

    def _replace(self, model: nn.Module, changes: list[tuple[str, Rect, Tensor, Tensor]]) -> None:
        tensors = ModelTensors(model)
        for name, rect, expected, _ in changes:
            if name not in tensors:
                raise ValueError(f"delta does not fit the model: it has no tensor '{name}'; use the base it was made on")
            tensor, made_on = tensors[name], self.shapes[name]
            if tensor.shape != made_on or tensor.dtype != expected.dtype:
                raise ValueError(
                    f"delta does not fit the model: '{name}' is {list(tensor.shape)} {tensor.dtype}, "
                    f"it was made on {list(made_on)} {expected.dtype}"
                )
            if name not in self.fresh and not same_bits(read(tensors[name], rect).cpu(), expected):
                raise ValueError(
                    f"delta does not fit the model: the values of '{name}' differ from the base's at {rect}; "
                    "use the base it was made on, without another delta on it"
                )
        for name, rect, _, values in changes:
            write(tensors[name], rect, values)
