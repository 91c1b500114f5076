"""The k-th largest magnitude of many numbers that are read piece by piece, exactly.

The bit pattern of a non-negative fp32 number, read as an integer, grows with the number. So a histogram of the upper 16
of its 31 bits says in which bucket the k-th largest lies, and a second one of that bucket's lower bits where in it: two
passes, half a megabyte each, no sort and no copy.
(bf16 has 128 magnitudes for each power of two, so one of them may hold 1 % of all entries: hence ``ties``.)
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_LOW = 16
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Threshold:
    """What is kept: every entry whose pattern is above ``pattern``, and the first ``ties`` of those that have it.

    Attributes:
        pattern: the fp32 bit pattern of a magnitude; -1: everything is kept.
        ties: in the order in which the numbers are read.
    """

    pattern: int
    ties: int

    @property
    def magnitude(self) -> float:
        return float(np.array(max(self.pattern, 0), np.int32).view(np.float32))


def patterns(values: Tensor) -> npt.NDArray[np.int32]:
    """The bit patterns of the magnitudes of ``values`` (flat, any float type; fp64 is rounded to fp32)."""
    return values.detach().to(torch.float32).abs().contiguous().numpy().view(np.int32)


def threshold(pieces: Callable[[], Iterable[Tensor]], count: int) -> Threshold:
    """By which the ``count`` largest magnitudes of all pieces are kept.

    Args:
        pieces: gives the numbers, flat, in the same order each time it is called (twice).
        count: at least 0; as many as there are, or more: everything is kept.
    """
    return thresholds(lambda: ((None, piece) for piece in pieces()), 1, [(0, count)])[0]


Labelled = Iterable[tuple[Tensor | None, Tensor]]


def thresholds(pieces: Callable[[], Labelled], num_labels: int, wanted: Sequence[tuple[int, int]]) -> list[Threshold]:
    """Several at once, of numbers that have labels: for each (label, count), as ``threshold`` among those of the label.

    Args:
        pieces: gives labels (integers below ``num_labels``; None: all 0) and numbers, flat, twice in the same order.
    """
    upper = np.zeros((num_labels, 1 << 15), np.int64)
    for labels, p in _parts(pieces()):
        upper += np.bincount((labels << 15) + (p >> _LOW), minlength=upper.size).reshape(upper.shape)
    out: list[Threshold | None] = [None] * len(wanted)
    buckets: dict[int, tuple[int, int, int]] = {}  # of each open request: label, bucket, what is still to be found in it
    for i, (label, count) in enumerate(wanted):
        if count <= 0:
            out[i] = Threshold(np.iinfo(np.int32).max, 0)
        elif count >= upper[label].sum():
            out[i] = Threshold(-1, 0)
        else:
            bucket, above = _find(upper[label], count)
            buckets[i] = label, bucket, count - above
    lower = {(label, bucket): np.zeros(1 << _LOW, np.int64) for label, bucket, _ in buckets.values()}
    for labels, p in _parts(pieces()) if lower else ():
        tops = p >> _LOW
        for (of, bucket), counts in lower.items():
            counts += np.bincount(p[(tops == bucket) & (labels == of)] & ((1 << _LOW) - 1), minlength=counts.size)
    for i, (of, bucket, left) in buckets.items():
        rest, above = _find(lower[of, bucket], left)
        out[i] = Threshold((bucket << _LOW) | rest, left - above)
    return [t for t in out if t is not None]


def kept(values: Tensor, at: Threshold, ties_before: int) -> tuple[Tensor, int]:
    """Positions of a piece's entries that a threshold keeps (int64, increasing), and how many had its very magnitude.

    Args:
        ties_before: entries of that magnitude in the pieces before.
    """
    p = patterns(values)
    if at.pattern < 0:
        return torch.arange(p.size), 0
    equal = np.flatnonzero(p == at.pattern)
    room = max(0, at.ties - ties_before)
    positions = np.flatnonzero(p > at.pattern)
    if room and equal.size:
        positions = np.union1d(positions, equal[:room])
    return torch.from_numpy(positions.astype(np.int64, copy=False)), int(equal.size)


def _parts(pieces: Labelled) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]]:
    """Labels and patterns in pieces that fit the cache."""
    for labels, piece in pieces:
        for start in range(0, piece.numel(), _CHUNK):
            p = patterns(piece[start : start + _CHUNK])
            yield (np.zeros(1, np.int64) if labels is None else labels[start : start + _CHUNK].numpy().astype(np.int64)), p


def _find(counts: npt.NDArray[np.int64], count: int) -> tuple[int, int]:
    """The bucket that holds the ``count``-th from above, and how many lie in those above it."""
    from_above = np.cumsum(counts[::-1])
    index = int(np.searchsorted(from_above, count))
    bucket = counts.size - 1 - index
    return bucket, int(from_above[index] - counts[bucket])
