"""Which coefficients to try next: CMA-ES behind ``ask`` and ``tell``.

The first generation is the starts, as they are. Then a normal distribution, its mean at the best of them, is drawn from; after
each generation it moves towards the candidates that ranked well and takes on their spread and correlations (CMA-ES; Hansen,
"The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772; the implementation is pycma).

- The strategy works in the unit cube, so ``step_size`` means the same for every coefficient, whatever its bounds.
- It is told ranks, not scores: it uses no more of them, and neither a huge score nor one that is not finite can upset it.
- Draws come from a ``RandomState`` of its own, whose stream NumPy keeps for good. NumPy's global state is neither read nor set.
- A generation without one finite score teaches nothing: the mean stays, and the step is halved.
- The last generation, cut to what is left of the budget, has the distribution's mean as its first candidate: under a noisy
  objective the mean is often better than any of the draws around it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paring.search.settings import NoScoreError, SearchSettings, Vector, checked_starts

_OPTIONS = {"verbose": -10, "seed": float("nan")}  # no output, no files written or read; pycma seeds nothing


@dataclass(frozen=True)
class Candidate:
    """Coefficients to evaluate, and the name of the start that they are, if they are one."""

    coefficients: Vector
    start: str | None = None


class Driver:
    """One search: ``ask`` for a generation, ``tell`` its scores, again and again.

    Raises:
        ValueError: see ``checked_starts``.
    """

    def __init__(self, dims: int, starts: Mapping[str, Sequence[float]], settings: SearchSettings) -> None:
        self.starts = checked_starts(starts, dims, settings)
        self._settings = settings
        self._dims = dims
        self._lows, self._highs = (np.array(side) for side in settings.limits(dims))
        self._strategy: Any = None
        self._drawn: list[Any] = []  # in the unit cube, as the strategy gave them
        self._any_finite = False
        self._num_told = 0  # generations that the strategy learnt from

    def ask(self, room: int) -> list[Candidate]:
        """The next generation; of ``room`` candidates at most, which is what is left of the budget (>= 1)."""
        if self._strategy is None:
            return [Candidate(vector, name) for name, vector in self.starts.items()]
        self._drawn = self._strategy.ask()
        points = list(self._drawn)
        if room <= len(points) and self._num_told:
            points.insert(0, self._strategy.result.xfavorite)
            self._drawn = []  # the last generation: nothing is learnt from it
        return [Candidate(self._in_bounds(point)) for point in points[:room]]

    def tell(self, scores: Sequence[float | None]) -> None:
        """The scores of the generation last asked for, in its order; lower is better, None is worse than any number.

        Raises:
            NoScoreError: no start and no candidate of the first generation has a score.
        """
        self._any_finite |= any(score is not None for score in scores)
        if self._strategy is None:
            self._strategy = self._begin(scores)
        elif not self._any_finite:
            raise NoScoreError(
                f"none of the {len(self.starts)} starts and the {len(scores)} candidates around them has a finite score; "
                "expected a number from the objective for at least one: try it by hand on a start"
            )
        elif all(score is None for score in scores):
            self._strategy.sigma /= 2
        elif len(scores) == len(self._drawn):
            self._strategy.tell(self._drawn, _ranks(scores))
            self._num_told += 1

    @property
    def step(self) -> float:
        """The largest standard deviation of a coefficient, as a fraction of its range."""
        return self._settings.step_size if self._strategy is None else float(np.max(self._strategy.stds[: self._dims]))

    def _begin(self, scores: Sequence[float | None]) -> Any:
        import cma  # here, because it loads matplotlib where that is installed

        best = _ranks(scores).index(0.0)
        span = self._highs - self._lows
        mean = ((np.array(list(self.starts.values())[best]) - self._lows) / span).clip(0, 1).tolist()
        if self._dims == 1:  # pycma needs two coefficients; of the second nobody hears
            mean.append(0.5)
        options = {**_OPTIONS, "bounds": [0, 1], "randn": np.random.RandomState(self._settings.seed).randn}
        if self._settings.population is not None:
            options["popsize"] = self._settings.population
        return cma.CMAEvolutionStrategy(mean, self._settings.step_size, options)

    def _in_bounds(self, point: Any) -> Vector:
        """A point of the unit cube as coefficients."""
        unit = np.asarray(point, dtype=np.float64)[: self._dims].clip(0, 1)
        values = (self._lows + unit * (self._highs - self._lows)).clip(self._lows, self._highs)
        return tuple(values.tolist())


def _ranks(scores: Sequence[float | None]) -> list[float]:
    """0 for the lowest score; equal ones share a rank, None has the last."""
    comparable = [math.inf if score is None else score for score in scores]
    order = {score: float(rank) for rank, score in enumerate(sorted(set(comparable)))}
    return [order[score] for score in comparable]
