"""Lambda and the weights of NPS-Pruning in one search, for a score of all tasks.

    theta(w, lambda) = theta_pre + lambda * (mask(w) * tau_w)      tau_w = sum_m w_m q_m, mask: its largest entries

NPS (``paring.slim.nps``) searches w for the tuned task alone, and lambda is chosen afterwards. Here a candidate is (x, lambda),
x = w / s as there, and its score may look at the original tasks too. Lambda scales what w has weighed, and a mask does not
depend on the scale of w: so a candidate is the selection by lambda * w, at the cost of one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from paring.delta.taskvector import TaskVector
from paring.search.run import Progress, Result, search
from paring.search.settings import SearchSettings
from paring.slim.identity import digest
from paring.slim.nps import Nps, bounded, pooled, pruned_by, starts
from paring.slim.placing import Placing
from paring.slim.scoring import Objective, scorer


@dataclass(frozen=True)
class Joint:
    """What a search found.

    Attributes:
        vector: the pruned task vector, at lambda 1.
        lam: lambda.
        weights: w by subspace.
        result: of the search; the last of its coefficients is lambda.
    """

    vector: TaskVector
    lam: float
    weights: Mapping[str, float]
    result: Result


def prune_joint(
    vector: TaskVector,
    model: nn.Module,
    objective: Objective,
    keep: float,
    within: tuple[float, float],
    how: Nps | None = None,
    settings: SearchSettings | None = None,
    *,
    also: Mapping[str, tuple[Mapping[str, float], float]] | None = None,
    folder: str | Path | None = None,
    problem: Mapping[str, Any] | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Joint:
    """Prunes a task vector to ``keep`` by weights that are searched together with lambda.

    Args:
        vector, model, keep, how, folder, problem, report: as ``paring.slim.nps.prune_nps``.
        objective: a number for the model as it is, the lower the better, such as 1 - H on calibration rows.
        within: the least and the highest lambda.
        also: further starts by name: weights by subspace (of ``prune_nps``) and a lambda. The result is never worse than them,
            nor than rescaled magnitude pruning at lambda 1 (or the end of ``within`` that is nearest to 1).

    Raises:
        ValueError: a setting, or ``within`` is no range. DeltaError: the model is another base, or the task vector is zero.
        SearchError: no score was a number.
    """
    how, (low, high) = how or Nps(), within
    if not low < high:
        raise ValueError(f"lambda is searched within {low:g} to {high:g}; expected a range: a low end below the high one")
    cut, pool, scale = pooled(vector, keep, how)
    first = {name: [*x, min(max(1.0, low), high)] for name, x in starts(cut, how, scale, keep).items()}
    for name, (weights, lam) in (also or {}).items():
        first[name] = [*(weights[part] / scale for part in cut.names), lam]
    of_weights = bounded(settings, how, cut, scale, keep)
    identity = {"base": vector.base.total, "delta": digest(vector), "keep": keep, **how.identity}

    with Placing(model, vector) as placing:
        by_weights = scorer(placing, pool, scale, objective)

        def score(coefficients: Sequence[float]) -> float:
            *x, lam = coefficients
            return by_weights([lam * v for v in x])

        result = search(
            score,
            len(cut.names) + 1,
            first,
            replace(of_weights, bounds=(*zip(*of_weights.limits(len(cut.names)), strict=True), (low, high))),
            folder=folder,
            problem={**identity, "within": [low, high], **(problem or {})},
            report=report,
        )
    *x, lam = result.coefficients
    found = dict(zip(cut.names, (v * scale for v in x), strict=True))
    pruned = pruned_by(vector, pool, pool.select(list(found.values())))
    facts = {
        **vector.facts,
        "method": "nps joint",
        "keep": keep,
        "subspaces": how.subspaces,
        "weights": found,
        "search": {"score": result.score, "starts": dict(result.start_scores), "num_evaluations": result.num_evaluations},
    }
    return Joint(TaskVector(pruned.changes, vector.base, vector.removed, facts), lam, found, result)
