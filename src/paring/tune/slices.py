"""Slices: a few contiguous rows or columns of a weight matrix (SliceFine, section 2).

A layer's weight is read as the matrix ``W`` of shape ``[out, in]``, whatever its storage: a convolution's
kernel is ``[out, in / groups * k]``, Hugging Face's ``Conv1D`` (stored ``[in, out]``) is transposed.

    row slice     W[p:p+r, :]   r·in entries    changes r outgoing features
    column slice  W[:, p:p+r]   r·out entries   reads r incoming features

Plans are frozen and hashable; tensor code consumes them.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Axis = Literal["row", "column"]
AXES: tuple[Axis, ...] = get_args(Axis)


@dataclass(frozen=True)
class Slice:
    """``width`` contiguous rows or columns of a matrix, the first at ``start``.

    Raises:
        ValueError: an unknown axis, a negative start, or a width below one.
    """

    axis: Axis
    start: int
    width: int

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise ValueError(f"Slice: axis is {self.axis!r}; expected 'row' or 'column'")
        if self.start < 0 or self.width < 1:
            raise ValueError(f"Slice: start {self.start}, width {self.width}; expected start >= 0 and width >= 1")

    @property
    def stop(self) -> int:
        return self.start + self.width


@dataclass(frozen=True)
class Matrix:
    """The extents of a layer's weight, read as ``[out, in]``, and the block of the network it stands in.

    ``block`` counts the repeated blocks from the input (0) to the output; a layer before the first block
    belongs to it, a layer after the last block to that one.
    """

    out: int
    inp: int
    block: int = 0

    def extent(self, axis: Axis) -> int:
        """How many rows (``out``) or columns (``in``) there are to choose from."""
        return self.out if axis == "row" else self.inp

    def length(self, axis: Axis) -> int:
        """How many entries one row (``in``) or one column (``out``) has."""
        return self.inp if axis == "row" else self.out
