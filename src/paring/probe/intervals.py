"""Confidence intervals for verdicts.

    mean_interval       over seeds or other replicates: Student's t
    share_interval      of a share of counted cases: Wilson's score interval
    bootstrap_interval  of any statistic over units that stand for others like them (layers, positions): percentiles

All are two-sided at ``level`` and pure: the bootstrap takes a seed.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

LEVEL = 0.95
Interval = tuple[float, float]


def mean_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """(mean, half width) by Student's t; the half width of one value is infinite.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("mean_interval: no values; expected at least one")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.inf
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, student_t(level, len(values) - 1) * math.sqrt(variance / len(values))


def share_interval(num_cases: int, total: int, level: float = LEVEL) -> Interval:
    """Wilson's interval of the share ``num_cases / total``, within 0 to 1; total 0: (0, 1)."""
    if total == 0:
        return 0.0, 1.0
    z, share = normal_quantile((1 + level) / 2), num_cases / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    low = 0.0 if num_cases == 0 else max(middle - half, 0.0)
    return low, 1.0 if num_cases == total else min(middle + half, 1.0)


def bootstrap_interval(
    units: Sequence[float] | np.ndarray,
    statistic: Callable[[np.ndarray], float] = lambda x: float(np.mean(x)),
    level: float = LEVEL,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentiles of ``statistic`` over ``draws`` resamples of ``units`` (first axis), with replacement.

    Raises:
        ValueError: no units.
    """
    values = np.asarray(units, dtype=float)
    if not len(values):
        raise ValueError("bootstrap_interval: no units; expected at least one")
    generator = np.random.Generator(np.random.SFC64(seed))
    found = [statistic(values[generator.integers(0, len(values), len(values))]) for _ in range(draws)]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def student_t(level: float, freedom: int) -> float:
    """The t that a two-sided interval of ``level`` takes with ``freedom`` degrees of freedom (at least 1)."""
    low, high = 0.0, 1.0
    while _within(high, freedom) < level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """P(|T| < t), the finite series of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for j in range(1 + odd, freedom, 2):  # a term for each of the exponents below ``freedom``
        total += term
        term *= square * j / (j + 1)
    if odd:
        return 2 / math.pi * (angle + sine * total)
    return sine * total


def normal_quantile(probability: float) -> float:
    """Of the standard normal distribution; ``probability`` in (0, 1)."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)
