"""The coding "gaps" of positions: from the distances between them.

With p[-1] = -1, gap[i] = p[i] - p[i - 1] - 1 >= 0 is split into its s low bits and the rest, h = gap >> s:

    byte 0                        s, 0 .. 48
    s * ceil(count / 8) bytes     bit planes of the gaps, the lowest first: bit i of plane b is bit b of gap[i], and is bit
                                  i % 8 of the plane's byte i // 8; the bits left over in a plane's last byte are 0
    to the end                    h[0], h[1], ... each as floor(h / 255) bytes 255 and one byte h % 255

The low bits of large gaps are noise; what is left is a byte each with a skewed distribution, which Zstandard's Huffman
stage codes well. s is such that ``(numel - count) >> s <= 255 * (count + 4096)``: so at most count + 4096 bytes are 255, and
the size of an honest payload is known within a factor before it is unfolded. Of these s a writer takes the one that makes a
sample of the gaps smallest; near ``log2(numel / count) - 6`` many do about equally well.

Overflow is no question when reading. The bytes of the last part add up to the sum of all h, and the planes' ones to the sum of
all low bits; so the last position is known, and checked, before any gap is computed.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paring.delta.codec.compression import Bytes, pack
from paring.delta.codec.planes import CHUNK, bits, count_ones, rest_is_zero, row_bytes
from paring.delta.errors import DeltaError

_MOST_SHIFT = 48
_FREE_ESCAPES = 4096
_SAMPLES, _SAMPLE = 16, 1024

Gaps = npt.NDArray[np.int64]


def size_bounds(count: int) -> tuple[int, int]:
    """The least and the most bytes of a payload of so many positions."""
    return 1 + count, 1 + _MOST_SHIFT * row_bytes(count) + 2 * count + _FREE_ESCAPES


def encode_gaps(positions: Tensor, numel: int) -> Bytes:
    p: Gaps = positions.numpy()
    shift = _shift(p, numel)
    plane_bytes, count = row_bytes(p.size), p.size
    stream = 1 + shift * plane_bytes
    raw = np.empty(stream + count + ((numel - count) >> shift) // 255, np.uint8)
    raw[0] = shift
    for start in range(0, count, CHUNK):
        gaps = _gaps(p, start, min(start + CHUNK, count))
        for b in range(shift):
            plane = np.packbits((gaps >> b & 1).astype(bool), bitorder="little")
            offset = 1 + b * plane_bytes + start // 8
            raw[offset : offset + plane.size] = plane
        gaps >>= shift
        coded = _escaped(gaps)
        raw[stream : stream + coded.size] = coded
        stream += coded.size
    return raw[:stream]


def gaps_cuts(raw: Bytes, count: int) -> list[int]:
    """Where the parts of the payload begin."""
    return [1 + b * row_bytes(count) for b in range(int(raw[0]) + 1)]


def decode_gaps(raw: Bytes, count: int, numel: int, where: str) -> Tensor:
    """Positions; ``raw`` is within ``size_bounds``."""
    shift, plane_bytes = int(raw[0]), row_bytes(count)
    stream = raw[1 + shift * plane_bytes :]
    if shift > _MOST_SHIFT or stream.size < count or (stream.size and stream[-1] == 255):
        raise DeltaError(f"{where} is damaged: {raw.size:,} bytes with {shift} low bits are no {count:,} positions")
    planes = [raw[1 + b * plane_bytes : 1 + (b + 1) * plane_bytes] for b in range(shift)]
    ends = total = 0
    for i in range(0, stream.size, CHUNK):
        piece = stream[i : i + CHUNK]
        ends += int(np.count_nonzero(piece != 255))
        total += int(piece.sum(dtype=np.int64))
    total = (total << shift) + sum(count_ones(plane) << b for b, plane in enumerate(planes))
    if ends != count or total + count > numel or not all(rest_is_zero(plane, count) for plane in planes):
        raise DeltaError(
            f"{where} is damaged: it holds {ends:,} positions up to {total + ends - 1:,}; expected {count:,} below {numel:,}"
        )
    out = torch.empty(count, dtype=torch.int64)
    p, done, last, pending = out.numpy(), 0, -1, 0
    for i in range(0, stream.size, CHUNK):
        gaps, pending = _unescaped(stream[i : i + CHUNK], pending)
        stop = done + gaps.size
        if shift:
            gaps <<= shift
            for b, plane in enumerate(planes):
                gaps |= bits(plane, done, stop).astype(np.int64) << b
        gaps += 1
        np.cumsum(gaps, out=p[done:stop])
        p[done:stop] += last
        last, done = int(p[stop - 1]) if stop else last, stop
    return out


def sample_gaps(p: Gaps) -> Gaps:
    """Gaps from all over ``p``, which is not empty; all of them if they are few."""
    step = max(p.size // _SAMPLES, _SAMPLE)
    return np.concatenate([_gaps(p, i, min(i + _SAMPLE, p.size)) for i in range(0, p.size, step)])


def _gaps(p: Gaps, start: int, stop: int) -> Gaps:
    gaps = np.empty(stop - start, np.int64)
    gaps[0] = p[start] - (p[start - 1] if start else -1)
    np.subtract(p[start + 1 : stop], p[start : stop - 1], out=gaps[1:])
    gaps -= 1
    return gaps


def _escaped(h: Gaps) -> Bytes:
    large = np.flatnonzero(h >= 255)
    if not large.size:
        return h.astype(np.uint8)
    escapes = h[large] // 255
    h[large] -= 255 * escapes
    before = np.zeros(h.size, np.int64)
    before[large] = escapes
    ends = np.cumsum(before)
    ends += np.arange(h.size)
    coded = np.full(int(ends[-1]) + 1, 255, np.uint8)
    coded[ends] = h
    return coded


def _unescaped(piece: Bytes, pending: int) -> tuple[Gaps, int]:
    """The h that end in ``piece``, after ``pending`` escapes before it; the escapes at its end."""
    if not pending and int(piece.max()) < 255:
        return piece.astype(np.int64), 0
    ends = np.flatnonzero(piece != 255)
    if not ends.size:
        return np.empty(0, np.int64), pending + piece.size
    h = piece[ends].astype(np.int64)
    h += 255 * (np.diff(ends, prepend=-1) - 1)
    h[0] += 255 * pending
    return h, piece.size - 1 - int(ends[-1])


def _shift(p: Gaps, numel: int) -> int:
    """The number of low bits, see above."""
    least = 0
    while (numel - p.size) >> least > 255 * (p.size + _FREE_ESCAPES):
        least += 1
    if not p.size:
        return least
    sample = sample_gaps(p)
    most = max(least, int(sample.max()).bit_length())
    return min(range(least, most + 1), key=lambda s: _estimate(sample, s))


def _estimate(sample: Gaps, shift: int) -> int:
    """Bits of the sample with this shift, its low bits being noise."""
    h = sample >> shift
    return h.size * shift + 8 * pack(_escaped(h))[0].size
