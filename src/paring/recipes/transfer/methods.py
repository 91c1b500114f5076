"""The task vectors whose paths are compared: the whole one, and what each pruning leaves of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from paring.delta.taskvector import TaskVector
from paring.recipes.scoring import Objective
from paring.recipes.slim.progress import Lines
from paring.recipes.transfer.problem import Problem
from paring.recipes.transfer.settings import WHOLE, TransferSettings
from paring.search.run import Result
from paring.slim.fitted import prune_fitted
from paring.slim.lesson import Lesson
from paring.slim.nps import Slimmed, prune_nps
from paring.slim.pruners import prune
from paring.transfer.joint import prune_joint
from paring.transfer.scores import best


@dataclass(frozen=True)
class Candidate:
    """A task vector in memory; ``lam`` is the lambda that was searched with it, if one was."""

    method: str
    vector: TaskVector
    lam: float | None = None
    result: Result | None = None

    @property
    def num_kept(self) -> int:
        """Entries of the base's tensors that it changes."""
        return sum(self.vector.change(name).places.count for name in self.vector.names)


def candidates(
    methods: tuple[str, ...], about: Problem, settings: TransferSettings, say: Callable[[str], None]
) -> list[Candidate]:
    """One for each method, in their order."""
    of_loss, of_h = (Lines(goal, 1, settings.budget, say) for goal in (settings.objective, "H"))  # 1 - H is made small
    found: list[Candidate] = []
    slimmed: Slimmed | None = None
    for method in methods:
        if method == WHOLE:
            found.append(Candidate(WHOLE, about.vector))
        elif method == "nps":
            slimmed = _nps(about, settings, of_loss)
            found.append(Candidate("nps", slimmed.vector, result=slimmed.result))
        elif method == "fitted":
            lesson = Lesson(list(about.tuned.scorings["calibration"].batches))
            vector = prune_fitted(about.vector, about.tuned.model, lesson, settings.keep, settings.refit())
            found.append(Candidate("fitted", vector))
        elif method == "joint":
            found.append(_joint(about, settings, of_h, slimmed))
        else:
            found.append(Candidate(method, prune(about.vector, method, settings.keep, seed=settings.seed).in_memory()))
    return found


def _nps(about: Problem, settings: TransferSettings, lines: Lines) -> Slimmed:
    return prune_nps(
        about.vector,
        about.tuned.model,
        Objective(about.tuned.scorings["calibration"], settings.objective),
        settings.keep,
        settings.nps(),
        settings.search_settings(),
        folder=_folder(settings, "nps"),
        problem={"calibration": about.tuned.scorings["calibration"].digest, "objective": settings.objective},
        report=lines.of(f"nps, keep {settings.keep:g}"),
    )


def _joint(about: Problem, settings: TransferSettings, lines: Lines, slimmed: Slimmed | None) -> Candidate:
    """Begins where "nps" has ended, if it was asked for before, at the lambda that is best for that on the calibration rows."""
    also = {}
    if slimmed is not None:
        places = about.trace(slimmed.vector, settings.lambdas, "calibration")
        also["nps"] = (slimmed.weights, best([place.point for place in places]).lam)
    joint = prune_joint(
        about.vector,
        about.tuned.model,
        about.both(settings.objective),
        settings.keep,
        (settings.lambdas[0], settings.lambdas[-1]),
        settings.nps(),
        settings.search_settings(),
        also=also,
        folder=_folder(settings, "joint"),
        problem={
            "calibration": about.tuned.scorings["calibration"].digest,
            "originals": {side.name: side.scorings["calibration"].digest for side in about.originals},
            "objective": settings.objective,
        },
        report=lines.of(f"joint, keep {settings.keep:g}"),
    )
    return Candidate("joint", joint.vector, joint.lam, joint.result)


def _folder(settings: TransferSettings, method: str) -> Path | None:
    return None if settings.search is None else Path(settings.search) / method
