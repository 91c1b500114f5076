"""Differences between conditions that were each measured with the same seeds, with intervals.

    value[condition, seed] = mean[condition] + effect[seed] + residual

Conditions and seeds cross, so the seeds' own effect (a harder head, a luckier order of rows) drops out of every
difference, and all conditions together tell how large residuals are: with c conditions and s seeds by (c - 1)(s - 1)
degrees of freedom, where a pair of conditions alone would have s - 1. Residuals are taken to be equally large in all
conditions. ``among`` m comparisons made at once, an interval is widened so that all m hold together at 95 % (Bonferroni).
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from paring.probe.intervals import LEVEL, student_t
from paring.probe.kind import Row


@dataclass(frozen=True)
class Contrast:
    """A difference and its interval's half width (infinite: one seed), in the values' unit."""

    difference: float
    half: float

    @property
    def low(self) -> float:
        return self.difference - self.half

    @property
    def high(self) -> float:
        return self.difference + self.half

    def within(self, band: float) -> bool | None:
        """Whether the difference is at most ``band``, either way: the whole interval is; none of it is; None: some of it."""
        if -band <= self.low and self.high <= band:
            return True
        return False if self.low > band or self.high < -band else None

    def at_least(self, least: float) -> bool | None:
        """Whether the difference is ``least`` or more: the whole interval is; none of it is; None: some of it."""
        return True if self.low >= least else False if self.high < least else None

    def said(self, unit: str = "points") -> str:
        """In words; ``difference`` 0.01 is one point."""
        if not math.isfinite(self.half):
            return f"{100 * self.difference:+.1f} {unit} (one seed: no interval)"
        return f"{100 * self.difference:+.1f} {unit} (95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f})"


class Crossed:
    """Values by condition, each with one for every seed, in the same order of seeds.

    Attributes:
        means: by condition. residual: standard deviation of the residuals; 0 where nothing is left to tell it.

    Raises:
        ValueError: no condition, or not as many values in each.
    """

    def __init__(self, values: Mapping[Any, Sequence[float]]) -> None:
        sizes = {len(v) for v in values.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                f"conditions have {sorted(sizes)} values; expected at least one condition and as many values in each"
            )
        table = torch.tensor([list(v) for v in values.values()], dtype=torch.float64)
        self.conditions = tuple(values)
        self.means: dict[Any, float] = dict(zip(values, table.mean(1).tolist(), strict=True))
        self.num_seeds = table.shape[1]
        self.freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
        left = table - table.mean(1, keepdim=True) - table.mean(0, keepdim=True) + table.mean()
        self.residual = math.sqrt(float(left.square().sum()) / self.freedom) if self.freedom else 0.0

    def between(self, one: Hashable, other: Hashable, among: int = 1) -> Contrast:
        """``one`` less ``other``."""
        return Contrast(self.means[one] - self.means[other], self._half(2.0, among))

    def from_mean(self, one: Hashable, among: int = 1) -> Contrast:
        """``one`` less the mean of all conditions, itself included."""
        mean = math.fsum(self.means.values()) / len(self.means)
        return Contrast(self.means[one] - mean, self._half(1 - 1 / len(self.means), among))

    def pairs(self, among: int) -> list[tuple[tuple[Any, Any], Contrast]]:
        """Every pair, the one with the higher mean first, among ``among`` comparisons; the pair that differs most first."""
        ahead = [(a, b) if self.means[a] >= self.means[b] else (b, a) for a, b in combinations(self.conditions, 2)]
        found = [(pair, self.between(*pair, among=among)) for pair in ahead]
        return sorted(found, key=lambda item: -item[1].difference)

    def by_chance(self, draws: int = 2000, seed: int = 0) -> float:
        """How far the farthest of as many conditions, all alike, would lie from their mean: the mean over draws."""
        noise = torch.randn(draws, len(self.means), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        away = (noise - noise.mean(1, keepdim=True)).abs().amax(1).mean()
        return float(away) * self.residual / math.sqrt(self.num_seeds)

    def _half(self, parts: float, among: int) -> float:
        if not self.freedom:
            return math.inf
        t = student_t(1 - (1 - LEVEL) / among, self.freedom)
        return t * self.residual * math.sqrt(parts / self.num_seeds)


def measured_on(rows: Sequence[Row]) -> str:
    """The column that is reported: ``test``, or ``validation`` where there are no test rows."""
    return "validation" if any(row["test"] is None for row in rows) else "test"


def at_best_rate(rows: Sequence[Row], condition: Sequence[str]) -> dict[Any, list[Row]]:
    """For every condition (the values of these columns) its rows, a seed each, at the rate whose mean validation accuracy over
    the seeds is highest; of equal ones the lower rate."""
    grouped: dict[Any, dict[float, list[Row]]] = {}
    for row in rows:
        what = tuple(row[name] for name in condition)
        grouped.setdefault(what, {}).setdefault(float(row["rate"]), []).append(row)  # type: ignore[arg-type]
    found = {}
    for what, by_rate in grouped.items():
        best = max(by_rate, key=lambda rate: (mean_of(by_rate[rate], "validation"), -rate))
        found[what] = sorted(by_rate[best], key=lambda row: float(row["seed"]))  # type: ignore[arg-type]
    return found


def at_edge(rows: Sequence[Row], condition: Mapping[str, object], rate: object) -> bool:
    """Whether of the rates tried in a condition (column: value) this is the highest or the lowest: a better may lie beyond."""
    tried = {float(r["rate"]) for r in rows if all(r[name] == value for name, value in condition.items())}  # type: ignore[arg-type]
    return rate in (min(tried), max(tried))


def mean_of(rows: Sequence[Row], column: str) -> float:
    values = [row[column] for row in rows]
    assert all(isinstance(v, (int, float)) for v in values)
    return math.fsum(values) / len(values)  # type: ignore[arg-type]


def crossed(found: Mapping[Any, Sequence[Row]], column: str) -> Crossed:
    """Of the rows of ``at_best_rate``; a condition of one column is known by its value alone."""
    return Crossed({_key(what): [float(row[column]) for row in rows] for what, rows in found.items()})  # type: ignore[arg-type]


def _key(what: Any) -> Any:
    return what[0] if isinstance(what, tuple) and len(what) == 1 else what


def all_hold(answers: Iterable[bool | None]) -> bool | None:
    """True: all are; False: one is not; else None."""
    found = list(answers)
    return False if False in found else True if all(found) else None


def diverged(rows: Sequence[Row]) -> str:
    """A clause for the verdict where trainings diverged, else nothing."""
    count = sum(bool(row["diverged"]) for row in rows)
    return f"; {count} of {len(rows)} trainings diverged" if count else ""
