"""The search: candidates are merges in place, scored on every task; the best is never worse than any of the starts.

Task arithmetic with one weight for all (Ilharco et al. 2023, arXiv 2212.04089) chooses it on held-out data; NPS-Pruning (Du et
al. 2025, arXiv 2505.18713) prunes each task vector by a search and then searches a weight for each. Both are
``search_weights``, of the whole task vectors or of pruned ones, and any method that has weights can stand in for the sum.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paring.fuse.inputs import FuseError
from paring.fuse.method import Resolved
from paring.fuse.registry import METHODS
from paring.fusion.coefficients import Coefficients
from paring.fusion.held import Parts
from paring.fusion.merging import Merging, Settings
from paring.fusion.objective import Goal, Score, shares, together
from paring.search.executors import Objective as OfCoefficients
from paring.search.ray_executor import RayExecutor
from paring.search.run import Progress, Result, search
from paring.search.settings import SearchSettings


@dataclass(frozen=True, eq=False)
class Objective:
    """What is searched for.

    Attributes:
        scores: of each task, in the models' order; see ``objective``.
        own: the fine-tunes' scores by these.
        goal: the mean, or the worst task.
    """

    scores: Mapping[str, Score]
    own: Mapping[str, float]
    goal: Goal = "mean"

    @torch.no_grad()
    def __call__(self, models: Sequence[nn.Module]) -> float:
        """1 minus the scores together; the lower the better."""
        found = {task: score(model) for (task, score), model in zip(self.scores.items(), models, strict=True)}
        return 1 - together(shares(found, self.own), self.goal)


@dataclass(frozen=True)
class Workers:
    """Who scores candidates; see ``RayExecutor`` for what is not said here.

    Attributes:
        make: called once in each worker; gives models of its own that share a body, in the tasks' order, and the objective.
            Picklable.
        num: of workers, at least 1.
    """

    make: Callable[[], tuple[Sequence[nn.Module], Objective]]
    num: int
    address: str | None = None
    threads: int = 1
    gpus_per_worker: float = 0


@dataclass(frozen=True)
class Found:
    """What a search found: ``x``, and what its numbers are."""

    x: tuple[float, ...]
    coefficients: Coefficients
    result: Result


def search_weights(
    merging: Merging,
    coefficients: Coefficients,
    objective: Objective,
    given: Settings,
    starts: Mapping[str, Sequence[float]],
    settings: SearchSettings | None = None,
    *,
    most: float = 2.0,
    folder: str | Path | None = None,
    problem: Mapping[str, Any] | None = None,
    report: Callable[[Progress], None] | None = None,
    workers: Workers | None = None,
) -> Found:
    """Searches the weights of a merge.

    Args:
        merging: the models, what the tasks change, and the method; in the end the models are bitwise as they were.
        coefficients: which numbers are searched.
        objective: of the models with a merge on them.
        given: the method's other settings, for each tensor.
        starts: points to begin with, by name (``Coefficients.starts``); none is better than what comes back.
        settings: of the search; its bounds are its own matter.
        most: the largest weight that is tried, and lambda; the least is 0. A start beyond moves the bound.
        folder, problem, report: as ``paring.search.search``.
        workers: who scores; None: this process, on ``merging``'s models.

    Raises:
        ValueError: a setting. FuseError: as the method. SearchError: no score was a number.
    """
    whole = replace(settings or SearchSettings(), bounds=coefficients.bounds(most, starts))
    with ExitStack() as stack:
        scored: OfCoefficients | RayExecutor
        if workers is None:
            scored = scorer(stack.enter_context(merging), coefficients, objective, given)
        else:
            scored = stack.enter_context(_executor(workers, merging, coefficients, given))
        result = search(scored, coefficients.dims, starts, whole, folder=folder, problem=dict(problem or {}), report=report)
    return Found(coefficients.rounded(result.coefficients), coefficients, result)


def scorer(merging: Merging, coefficients: Coefficients, objective: Objective, given: Settings) -> OfCoefficients:
    """Coefficients to a number, on a ``merging`` that was entered; NaN for weights that the method does not take."""

    def score(x: Sequence[float]) -> float:
        settings = coefficients.settings(coefficients.rounded(x), merging.how, given)
        try:
            for name in merging.names:
                settings(name)
        except FuseError:
            return float("nan")
        merging.to(settings)
        return objective(merging.models)

    return score


def _executor(workers: Workers, merging: Merging, coefficients: Coefficients, given: Settings) -> RayExecutor:
    fixed = {name: given(name) for name in merging.parts.sizes}
    distinct = list({id(one): one for one in fixed.values()}.values())
    index = {id(one): i for i, one in enumerate(distinct)}
    made = _Factory(
        workers.make,
        merging.parts.on_cpu(),
        merging.how.name,
        distinct,
        {name: index[id(one)] for name, one in fixed.items()},
        coefficients,
        merging.keys,
        merging.seed,
        merging.scope,
    )
    return RayExecutor(made, workers.num, workers.address, threads=workers.threads, gpus_per_worker=workers.gpus_per_worker)


@dataclass(frozen=True)
class _Factory:
    """What a worker is made of. The method goes by its name: functions are not for travelling."""

    make: Callable[[], tuple[Sequence[nn.Module], Objective]]
    parts: Parts
    method: str
    settings: Sequence[Resolved]
    of: Mapping[str, int]
    coefficients: Coefficients
    keys: tuple[str, ...]
    seed: int
    scope: str

    def __call__(self) -> OfCoefficients:
        models, objective = self.make()

        def given(name: str) -> Resolved:
            return self.settings[self.of[name]]

        merging = Merging(models, self.parts, METHODS[self.method], given, keys=self.keys, seed=self.seed, scope=self.scope)
        merging.__enter__()  # for good: the models are this worker's alone
        return scorer(merging, self.coefficients, objective, given)
