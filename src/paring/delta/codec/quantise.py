"""Numbers as small integers q and a scale for each ``group`` of consecutive ones (the last may be shorter; 0: one for all).

    int8   q in -127 .. 127, a byte each, two's complement                       value = q * scale
    int4   q in -7 .. 7, half a byte each, two's complement: number i in the     value = q * scale
           low half of byte i // 2 if i is even, else in the high; a half
           left over is 0
    sign   one bit each: bit i % 8 of byte i // 8, 1 where the number is         value = -scale or +scale
           negative; bits left over are 0. With positions beside it, this is
           the ternary coding

The products are in fp32. Scales are bf16: at one for 64 entries fp32 would cost half a bit an entry, and fp16 does not reach
the differences of a fine-tune (a step of 1e-7 is one or two units of its last place). Coarse rounding of the scale costs no
accuracy, since q is chosen for the rounded one. Scales are finite, not negative, and so small that no product overflows;
where one underflows to 0, its numbers (below 2**-126) become 0.

    int8   scale = max|v| / 127: no error above half a step
    int4   scale = c * max|v| / 7, with the c of a few that has the least squared error
    sign   scale = mean |v|, which has the least squared error
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paring.delta.codec.compression import Bytes
from paring.delta.codec.planes import CHUNK, bits, rest_is_zero
from paring.delta.errors import DeltaError

LARGEST = {"int8": 127, "int4": 7, "sign": 1}  # of |q|
_CLIPS = {"int4": (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)}
_FLOAT_MAX = torch.finfo(torch.float32).max


def num_groups(count: int, group: int) -> int:
    return -(-count // group) if group else min(count, 1)


def quantise(values: Tensor, kind: str, group: int) -> tuple[Bytes, Tensor]:
    """The bytes of the integers of ``values`` (flat, finite), and the scales."""
    scales = _scales(values, kind, group)
    q = np.empty(values.numel(), np.int8)
    for t in _tiles(values.numel(), group):
        x = values[t.start : t.stop].to(torch.float32).view(t.rows, -1)
        if kind == "sign":
            found = x < 0
        else:
            step = scales[t.group : t.group + t.rows, None].to(torch.float32)
            found = (x / torch.where(step == 0, 1, step)).round_().clamp_(-LARGEST[kind], LARGEST[kind])
        q[t.start : t.stop] = found.to(torch.int8).view(-1).numpy()
    return _packed(q, kind), scales


def dequantise(raw: Bytes, kind: str, count: int, group: int, scales: Tensor, where: str) -> Tensor:
    """The numbers, fp32; ``raw`` has the right size.

    Raises:
        DeltaError: the scales or the integers are not as described above.
    """
    _check_scales(scales, kind, num_groups(count, group), where)
    out = torch.empty(count)
    for t in _tiles(count, group):
        q = _unpacked(raw, kind, t.start, t.stop)
        if kind != "sign" and q.size and int(q.min()) < -LARGEST[kind]:
            raise DeltaError(f"{where} is damaged: it holds {int(q.min())}; {kind} values are within ±{LARGEST[kind]}")
        step = scales[t.group : t.group + t.rows, None].to(torch.float32)
        torch.mul(torch.from_numpy(q).view(t.rows, -1), step, out=out[t.start : t.stop].view(t.rows, -1))
    if (kind == "int4" and count % 2 and raw[-1] >> 4) or (kind == "sign" and not rest_is_zero(raw, count)):
        raise DeltaError(f"{where} is damaged: it has bits beyond the last of its {count:,} values")
    return out


class _Tile(NamedTuple):
    """Values ``start:stop``, as ``rows`` groups or one group's part, from the group ``group`` on."""

    start: int
    stop: int
    group: int
    rows: int


