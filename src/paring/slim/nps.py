"""NPS-Pruning (Du et al. 2025, arXiv 2505.18713): search the weights of a task vector's subspaces, then prune by them.

    tau = sum_m q_m               cut into M subspaces (``subspaces``)
    tau_w = sum_m w_m q_m         re-weighted
    keep the ceil(keep * n) entries of largest |tau_w|, with their re-weighted values (``pool``)
    w: found by CMA-ES, scored on calibration data (``paring.search``)

The search is over x = w / s, where s restores the norm of tau when nothing is re-weighted; so x = 1 is rescaled magnitude
pruning and x = 1 / s plain magnitude pruning, and both are starting points: the result is never worse than either on the
calibration data. With random subspaces DARE is a starting point, too.

What goes beyond it, ranking by saliency and a refit of the values, is in ``fitted``.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from paring.delta.change import Change, wide
from paring.delta.errors import DeltaError
from paring.delta.places import Scattered
from paring.delta.sums import dot
from paring.delta.taskvector import TaskVector, ready
from paring.search.run import Progress, Result, search
from paring.search.settings import SearchSettings
from paring.slim.identity import digest
from paring.slim.placing import Placing
from paring.slim.pool import Pool, Selection
from paring.slim.pruners import check_keep, flats, foreign, num_entries, num_kept
from paring.slim.remote import Workers
from paring.slim.scoring import Objective, scorer
from paring.slim.subspaces import COUNTED, SUBSPACES, Subspaces

PARTS = 8


@dataclass(frozen=True)
class Nps:
    """How to search.

    Attributes:
        subspaces: how the task vector is cut, see ``paring.slim.subspaces``.
        parts: M, the number of subspaces; an upper bound for "layer"; of "kind" and "magnitude*kind" it follows from the kinds.
        most: the largest x = w / s; the least is 0.
        seed: of "random" subspaces.
    """

    subspaces: str = "magnitude*kind"
    parts: int = PARTS
    most: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.subspaces not in SUBSPACES:
            raise ValueError(f"subspaces is {self.subspaces!r}; expected one of {', '.join(SUBSPACES)}")
        if isinstance(self.parts, bool) or not isinstance(self.parts, int) or self.parts < 2:
            raise ValueError(f"parts is {self.parts!r}; expected a whole number, at least 2")
        if self.parts != PARTS and self.subspaces not in COUNTED:
            raise ValueError(
                f"parts is {self.parts}, and {self.subspaces!r} subspaces are as many as there are kinds; leave parts out, or "
                f"take subspaces {', '.join(map(repr, COUNTED))}"
            )
        if not (isinstance(self.most, int | float) and math.isfinite(self.most) and self.most > 1):
            raise ValueError(f"most is {self.most!r}; expected a number above 1")

    @property
    def identity(self) -> dict[str, Any]:
        """What scores depend on beside M, by which a journal is known again."""
        drawn = {"seed": self.seed} if self.subspaces == "random" else {}
        return {"subspaces": self.subspaces, "most": self.most, **drawn}


@dataclass(frozen=True)
class Slimmed:
    """What a search found.

    Attributes:
        vector: the pruned task vector.
        weights: w by subspace.
        result: of the search: scores, evaluations, why it stopped.
    """

    vector: TaskVector
    weights: Mapping[str, float]
    result: Result


def prune_nps(
    vector: TaskVector,
    model: nn.Module,
    objective: Objective,
    keep: float,
    how: Nps = Nps(),
    settings: SearchSettings | None = None,
    *,
    folder: str | Path | None = None,
    problem: Mapping[str, Any] | None = None,
    report: Callable[[Progress], None] | None = None,
    workers: Workers | None = None,
) -> Slimmed:
    """Prunes a task vector to ``keep`` by searched weights.

    Args:
        vector: with its base at hand, where its differences are exact.
        model: the base; candidates are put in place, scored and taken out, and in the end it is bitwise as it was.
        objective: a number for the model as it is, the lower the better (the loss on calibration data). NaN loses. It runs
            without gradients.
        keep: in (0, 1], see ``paring.slim.pruners``.
        folder: where the search keeps its journal, to go on after a kill; None: nowhere.
        problem: what else the scores depend on (hash of the calibration data); a journal with another is refused.
        report: is told of every evaluation.
        workers: who scores the candidates, each on a model of its own; None: this process, on ``model``.

    Raises:
        ValueError: a setting. DeltaError: the model is another base, the task vector is zero, or no score was a number.
    """
    cut, pool, scale = pooled(vector, keep, how)
    identity = {"base": vector.base.total, "delta": digest(vector), "keep": keep, **how.identity}

    with Placing(model, vector) as placing, ExitStack() as stack:
        score = scorer(placing, pool, scale, objective)
        result = search(
            score if workers is None else stack.enter_context(workers.executor(vector, pool, scale)),
            len(cut.names),
            starts(cut, how, scale, keep),
            bounded(settings, how, cut, scale, keep),
            folder=folder,
            problem={**identity, **(problem or {})},
            report=report,
        )
    weights = [x * scale for x in result.coefficients]
    pruned = pruned_by(vector, pool, pool.select(weights))
    by_name = dict(zip(cut.names, weights, strict=True))
    facts = {
        **foreign(vector.facts),
        "method": "nps",
        "keep": keep,
        "subspaces": how.subspaces,
        "weights": by_name,
        "search": {"score": result.score, "starts": dict(result.start_scores), "num_evaluations": result.num_evaluations},
    }
    return Slimmed(TaskVector(pruned.changes, vector.base, vector.removed, facts), by_name, result)


def pooled(vector: TaskVector, keep: float, how: Nps) -> tuple[Subspaces, Pool, float]:
    """The subspaces, the entries that candidates may keep, and s, by which coefficients x become weights; as ``prune_nps``."""
    check_keep(keep)
    count = num_kept(keep, num_entries(vector))
    cut = SUBSPACES[how.subspaces](vector, how.parts, keep, how.seed)
    nonzero = sum(int(tau.count_nonzero()) for _, tau in flats(vector))
    if not nonzero:
        raise DeltaError("the task vector is zero everywhere: there is nothing to keep")
    if len(cut.names) > nonzero:
        raise ValueError(f"{len(cut.names)} subspaces for {nonzero:,} entries that are not zero; expected no more")
    pool = Pool(vector, cut, count)
    return cut, pool, _restoring(vector, pool, cut)


def pruned_by(vector: TaskVector, pool: Pool, chosen: Selection) -> TaskVector:
    """A task vector with the entries that were chosen; new tensors travel along."""
    changes = {name: lazy for name, lazy in vector.changes.items() if lazy.kind == "new"}
    for name, positions, values in pool.split(chosen):
        lazy = vector.changes[name]
        changes[name] = ready(Change(lazy.shape, lazy.dtype, "real", Scattered(positions), values.to(wide(lazy.dtype))))
    return TaskVector(changes, vector.base, vector.removed, vector.facts)


def _restoring(vector: TaskVector, pool: Pool, cut: Subspaces) -> float:
    """By what the entries of largest magnitude have to be multiplied to have the norm of all."""
    left = pool.select([1.0] * len(cut.names)).values
    return vector.norm() / math.sqrt(dot(left, left))


def starts(cut: Subspaces, how: Nps, scale: float, keep: float) -> dict[str, list[float]]:
    """The coefficients x that a search begins with, by name."""
    m = len(cut.names)
    found = {"rescaled magnitude": [1.0] * m, "magnitude": [1.0 / scale] * m}
    if how.subspaces == "random":
        found["dare"] = [1.0 / (keep * scale)] + [0.0] * (m - 1)
    return found


def bounded(settings: SearchSettings | None, how: Nps, cut: Subspaces, scale: float, keep: float) -> SearchSettings:
    """The settings of a search, with the bounds of each x."""
    bounds = [(0.0, how.most)] * len(cut.names)
    if how.subspaces == "random":
        bounds[0] = (0.0, max(how.most, 1.5 / (keep * scale)))
    return replace(settings or SearchSettings(), bounds=tuple(bounds))
