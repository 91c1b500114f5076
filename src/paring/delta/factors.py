"""A difference of low rank as its two factors: ``tau = scale B A``, as LoRA trains it (Hu et al. 2021, arXiv 2106.09685).

Stored and scaled as factors, ``rank (rows + columns)`` numbers; multiplied out, in fp32, where numbers are asked for. That is
never done on a file's word alone: two small factors can claim a product of any size.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paring.delta.blocks import matrix_shape
from paring.delta.change import Change, wide
from paring.delta.errors import DeltaError
from paring.delta.places import Everywhere

FACTOR_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class LowRank:
    """``scale B A`` is the difference of a tensor read as a matrix, ``[shape[0], product of the rest]``.

    Attributes:
        B: [rows, rank], of one of ``FACTOR_DTYPES``.
        A: [rank, columns], likewise.
    """

    B: Tensor
    A: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return len(self.A)

    def times(self, factor: float) -> "LowRank":
        return replace(self, scale=self.scale * factor)

    def is_zero(self) -> bool:
        return not (self.scale and bool(self.B.any()) and bool(self.A.any()))

    def check(self, shape: torch.Size, where: str) -> None:
        """That these are finite factors of a tensor of ``shape``. DeltaError: they are not."""
        rows, columns = matrix_shape(shape or torch.Size((1,)))
        if self.B.shape != (rows, self.rank) or self.A.shape != (self.rank, columns) or not self.rank:
            raise DeltaError(f"{where}: factors {list(self.B.shape)} and {list(self.A.shape)} are none of {list(shape)}")
        if {self.B.dtype, self.A.dtype} - set(FACTOR_DTYPES):
            raise DeltaError(f"{where}: factors of {self.B.dtype} and {self.A.dtype}; expected fp32, bf16 or fp16")
        if not (bool(self.B.isfinite().all()) and bool(self.A.isfinite().all())):
            raise DeltaError(f"{where}: a factor holds NaN or infinity")

    def change(self, shape: torch.Size, dtype: torch.dtype, where: str) -> Change:
        """The product as the change of a tensor of this shape and type. DeltaError: it is not finite."""
        product = (self.B.float() @ self.A.float()).mul_(self.scale)
        if not bool(product.isfinite().all()):
            raise DeltaError(f"{where}: the product of its factors is not finite; scale them down")
        return Change(shape, dtype, "real", Everywhere(shape.numel()), product.view(-1).to(wide(dtype)))
