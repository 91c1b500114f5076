"""Values of a delta's entries: a row of ``count`` numbers, as few bytes; the payload goes through ``compression``.

    bits8 .. bits64   exact differences (``bits``): signed integers d of width w = 8 .. 64. The payload is the byte planes of
                      the unsigned integers z = (d << 1) ^ (d >> (w - 1)): 0, -1, 1, -2, 2 ... as 0, 1, 2, 3, 4 ...
    fp32, bf16, fp16  the byte planes of the bit patterns
    int8, int4, sign  integers with scales (``quantise``), the scales being a tensor of their own

Byte planes: all ``count`` lowest bytes, then all second ones, and so on: bytes of the same significance compress together. A
small difference has high bytes of 0, but -1 would have 255: z saves 1.2 to 1.9 bits an entry over d on what a fine-tune does
to bf16 and fp32 weights. Turning the sign bit out of a float's exponent byte as well saves 0.05 bits, and is left out.

A stored byte stands for at most 64 values (beyond 65,536 bytes of payload). Otherwise it could stand for 2,048 signs, which
with their positions take 12 bytes each in memory: a file of a megabyte could claim 24 gigabytes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paring.delta.codec.compression import MOST_EXPANSION, Buffer, Bytes, pack, unpack
from paring.delta.codec.planes import CHUNK, from_planes, to_planes
from paring.delta.codec.quantise import dequantise, quantise
from paring.delta.errors import DeltaError

_MOST_VALUES = 64  # for a stored byte


@dataclass(frozen=True)
class Kind:
    """How one value is stored.

    Attributes:
        bits: of a value before compression.
        dtype: of the stored number.
        scaled: whether it is an integer times a scale.
    """

    bits: int
    dtype: torch.dtype
    scaled: bool = False

    @property
    def expansion(self) -> int:
        """Bytes of a payload that a stored one stands for at most."""
        return min(_MOST_VALUES * self.bits // 8, MOST_EXPANSION)


KINDS = {
    "bits8": Kind(8, torch.int8),
    "bits16": Kind(16, torch.int16),
    "bits32": Kind(32, torch.int32),
    "bits64": Kind(64, torch.int64),
    "fp32": Kind(32, torch.float32),
    "bf16": Kind(16, torch.bfloat16),
    "fp16": Kind(16, torch.float16),
    "int8": Kind(8, torch.int8, scaled=True),
    "int4": Kind(4, torch.int8, scaled=True),
    "sign": Kind(1, torch.bool, scaled=True),
}
Integers = npt.NDArray[np.signedinteger[Any]]

_INTEGERS = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}


@dataclass(frozen=True, eq=False)
class EncodedValues:
    """What is stored of values: bytes, how these are compressed, their number before that, and the scales (bf16) if any."""

    stored: Bytes
    compression: str
    raw_bytes: int
    scales: Tensor | None = None


def payload_bytes(kind: str, count: int) -> int:
    return -(-count * KINDS[kind].bits // 8)


def encode_values(
    values: Tensor, kind: str, group: int = 0, *, where: str = "the values", compression: str = "zstd"
) -> EncodedValues:
    """Codes ``values`` (flat; integers of the kind's width for ``bits…``, else floating point).

    Args:
        group: consecutive values that share a scale; 0: all. Kinds without scales have no use for it.
        where: names the tensor in errors.
        compression: see ``pack``.

    Raises:
        DeltaError: NaN or infinity, also where a value is too large for the kind's type; or values of the wrong type.
    """
    if kind not in KINDS:
        raise DeltaError(f"{where}: values as {kind!r:.50}; expected one of {', '.join(KINDS)}")
    if values.ndim != 1 or (
        values.dtype != KINDS[kind].dtype if kind.startswith("bits") else not values.dtype.is_floating_point
    ):
        raise DeltaError(f"{where}: {list(values.shape)} {values.dtype} cannot be stored as {kind}")
    if group < 0:
        raise DeltaError(f"{where}: groups of {group} values; expected at least 1, or 0 for one group")
    values = values.detach().cpu().contiguous()
    if values.is_floating_point() and values.itemsize == 1:
        values = values.to(torch.float32)  # torch has no isfinite for float8
    scales, cuts = None, range(0)
    if KINDS[kind].scaled:
        _check_finite(values, torch.float32, kind, where)
        raw, scales = quantise(values, kind, group)
    else:
        raw = _planes(values, kind, where)
        cuts = range(0, raw.size, values.numel() or 1)
    stored, used = pack(raw, cuts, compression, KINDS[kind].expansion)
    return EncodedValues(stored, used, raw.size, scales)


def decode_values(
    kind: str,
    stored: Buffer,
    compression: str,
    raw_bytes: int,
    count: int,
    group: int,
    scales: Tensor | None,
    where: str,
) -> Tensor:
    """The values: integers for ``bits…``, else fp32, in which every stored value is exact.

    Raises:
        DeltaError: the bytes or the scales are not ``count`` values of this kind, or one is not finite.
    """
    if kind not in KINDS:
        raise DeltaError(f"{where}: values as {kind!r:.50}; expected one of {', '.join(KINDS)}")
    if count < 0 or group < 0 or raw_bytes != payload_bytes(kind, count):
        raise DeltaError(f"{where}: {count:,} values as {kind} in groups of {group:,} cannot have {raw_bytes:,} bytes")
    if (scales is not None) != KINDS[kind].scaled:
        raise DeltaError(f"{where}: {kind} has {'no ' if KINDS[kind].scaled else ''}scales; expected otherwise")
    raw = unpack(stored, compression, raw_bytes, where, KINDS[kind].expansion)
    if scales is not None:
        return dequantise(raw, kind, count, group, scales, where)
    number = f"<i{KINDS[kind].bits // 8}"
    if kind.startswith("bits"):
        numbers = np.empty(count, number)
        for start in range(0, count, CHUNK):
            stop = min(start + CHUNK, count)
            numbers[start:stop] = _unzigzag(from_planes(raw, number, start, stop))
        return torch.from_numpy(numbers)
    out = torch.empty(count)
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        out[start:stop] = torch.from_numpy(from_planes(raw, number, start, stop)).view(KINDS[kind].dtype)
        if not bool(out[start:stop].isfinite().all()):
            raise DeltaError(f"{where} is damaged: it holds NaN or infinity")
    return out


def _planes(values: Tensor, kind: str, where: str) -> Bytes:
    dtype, width = KINDS[kind].dtype, KINDS[kind].bits
    raw = np.empty(payload_bytes(kind, values.numel()), np.uint8)
    for start in range(0, values.numel(), CHUNK):
        piece = values[start : start + CHUNK]
        if kind.startswith("bits"):
            numbers = _zigzag(piece.numpy())
        else:
            _check_finite(piece, dtype, kind, where)
            numbers = piece.to(dtype).view(_INTEGERS[width]).numpy()
        to_planes(numbers, raw, start)
    return raw


def _zigzag(d: Integers) -> Integers:
    z = d << 1
    z ^= d >> (8 * d.itemsize - 1)
    return z


def _unzigzag(z: Integers) -> Integers:
    unsigned = z.view(f"<u{z.itemsize}")
    return (unsigned >> 1).view(z.dtype) ^ -(z & 1)


def _check_finite(values: Tensor, dtype: torch.dtype, kind: str, where: str) -> None:
    for piece in values.split(CHUNK):
        if not bool(piece.isfinite().all()):
            raise DeltaError(f"{where}: NaN or infinity cannot be stored as {kind}; the run that made it diverged")
        if not bool(piece.to(dtype).isfinite().all()):
            largest = float(piece.abs().max())
            raise DeltaError(f"{where}: {largest:.3g} is out of the range of {kind}; choose another type of values")
