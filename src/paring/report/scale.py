"""From values to places on an axis, and round numbers along it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from paring.report.document import Axis

_LARGEST = 1e150  # beyond it a range is no number any more
_MARGIN = 0.05  # of the range, on either side


def drawable(value: float | None, log: bool = False) -> bool:
    """Whether a value has a place on an axis."""
    return value is not None and math.isfinite(value) and abs(value) < _LARGEST and (not log or value > 0)


@dataclass(frozen=True)
class Scale:
    """Values between ``low`` and ``high`` to pixels between ``start`` and ``stop``."""

    low: float
    high: float
    start: float
    stop: float
    log: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.stop - self.start) * (at - low) / (high - low)

    def holds(self, value: float | None) -> bool:
        return drawable(value, self.log) and self.low <= value <= self.high  # type: ignore[operator]


def scale(axis: Axis, values: Iterable[float | None], start: float, stop: float, count: int) -> Scale:
    """A scale that holds the values with a margin, but not beyond ``axis.within``.

    Args:
        values: what is drawn; what has no place (NaN, zero on a logarithmic axis) is left out.
        count: about how many ticks there is room for.
    """
    there = [float(v) for v in values if v is not None and drawable(v, axis.log)] or [1.0]
    low, high = min(there), max(there)
    if axis.log:
        factor = (high / low) ** _MARGIN if high > low else 2.0
        low, high = low / factor, high * factor
        ticks = axis.ticks or _log_ticks(low, high, count)
    else:
        margin = (high - low) * _MARGIN if high > low else abs(low) * 0.1 or 1.0
        low, high = _bounded(low - margin, high + margin, axis, min(there), max(there))
        ticks = axis.ticks or _ticks(low, high, count)
    return Scale(low, high, start, stop, axis.log, tuple(t for t in ticks if low <= t <= high))


def _bounded(low: float, high: float, axis: Axis, least: float, most: float) -> tuple[float, float]:
    """The margin ends where no value can be, unless one is there."""
    bottom, top = axis.within
    if bottom is not None and least >= bottom:
        low = max(low, bottom)
    if top is not None and most <= top:
        high = min(high, top)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten: the closest ones that are at most ``count``."""
    power = 10.0 ** math.floor(math.log10((high - low) / max(count, 1)))
    step = next(power * f for f in (1, 2, 5, 10, 20) if (high - low) / (power * f) <= count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(float(f"{i * step:.12g}") for i in range(first, last + 1))


def _log_ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    """Powers of ten, every so many; where there are few, 2 and 5 times them, too."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    if last - first < 2:
        return tuple(f * 10.0**e for e in range(first - 1, last + 1) for f in (1, 2, 5))
    every = math.ceil((last - first + 1) / max(count, 1))
    return tuple(10.0**e for e in range(first, last + 1, every))
