"""Positions of kept entries: ``count`` strictly increasing integers in ``[0, numel)``, as few bytes.

Two codings, ``mask`` and ``gaps`` (each in its file); a writer stores the smaller, after ``compression``. At random positions,
against the entropy of the mask, numel * H(keep) / 8 bytes:

    keep       0.3     0.1     0.03    0.01    0.003   0.001   0.0003
    mask       1.006   1.071   1.46    1.76
    gaps       1.067   1.012   1.008   1.005   1.010   1.015   1.012

so a mask is only tried where at least 1 of 25 entries is kept, and gaps up to 1 of 5. Where positions crowd, as in the rows of
an embedding that training has touched, a mask is up to 45 % smaller than gaps at any keep: it is tried too if half of the gaps
are short.

Positions are int64 in memory. In int32 they would take half, but torch's ``index_copy_``, ``take`` and ``put_`` accept int64
only, and indexing with int32 takes three times as long; who keeps many deltas in memory can narrow them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paring.delta.codec.compression import Buffer, Bytes, pack, unpack
from paring.delta.codec.gaps import decode_gaps, encode_gaps, gaps_cuts, sample_gaps, size_bounds
from paring.delta.codec.mask import decode_mask, encode_mask
from paring.delta.codec.planes import CHUNK, row_bytes
from paring.delta.errors import DeltaError

MOST_ENTRIES = 1 << 48  # of a tensor

Encode = Callable[[Tensor, int], Bytes]
Decode = Callable[[Bytes, int, int, str], Tensor]

CODINGS: dict[str, tuple[Encode, Decode]] = {"mask": (encode_mask, decode_mask), "gaps": (encode_gaps, decode_gaps)}


@dataclass(frozen=True, eq=False)
class EncodedPositions:
    """What is stored of positions: their coding, the stored bytes, how these are compressed, and their number before that."""

    coding: str
    stored: Bytes
    compression: str
    raw_bytes: int


def encode_positions(positions: Tensor, numel: int, compression: str = "zstd") -> EncodedPositions:
    """Codes ``positions`` (flat, integers, strictly increasing) of a tensor of ``numel`` entries.

    Args:
        compression: see ``pack``.

    Raises:
        DeltaError: they are not so.
    """
    if positions.ndim != 1 or positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool:
        raise DeltaError(f"positions are integers in a row; got {list(positions.shape)} {positions.dtype}")
    p = positions.detach().to("cpu", torch.int64).contiguous()
    if not 0 <= numel <= MOST_ENTRIES or not _increasing(p, numel):
        raise DeltaError(f"{p.numel():,} positions do not increase within their {numel:,} entries")
    tried: list[str] = []
    if p.numel() * 25 >= numel or (p.numel() * 4096 >= numel and np.median(sample_gaps(p.numpy())) < 8):
        tried.append("mask")
    if p.numel() * 5 <= numel:
        tried.append("gaps")
    return min((_encoded(coding, p, numel, compression) for coding in tried), key=lambda e: e.stored.size)


def decode_positions(
    coding: str, stored: Buffer, compression: str, raw_bytes: int, count: int, numel: int, where: str
) -> Tensor:
    """The positions, int64.

    Args:
        where: names the tensor in errors.

    Raises:
        DeltaError: the bytes are not ``count`` increasing positions below ``numel`` in this coding.
    """
    if coding not in CODINGS:
        raise DeltaError(f"{where}: positions coded as {coding!r:.50}; expected {' or '.join(map(repr, CODINGS))}")
    if not 0 <= count <= numel <= MOST_ENTRIES:
        raise DeltaError(f"{where}: {count:,} positions in {numel:,} entries")
    least, most = size_bounds(count) if coding == "gaps" else (row_bytes(numel), row_bytes(numel))
    if not least <= raw_bytes <= most:
        raise DeltaError(f"{where}: {count:,} positions of {numel:,} as {coding} cannot have {raw_bytes:,} bytes")
    return CODINGS[coding][1](unpack(stored, compression, raw_bytes, where), count, numel, where)


def unpack_mask(stored: Buffer, compression: str, raw_bytes: int, numel: int, where: str) -> Bytes:
    """The mask itself: a row of ``numel`` bits.

    Raises:
        DeltaError: the bytes are no such row.
    """
    if not 0 <= numel <= MOST_ENTRIES or raw_bytes != row_bytes(numel):
        raise DeltaError(f"{where}: a mask of {numel:,} entries cannot have {raw_bytes:,} bytes")
    return unpack(stored, compression, raw_bytes, where)


def _encoded(coding: str, p: Tensor, numel: int, compression: str = "zstd") -> EncodedPositions:
    raw = CODINGS[coding][0](p, numel)
    stored, used = pack(raw, gaps_cuts(raw, p.numel()) if coding == "gaps" else (), compression)
    return EncodedPositions(coding, stored, used, raw.size)


def _increasing(p: Tensor, numel: int) -> bool:
    if not p.numel():
        return True
    before, after = p.numpy()[:-1], p.numpy()[1:]
    rising = (bool((before[i : i + CHUNK] < after[i : i + CHUNK]).all()) for i in range(0, before.size, CHUNK))
    return int(p[0]) >= 0 and int(p[-1]) < numel and all(rising)