def _tiles(count: int, group: int) -> Iterator[_Tile]:
    group = min(group or count, count)
    if not count:
        return
    if group > CHUNK:
        for first in range(0, count, group):
            end = min(first + group, count)
            for start in range(first, end, CHUNK):
                yield _Tile(start, min(start + CHUNK, end), first // group, 1)
        return
    whole, rows = count // group, CHUNK // group
    for first in range(0, whole, rows):
        last = min(first + rows, whole)
        yield _Tile(first * group, last * group, first, last - first)
    if count % group:
        yield _Tile(whole * group, count, whole, 1)


def _scales(values: Tensor, kind: str, group: int) -> Tensor:
    count, groups = values.numel(), num_groups(values.numel(), group)
    top = torch.zeros(groups)  # of |v| in each group
    total = torch.zeros(groups, dtype=torch.float64)
    for t in _tiles(count, group):
        x = values[t.start : t.stop].to(torch.float32).view(t.rows, -1).abs()
        at = slice(t.group, t.group + t.rows)
        torch.maximum(top[at], x.amax(1), out=top[at])
        if kind == "sign":
            total[at] += x.sum(1, dtype=torch.float64)
    if kind == "sign":
        size = torch.full((groups,), group or count, dtype=torch.float64)
        if groups:
            size[-1] = count - (groups - 1) * (group or count)
        return _narrowed((total / size).to(torch.float32), kind)
    clips = _CLIPS.get(kind, (1.0,))
    best = torch.full((groups,), clips[0])
    if len(clips) > 1:
        best = torch.tensor(clips)[_errors(values, top, kind, group).argmin(0)]
    return _narrowed(top * best / LARGEST[kind], kind)


def _errors(values: Tensor, top: Tensor, kind: str, group: int) -> Tensor:
    """Squared errors by clip and group, in units of the largest |v|, whose square may not fit fp32."""
    clips, limit = _CLIPS[kind], LARGEST[kind]
    errors = torch.zeros(len(clips), top.numel(), dtype=torch.float64)
    for t in _tiles(values.numel(), group):
        at = slice(t.group, t.group + t.rows)
        unit = top[at, None]
        x = values[t.start : t.stop].to(torch.float32).view(t.rows, -1) / torch.where(unit == 0, 1, unit) * limit
        for i, clip in enumerate(clips):
            q = (x / clip).round_().clamp_(-limit, limit)
            errors[i, at] += q.mul_(clip).sub_(x).square_().sum(1, dtype=torch.float64)
    return errors


def _narrowed(scales: Tensor, kind: str) -> Tensor:
    return scales.to(torch.bfloat16).clamp(max=_largest_scale(kind))


def _largest_scale(kind: str) -> float:
    """The largest bf16 number whose product with the largest |q| is finite in fp32."""
    bits_of = torch.tensor(_FLOAT_MAX / LARGEST[kind], dtype=torch.float32).view(torch.int32)
    return float((bits_of & -(1 << 16)).view(torch.float32))


def _check_scales(scales: Tensor, kind: str, groups: int, where: str) -> None:
    if scales.dtype != torch.bfloat16 or scales.shape != (groups,):
        raise DeltaError(f"{where}: its scales are {list(scales.shape)} {scales.dtype}; expected [{groups}] torch.bfloat16")
    if groups and not bool(((scales >= 0) & (scales <= _largest_scale(kind))).all()):
        raise DeltaError(f"{where} is damaged: a scale is negative, NaN or too large; expected 0 to {_largest_scale(kind):.3g}")


def _packed(q: npt.NDArray[np.int8], kind: str) -> Bytes:
    if kind == "sign":
        return np.packbits(q.view(bool), bitorder="little")
    if kind == "int8":
        return q.view(np.uint8)
    low, high = q[::2].view(np.uint8), q[1::2].view(np.uint8)
    raw = low & np.uint8(15)
    raw[: high.size] |= high << np.uint8(4)
    return raw


def _unpacked(raw: Bytes, kind: str, start: int, stop: int) -> npt.NDArray[np.int8]:
    """Values ``start:stop``: q, or for "sign" -1 and +1."""
    if kind == "sign":
        return np.int8(1) - np.int8(2) * bits(raw, start, stop).view(np.int8)
    if kind == "int8":
        return raw[start:stop].view(np.int8).copy()
    pairs = raw[start // 2 : (stop + 1) // 2].view(np.int8)
    q = np.empty(2 * pairs.size, np.int8)
    q[::2] = (pairs << 4) >> 4
    q[1::2] = pairs >> 4
    return q[start % 2 : start % 2 + stop - start]
