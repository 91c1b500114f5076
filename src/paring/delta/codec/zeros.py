"""Dense exact differences without their zeros: a mask of the entries that change, as in ``mask``, and these alone.

A Huffman code spends at least a bit on each symbol, and so on a zero that most entries are; in the mask eight are a byte. On
bf16 fine-tunes that change 12, 32 and 68 % of the entries this takes 0.92, 1.98 and 3.59 bits an entry; with the zeros left in
it is 1.44, 2.40 and 3.67. The fewer change, the more time it saves as well; where most do, finding them costs more than that.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paring.delta.codec.bits import Integers
from paring.delta.codec.compression import Bytes
from paring.delta.codec.planes import CHUNK, bits, count_ones, rest_is_zero, row_bytes
from paring.delta.errors import DeltaError


def nonzero(numbers: Integers) -> npt.NDArray[np.int64]:
    """The positions of what is not zero; a piece at a time, 0.5 against torch's 6.5 ns an entry."""
    out, done = np.empty(int(np.count_nonzero(numbers)), np.int64), 0
    for start in range(0, numbers.size, CHUNK):
        places = np.flatnonzero(numbers[start : start + CHUNK] != 0)
        np.add(places, start, out=out[done : done + places.size])
        done += places.size
    return out


def without_zeros(d: Tensor) -> tuple[Bytes, Tensor]:
    """The mask, and the values that are not zero, of flat integers."""
    numbers = d.numpy()
    mask = np.empty(row_bytes(numbers.size), np.uint8)
    kept, done = np.empty(int(np.count_nonzero(numbers)), numbers.dtype), 0
    for start in range(0, numbers.size, CHUNK):
        piece = numbers[start : start + CHUNK]
        changed = piece != 0
        mask[start // 8 : start // 8 + row_bytes(piece.size)] = np.packbits(changed, bitorder="little")
        places = np.flatnonzero(changed)  # four times as fast as piece[changed] where the pattern is random
        kept[done : done + places.size] = piece.take(places)
        done += places.size
    return mask, torch.from_numpy(kept)


def with_zeros(mask: Bytes, kept: Tensor, numel: int, where: str) -> Tensor:
    """All ``numel`` integers; the mask is a row of so many bits.

    Raises:
        DeltaError: it does not keep as many as there are values.
    """
    if not rest_is_zero(mask, numel) or count_ones(mask) != kept.numel():
        raise DeltaError(f"{where} is damaged: its mask does not keep {kept.numel():,} of its {numel:,} entries")
    values, done = kept.numpy(), 0
    out = np.empty(numel, values.dtype)
    for start in range(0, numel, CHUNK):
        piece = out[start : start + CHUNK]
        places = np.flatnonzero(bits(mask, start, start + piece.size).view(bool))
        piece.fill(0)
        piece[places] = values[done : done + places.size]
        done += places.size
    return torch.from_numpy(out)
