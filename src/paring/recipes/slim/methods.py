"""The ways to make a delta small, each tried at one keep; scores are of what a file of it would hold."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from paring.delta.taskvector import TaskVector
from paring.recipes.scoring import Scores
from paring.recipes.slim.problem import Problem
from paring.recipes.slim.settings import SlimSettings
from paring.search.run import Progress, Result
from paring.search.settings import SearchError
from paring.slim.fitted import prune_fitted
from paring.slim.lost import as_stored
from paring.slim.nps import Nps, prune_nps
from paring.slim.pruners import PRUNERS, prune
from paring.slim.refit import Refit
from paring.slim.remote import Workers


@dataclass(frozen=True)
class Attempt:
    """One method at one keep.

    Attributes:
        label: for a reader: "rescaled", "nps magnitude".
        vector: what it keeps, in memory, as numbers before they are coded.
        num_bytes: of its file.
        scores: by split, of the values as the file holds them; empty without data.
        seconds: it took, scoring included.
        result: of its search; None: there was none.
        num_lost: of the values kept those that are zero in the file.
    """

    label: str
    vector: TaskVector
    num_bytes: int
    scores: Mapping[str, Scores] = field(default_factory=dict)
    seconds: float = 0.0
    result: Result | None = None
    num_lost: int = 0

    @property
    def num_kept(self) -> int:
        """Entries of the base's tensors that it changes."""
        return sum(self.vector.change(name).places.count for name in self.vector.names)


Plan = dict[str, Nps | Refit | None]  # label -> how to search or to refit; None: neither


def plan(settings: SlimSettings, method: str) -> Plan:
    """What a method tries, in the order in which equals win."""
    without = list(PRUNERS) if method == "auto" else [method] if method in PRUNERS else []
    found: Plan = dict.fromkeys(without)
    found |= {f"nps {how.subspaces}": how for how in settings.searches(method)}
    return found | settings.fits(method)


def attempt(
    label: str,
    how: Nps | Refit | None,
    vector: TaskVector,
    keep: float,
    settings: SlimSettings,
    problem: Problem | None,
    report: Callable[[Progress], None] | None = None,
    step: Callable[[int, float], None] | None = None,
) -> Attempt:
    """Prunes ``vector`` one way, and scores what comes of it on every split but test.

    Raises:
        DeltaError, ValueError: as ``prune``, ``prune_nps`` and ``prune_fitted``.
    """
    begun = time.perf_counter()
    result = None
    if how is None:
        pruned = prune(vector, label, keep, scope=settings.scope, seed=settings.seed).in_memory()
    elif isinstance(how, Refit):
        assert problem is not None
        pruned = prune_fitted(
            vector, problem.model, problem.lesson, keep, how, gradients=problem.gradients, report=step
        ).in_memory()
    else:
        assert problem is not None
        found = prune_nps(
            vector,
            problem.model,
            problem.objective,
            keep,
            how,
            settings.search_settings(),
            folder=None if settings.search is None else Path(settings.search) / folder_of(label, keep),
            problem={"calibration": problem.scorings["calibration"].digest, "objective": settings.objective},
            report=report,
            workers=_workers(settings, problem),
        )
        pruned, result = found.vector, found.result
    stored, size = as_stored(pruned, settings.values, settings.group)
    scores = problem.scores(stored, ("calibration", "validation")) if problem is not None else {}
    return Attempt(label, pruned, size, scores, time.perf_counter() - begun, result, _num_zeros(stored) - _num_zeros(pruned))


def _num_zeros(vector: TaskVector) -> int:
    return sum(int((vector.change(name).values == 0).sum()) for name in vector.names)


def folder_of(label: str, keep: float) -> str:
    """Where in the search's folder the journal of one search lies."""
    return f"{label.replace(' ', '-').replace('*', '-by-')}-keep-{keep:.12g}"


def choose(attempts: list[Attempt]) -> Attempt:
    """The best on validation rows (where there are none, on calibration rows) by the task's metric, then by the loss.

    Raises:
        SearchError: there is none.
    """
    if not attempts:
        raise SearchError("no method gave a score that is a number; look at the fine-tune's own scores on these rows")
    if not attempts[0].scores:
        return attempts[0]
    split = "validation" if "validation" in attempts[0].scores else "calibration"
    return min(attempts, key=lambda a: a.scores[split].rank)


def _workers(settings: SlimSettings, problem: Problem) -> Workers | None:
    if not settings.workers:
        return None
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = min(1.0, num_gpus / settings.workers)
    return Workers(
        problem.make, settings.workers, threads=max(1, torch.get_num_threads() // settings.workers), gpus_per_worker=gpus
    )


def summary(attempt: Attempt) -> dict[str, Any]:
    """Plain values for a report."""
    of_search: dict[str, Any] = {}
    if attempt.result is not None:
        of_search = {
            "num_evaluations": attempt.result.num_evaluations,
            "starts": attempt.result.start_scores,
            "score": attempt.result.score,
            "stopped_because": attempt.result.stopped_because,
            "history": [e.score for e in attempt.result.history],
        }
    return {
        "label": attempt.label,
        "num_kept": attempt.num_kept,
        "bytes": attempt.num_bytes,
        "seconds": attempt.seconds,
        "scores": {split: scores.as_dict() for split, scores in attempt.scores.items()},
        **of_search,
    }
