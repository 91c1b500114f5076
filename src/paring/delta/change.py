"""What is changed in one tensor: places, values, and how the values act.

    exact   d, an integer per entry: bits(after) - bits(before) modulo 2**w, w the width of the tensor's type. Applying and
            taking back are both bitwise, and need nothing but d; as a number it only makes sense beside the base.
    real    tau, a number per entry: after = before + tau, in fp32 (fp64 for fp64 tensors), rounded to the tensor's type (to an
            integer one towards zero).
    new     the entries of a tensor that the base does not have (a task's head), as they are.

Differences of fine-tunes are small, so those of the bit patterns are small integers too (``codec/bits.py`` orders them);
base + bf16(after - before), the obvious alternative, loses 3 % of the entries of a bf16 model that changed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from paring.delta.blocks import same_bits
from paring.delta.codec.bits import exact_back, exact_difference, exact_sum
from paring.delta.codec.planes import CHUNK
from paring.delta.codec.zeros import nonzero
from paring.delta.errors import DeltaError
from paring.delta.places import Everywhere, Places, Scattered

# The share of entries below which positions (8 bytes each) and the values there take less memory than all values.
SCATTERED_BELOW = 0.25

Kind = Literal["exact", "real", "new"]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which differences of tensors of ``dtype`` are taken."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True, eq=False)
class Change:
    """The change of one tensor.

    Attributes:
        shape, dtype: of the tensor.
        kind: see above.
        places: where the values belong.
        values: flat, one for each place: integers as wide as ``dtype`` (exact), fp32 or fp64 (real), ``dtype`` (new).
        before: gives what stood in the base at these places, flat, where that is at hand.
    """

    shape: torch.Size
    dtype: torch.dtype
    kind: Kind
    places: Places
    values: Tensor
    before: Callable[[], Tensor] | None = None

    def after(self, before: Tensor, where: str) -> Tensor:
        """The new entries, flat, from those of the base.

        Raises:
            DeltaError: one becomes infinite or NaN that was finite, as in a type with too small a range.
        """
        values = self.values.to(before.device)
        if self.kind == "exact":
            return exact_sum(before, values)
        if self.kind == "new":
            return values
        total = before.to(wide(self.dtype)) + values
        after = total.to(self.dtype)
        if _leaves_range(before, total, after):
            raise DeltaError(f"{where}: the change leads out of the range of {self.dtype}; scale it down")
        return after

    def back(self, after: Tensor) -> Tensor:
        """The base's entries from the new ones; of an exact change only."""
        assert self.kind == "exact"
        return exact_back(after, self.values.to(after.device))

    def difference(self, where: str) -> Tensor:
        """``after - before`` as numbers, flat.

        Raises:
            DeltaError: the change is exact and the base is not at hand, or the tensor is new.
        """
        if self.kind == "new":
            raise DeltaError(f"{where} is not in the base, so there is no difference; restrict the task vector to other names")
        if self.kind == "real":
            return self.values
        if self.before is None:
            raise DeltaError(f"{where} holds exact differences, numbers only beside the base; load the delta with base=...")
        before = self.before()
        return exact_sum(before, self.values).to(wide(self.dtype)) - before.to(wide(self.dtype))

    def real(self, where: str, factor: float = 1.0) -> "Change":
        """The same change as numbers, times ``factor``; a new tensor as it is."""
        if self.kind == "new":
            return self
        difference = self.difference(where)
        return replace(self, kind="real", values=difference if factor == 1.0 else difference * factor, before=None)

    def dense(self, where: str) -> Tensor:
        """The difference in the tensor's shape, zero where nothing changes."""
        out = torch.zeros(self.shape, dtype=wide(self.dtype))
        self.places.scatter_(out, self.difference(where))
        return out


def _leaves_range(before: Tensor, total: Tensor, after: Tensor) -> bool:
    """Whether an entry that was finite is no longer, or one does not fit the integers of its type."""
    if after.dtype == torch.bool:
        return bool(((total <= -1) | (total >= 2)).any())
    if not after.dtype.is_floating_point:
        limits = torch.iinfo(after.dtype)
        return not bool(((total > float(limits.min) - 1) & (total < float(limits.max) + 1)).all())
    if after.itemsize == 1:  # float8, which saturates, and of which torch cannot tell whether it is finite
        before, after = before.to(total.dtype), torch.where(total.abs() > torch.finfo(after.dtype).max, torch.inf, total)
    return not bool(after.isfinite().all()) and bool((before.isfinite() & ~after.isfinite()).any())


def exact_change(before: Tensor, after: Tensor, places: Places, shape: torch.Size) -> Change:
    """The exact change that turns ``before`` into ``after``, both flat at ``places``."""
    return Change(shape, after.dtype, "exact", places, exact_difference(before, after), lambda: before)


def without_zeros(change: Change) -> Change:
    """An exact change of all entries, most of them by nothing, as one of the others alone; any other as it is."""
    if change.kind != "exact" or not isinstance(change.places, Everywhere):
        return change
    numbers = change.values.cpu().numpy()
    positions = nonzero(numbers) if np.count_nonzero(numbers) < SCATTERED_BELOW * numbers.size else None
    if positions is None:
        return change
    places = Scattered(torch.from_numpy(positions))
    return replace(change, places=places, values=torch.from_numpy(numbers.take(positions)), before=None)


def unchanged(change: Change) -> bool:
    """Whether a change, as it is, changes nothing at all."""
    if change.kind == "exact":
        numbers = change.values.cpu().numpy()
        return not any(numbers[i : i + CHUNK].any() for i in range(0, numbers.size, CHUNK))
    return change.kind == "real" and same_bits(change.values, torch.zeros_like(change.values))
