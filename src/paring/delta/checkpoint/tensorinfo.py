"""What is known of a stored tensor before it is read, and the names of dtypes that safetensors gives them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from paring.delta.errors import DeltaError

_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",  # two numbers a byte: the stored last dimension is twice torch's
}
# The last two are younger than the oldest torch that is supported.
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, ours) for name, ours in _NAMES.items() if hasattr(torch, ours)}
_NAME_OF = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """The name safetensors gives ``dtype``: ``"F32"``, ``"BF16"``, ``"I64"`` …

    Raises:
        DeltaError: it gives it none.
    """
    try:
        return _NAME_OF[dtype]
    except KeyError:
        raise DeltaError(f"{dtype} has no place in a safetensors file, which holds {', '.join(DTYPES)}; convert it") from None


@dataclass(frozen=True)
class TensorInfo:
    """Dtype, shape and size of a tensor; ``nbytes`` follows from the other two and need not be given."""

    dtype: torch.dtype
    shape: torch.Size
    nbytes: int = -1

    def __post_init__(self) -> None:
        size = torch.Size(self.shape).numel() * self.dtype.itemsize
        if self.nbytes not in (-1, size):
            raise DeltaError(f"{self.dtype} of shape {list(self.shape)} takes {size:,} bytes, got nbytes={self.nbytes:,}")
        object.__setattr__(self, "shape", torch.Size(self.shape))
        object.__setattr__(self, "nbytes", size)


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a dense tensor as a file has them, row major; without a copy where it is contiguous and on the CPU."""
    found: memoryview = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    return found
