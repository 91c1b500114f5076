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
_NOTHING = np.empty(0, np.float32)


def largest(read: Read, ranges: Ranges, numel: int, counts: Counts) -> tuple[Cut, ...]:
    """For each k that is asked for, the cut by which the k largest entries are in.

    Args:
        read: gives entries ``start:end:step``, flat, fp32, none negative.
        ranges: the pieces in which they are read, in order.
        numel: entries in all.
        counts: gives the k.
    """
    return largest_of_each([(read, counts)], ranges, numel)[0]


def largest_of_each(asked: Sequence[tuple[Read, Counts]], ranges: Ranges, numel: int) -> tuple[tuple[Cut, ...], ...]:
    """As ``largest``, of several tensors of one size: a piece of each is read before the next piece of any."""
    at_once = [_at_once(read, ranges, numel, counts) for read, counts in asked]
    searches = [None if done is not None else _Search(*of, numel) for of, done in zip(asked, at_once, strict=True)]
    if any(searches):
        for start, end in ranges():
            for search in filter(None, searches):
                search.add(start, end)
    return tuple(search.cuts(ranges) if search else done or () for search, done in zip(searches, at_once, strict=True))


def _at_once(read: Read, ranges: Ranges, numel: int, counts: Counts) -> tuple[Cut, ...] | None:
    """Where nothing has to be read, or all of it at once."""
    asked = [*counts(numel, 0), *counts(numel, numel)]
    if numel == 0 or (numel > _WHOLE and all(_simple(k, numel) for k in asked)):
        return tuple(_simple(k, numel) or Cut(-1.0, 0) for k in counts(numel, 0))
    if read(0, 1, 1).device.type != "cpu":
        whole = read(0, numel, 1)
        return tuple(_on_device(whole, k) for k in counts(numel, int(torch.count_nonzero(whole))))
    if numel <= _WHOLE:
        a = np.concatenate([read(start, end, 1).numpy() for start, end in ranges()])
        return tuple(_whole(a, k) for k in counts(numel, int(np.count_nonzero(a))))
    return None


class _Search:
    """One tensor's: brackets by a sample, then what its pieces say of them."""

    def __init__(self, read: Read, counts: Counts, numel: int) -> None:
        self._read, self._counts, self._numel = read, counts, numel
        step = numel // _SAMPLE | 1  # odd, so that it visits all columns of a matrix of even width
        sample = np.sort(read(0, numel, step).numpy())[::-1]
        guess = counts(numel, round(np.count_nonzero(sample) / sample.size * numel))
        self._brackets = [_Bracket(*_between(sample, min(1.0, k / numel)), numel) for k in guess]
        self._nonzero, self._counted = 0, list(counts(numel, 0)) != list(counts(numel, numel))

    def add(self, start: int, end: int) -> None:
        a = self._read(start, end, 1).numpy()
        self._nonzero += int(np.count_nonzero(a)) if self._counted else 0
        for bracket in self._brackets:
            bracket.add(a, start)

    def cuts(self, ranges: Ranges) -> tuple[Cut, ...]:
        return tuple(
            _simple(k, self._numel) or bracket.cut(k, self._read) or _by_patterns(self._read, ranges, k)
            for k, bracket in zip(self._counts(self._numel, self._nonzero), self._brackets, strict=True)
        )


class _Bracket:
    """What one reading collects of the magnitudes from ``low`` to ``high``: how many are above, how many at either end (many,
    where values are of bf16), and those between, in order."""

    def __init__(self, low: float, high: float, numel: int) -> None:
        self.low, self.high, self.numel = low, high, numel
        self._above, self._collected = 0, 0
        self._inside: list[Floats] = []  # of each piece
        self._ends: dict[float, list[int]] = {end: [] for end in (low, high)}  # how many each piece has of them
        self._starts: list[int] = []

    def add(self, a: Floats, start: int) -> None:
        self._above += int(np.count_nonzero(a > self.high))
        self._starts.append(start)
        for end, counts in self._ends.items():
            counts.append(int(np.count_nonzero(a == end)) if end else 0)  # of zeros nobody asks
        if self.low == self.high:  # as where values are of bf16
            self._inside.append(_NOTHING)
        elif self._collected <= self.numel // 16:  # more than that: the sample misled
            between = np.logical_and(a > self.low, a < self.high)
            self._inside.append(a.take(np.flatnonzero(between)))  # a[between] takes half as long again
            self._collected += self._inside[-1].size

    def cut(self, k: int, read: Read) -> Cut | None:
        """None: it does not hold the k-th."""
        left = k - self._above
        if left <= 0 or len(self._inside) < len(self._starts):
            return None
        at_high = self._ends[self.high]
        if left <= sum(at_high):
            return self._tied(self.high, left, at_high, read)
        left -= sum(at_high)
        if left <= self._collected:
            inside = np.concatenate(self._inside)
            value = np.partition(inside, inside.size - left)[-left]
            left -= int(np.count_nonzero(inside > value))
            return self._tied(float(value), left, [int(np.count_nonzero(piece == value)) for piece in self._inside], read)
        if self.low == 0:
            return Cut(0.0, 0)  # the k-th is a zero, and whether a zero is in makes no difference
        left -= self._collected
        if self.low == self.high or left > sum(self._ends[self.low]):
            return None
        return self._tied(self.low, left, self._ends[self.low], read)

    def _tied(self, value: float, left: int, counts: Sequence[int], read: Read) -> Cut:
        """By which the first ``left`` entries of this magnitude are in, of which each piece has ``counts``."""
        if left == sum(counts):
            return Cut(value, self.numel)
        ends = np.cumsum(counts)
        piece = int(np.searchsorted(ends, left))  # the one that holds the last entry of this magnitude that is in
        start, stop = ([*self._starts, self.numel])[piece : piece + 2]
        equal = np.flatnonzero(read(start, stop, 1).numpy() == value)
        return Cut(value, start + int(equal[left - (ends[piece] - counts[piece]) - 1]) + 1)


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
