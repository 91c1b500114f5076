"""The coding "mask" of positions: a row of ``numel`` bits, ``ceil(numel / 8)`` bytes; bit i is 1 where entry i is kept.

Bit i is bit ``i % 8`` of byte ``i // 8``; the bits left over in the last byte are 0.
"""

import numpy as np
import torch
from torch import Tensor

from paring.delta.codec.compression import Bytes
from paring.delta.codec.planes import CHUNK, count_ones, rest_is_zero, row_bytes
from paring.delta.errors import DeltaError

_BITS = 8 * CHUNK


def encode_mask(positions: Tensor, numel: int) -> Bytes:
    raw = np.empty(row_bytes(numel), np.uint8)
    p = positions.numpy()
    edges = np.searchsorted(p, np.arange(0, numel + _BITS, _BITS, dtype=np.int64)).tolist()
    for i, first in enumerate(range(0, numel, _BITS)):
        row = np.zeros(min(_BITS, numel - first), bool)
        row[p[edges[i] : edges[i + 1]] - first] = True
        raw[first // 8 : first // 8 + row_bytes(row.size)] = np.packbits(row, bitorder="little")
    return raw


def decode_mask(raw: Bytes, count: int, numel: int, where: str) -> Tensor:
    """Positions, increasing by their nature; ``raw`` has the right size."""
    if not rest_is_zero(raw, numel):
        raise DeltaError(f"{where} is damaged: its mask has entries beyond the last of its {numel:,}")
    if (ones := count_ones(raw)) != count:
        raise DeltaError(f"{where} is damaged: its mask keeps {ones:,} entries; expected {count:,}")
    out = torch.empty(count, dtype=torch.int64)
    p, done = out.numpy(), 0
    for first in range(0, raw.size, CHUNK // 4):
        found = np.flatnonzero(np.unpackbits(raw[first : first + CHUNK // 4], bitorder="little").view(bool))
        np.add(found, 8 * first, out=p[done : done + found.size])
        done += found.size
    return out
