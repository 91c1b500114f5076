"""How large the k-th largest of many numbers is, exactly, in one reading: by a sample first.

A sample of 2^16 entries says between which two magnitudes the k-th largest lies, for all but about one in 10^4 tensors. One
reading then counts what is above the upper of the two and collects what lies between, about one entry in a hundred; the k-th
is found among these. No sort, no copy of the tensor. Where the sample misled (blocks of equal values), two readings that
count bit patterns (``paring.slim.histogram``) give the same answer.

Of equal magnitudes the first are in: ``Cut.end`` says up to where. (Many are equal: bf16 has 128 magnitudes for each power of
two, and the difference of two bf16 weights has no more.)
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paring.fuse.inputs import Cut
from paring.slim.histogram import patterns, threshold

Read = Callable[[int, int, int], Tensor]  # (start, end, step) -> fp32, none below zero
Ranges = Callable[[], Iterator[tuple[int, int]]]
Counts = Callable[[int, int], Sequence[int]]  # (numbers, those that are not zero) -> k of the k largest
Floats = npt.NDArray[np.float32]
_SAMPLE = 1 << 16
_WHOLE = 1 << 17  # entries that are read and partitioned whole
_SIGMAS = 4.0


def largest(read: Read, ranges: Ranges, numel: int, counts: Counts) -> tuple[Cut, ...]:
    """For each k that is asked for, the cut by which the k largest entries are in.

    Args:
        read: gives entries ``start:end:step``, flat, fp32, none negative.
        ranges: the pieces in which they are read, in order.
        numel: entries in all.
        counts: gives the k.
    """
    asked = [*counts(numel, 0), *counts(numel, numel)]
    if numel == 0 or (numel > _WHOLE and all(_simple(k, numel) for k in asked)):
        return tuple(_simple(k, numel) or Cut(-1.0, 0) for k in counts(numel, 0))
    if read(0, 1, 1).device.type != "cpu":
        whole = read(0, numel, 1)
        return tuple(_on_device(whole, k) for k in counts(numel, int(torch.count_nonzero(whole))))
    if numel <= _WHOLE:
        a = np.concatenate([read(start, end, 1).numpy() for start, end in ranges()])
        return tuple(_whole(a, k) for k in counts(numel, int(np.count_nonzero(a))))
    step = numel // _SAMPLE | 1  # odd, so that it visits all columns of a matrix of even width
    sample = np.sort(read(0, numel, step).numpy())[::-1]
    guess = counts(numel, round(np.count_nonzero(sample) / sample.size * numel))
    brackets = [_Bracket(*_between(sample, min(1.0, k / numel)), numel) for k in guess]
    nonzero = 0
    for start, end in ranges():
        a = read(start, end, 1).numpy()
        nonzero += int(np.count_nonzero(a))
        for bracket in brackets:
            bracket.add(a, start)
    return tuple(
        _simple(k, numel) or bracket.cut(k, read) or _by_patterns(read, ranges, k)
        for k, bracket in zip(counts(numel, nonzero), brackets, strict=True)
    )


class _Bracket:
    """What one reading collects of the magnitudes from ``low`` to ``high``: how many are above, and those between, in order."""

    def __init__(self, low: float, high: float, numel: int) -> None:
        self.low, self.high, self.numel = low, high, numel
        self._above, self._collected = 0, 0
        self._inside: list[Floats] = []  # of each piece; empty where low is high: the count says it all
        self._counts: list[int] = []
        self._starts: list[int] = []

    def add(self, a: Floats, start: int) -> None:
        above = a > self.high
        self._above += int(np.count_nonzero(above))
        between = np.logical_and(a >= self.low if self.low else a > 0, np.logical_not(above, out=above), out=above)
        self._counts.append(int(np.count_nonzero(between)))
        self._starts.append(start)
        if self.low != self.high and self._collected <= self.numel // 4:  # more than that: the sample misled
            self._inside.append(a.take(np.flatnonzero(between)))  # a[between], in a fifth of the time
            self._collected += self._counts[-1]

    def cut(self, k: int, read: Read) -> Cut | None:
        """None: it does not hold the k-th."""
        left, total = k - self._above, sum(self._counts)
        if left > total and self.low == 0:
            return Cut(0.0, 0)  # the k-th is a zero, and whether a zero is in makes no difference
        if not 0 < left <= total:
            return None
        value, counts = np.float32(self.high), self._counts
        if self.low != self.high:
            if self._collected < total:
                return None
            inside = np.concatenate(self._inside)
            value = np.partition(inside, inside.size - left)[-left]
            left -= int(np.count_nonzero(inside > value))
            counts = [int(np.count_nonzero(piece == value)) for piece in self._inside]
        if left == sum(counts):
            return Cut(float(value), self.numel)
        ends = np.cumsum(counts)
        piece = int(np.searchsorted(ends, left))  # the one that holds the last entry of this magnitude that is in
        start, stop = ([*self._starts, self.numel])[piece : piece + 2]
        equal = np.flatnonzero(read(start, stop, 1).numpy() == value)
        return Cut(float(value), start + int(equal[left - (ends[piece] - counts[piece]) - 1]) + 1)


def _between(sample: Floats, share: float) -> tuple[float, float]:
    """Two magnitudes between which the ``share`` largest end, in all likelihood. ``sample`` is in descending order."""
    m = sample.size
    spread = _SIGMAS * (m * share * (1 - share)) ** 0.5 + 2 if 0 < share < 1 else 2.0
    upper, lower = int(m * share - spread), int(m * share + spread)
    return float(sample[lower]) if lower < m else 0.0, float(sample[upper]) if upper >= 0 else float("inf")


def _simple(k: int, numel: int) -> Cut | None:
    """Where everything is in, or nothing."""
    if k >= numel:
        return Cut(-1.0, numel)
    return Cut(float("inf"), 0) if k <= 0 else None


def _whole(a: Floats, k: int) -> Cut:
    if k <= 0:
        return Cut(float("inf"), 0)
    k = min(k, a.size)
    value = np.partition(a, a.size - k)[-k]
    if value == 0:
        return Cut(0.0, 0)
    ties = k - int(np.count_nonzero(a > value))
    return Cut(float(value), int(np.flatnonzero(a == value)[ties - 1]) + 1)


def _by_patterns(read: Read, ranges: Ranges, k: int) -> Cut:
    at = threshold(lambda: (read(start, end, 1) for start, end in ranges()), k)
    if at.pattern <= 0:
        return Cut(float(at.pattern), 0)
    left = at.ties
    for start, end in ranges():
        equal = np.flatnonzero(patterns(read(start, end, 1)) == at.pattern)
        if left <= equal.size:
            return Cut(at.magnitude, start + int(equal[left - 1]) + 1)
        left -= equal.size
    raise AssertionError("fewer ties than were counted")


def _on_device(a: Tensor, k: int) -> Cut:
    simple = _simple(k, a.numel())
    if simple:
        return simple
    value = float(a.kthvalue(a.numel() - k + 1).values)
    ties = k - int(torch.count_nonzero(a > value))
    return Cut(value, int((a == value).nonzero()[ties - 1, 0]) + 1) if value else Cut(0.0, 0)
