"""Rows of bits, and byte planes: layouts that the codecs share.

Bits: bit i of a row is bit ``i % 8`` of byte ``i // 8``; the bits left over in the last byte are 0.

Byte planes: all lowest bytes of k numbers, then all second bytes, and so on: bytes of equal significance look alike, and
compress together.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from paring.delta.codec.compression import Bytes

# Entries worked on at a time, a multiple of 8: temporaries stay in the CPU's second cache, whatever the tensor's size.
CHUNK = 1 << 17
_ONES = np.array([n.bit_count() for n in range(256)], np.uint8)


def row_bytes(count: int) -> int:
    """The bytes of a row of so many bits."""
    return -(-count // 8)


def count_ones(row: Bytes) -> int:
    return sum(int(_ONES[row[i : i + CHUNK]].sum(dtype=np.int64)) for i in range(0, row.size, CHUNK))


def rest_is_zero(row: Bytes, count: int) -> bool:
    """Whether the bits of a row after its first ``count`` are 0."""
    return count % 8 == 0 or int(row[-1]) >> count % 8 == 0


def bits(row: Bytes, start: int, stop: int) -> Bytes:
    """Bits ``start:stop`` of a row, a byte for each."""
    first = start // 8
    return np.unpackbits(row[first : row_bytes(stop)], bitorder="little")[start - 8 * first : stop - 8 * first]


def to_planes(numbers: npt.NDArray[np.generic], out: Bytes, start: int) -> None:
    """Writes numbers ``start:`` of those whose byte planes are ``out``."""
    width = numbers.itemsize
    count = out.size // width
    rest = numbers.view(f"<u{width}")
    for plane in range(width):  # shifts and narrowing are three times as fast as copies with a stride
        if plane:
            rest = rest >> 8
        np.copyto(out[plane * count + start : plane * count + start + rest.size], rest, casting="unsafe")


def from_planes(raw: Bytes, dtype: npt.DTypeLike, start: int, stop: int) -> npt.NDArray[Any]:
    """Numbers ``start:stop`` of those whose byte planes are ``raw``."""
    width = np.dtype(dtype).itemsize
    count = raw.size // width
    numbers = np.zeros(stop - start, f"<u{width}")
    for plane in reversed(range(width)):
        if plane < width - 1:
            numbers <<= 8
        numbers |= raw[plane * count + start : plane * count + stop]
    return numbers.view(dtype)
