"""Pruning by saliency, then new values for what is kept: what holds a task at the fewest entries.

    F = mean squared gradient on the way to the fine-tune       (``saliency``)
    keep the ceil(keep * n) entries of largest |tau| * (F + 0.1 * mean F of the tensor)^p
    tune their values until base + kept answers as base + tau   (``refit``)

In the terms of NPS-Pruning every entry that is kept is a subspace of its own, and its weight is found by gradient; CMA-ES can
search some tens. A search (``nps``) adds nothing to it, before the refit or after: docs/method.md has the numbers.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from paring.delta.errors import DeltaError
from paring.delta.taskvector import TaskVector
from paring.slim.lesson import Lesson
from paring.slim.nps import pruned_by
from paring.slim.pool import Pool
from paring.slim.pruners import check_keep, foreign, num_entries, num_kept
from paring.slim.refit import Refit, refit
from paring.slim.saliency import saliency
from paring.slim.subspaces import Subspaces

EXPONENT = 0.1
_REMEDY = "take calibration rows that the fine-tune answers, or a method without gradients (nps, rescaled)"
FLOOR = 0.1  # words that no calibration row has matter elsewhere: without it no entry of theirs is ever kept


def prune_salient(vector: TaskVector, keep: float, gradients: Mapping[str, Tensor], exponent: float = EXPONENT) -> TaskVector:
    """The ceil(keep * n) entries of largest |tau| * (F + FLOOR * mean F)^exponent, with the values they have.

    Args:
        vector: with its base at hand, where its differences are exact.
        keep: in (0, 1], see ``paring.slim.pruners``.
        gradients: F, what ``paring.slim.saliency`` found; where it has no tensor's, what |tau| is multiplied by is 1. Of a
            tensor that no row reached (F is zero everywhere) the mean is that over all tensors.
        exponent: p, at least 0; 0 is magnitude pruning.

    Raises:
        ValueError: keep, exponent. DeltaError: a gradient is not finite.
    """
    check_keep(keep)
    for name, f in gradients.items():
        if not bool(f.isfinite().all()):
            raise DeltaError(f"the gradients of '{name}' are not finite: how much its entries matter cannot be told; {_REMEDY}")
    if not exponent >= 0:
        raise ValueError(f"exponent is {exponent!r}; expected a number, at least 0")
    one = Subspaces(("all",), lambda name, tau: torch.zeros(tau.numel(), dtype=torch.int64))
    entries = sum(f.numel() for f in gradients.values())
    overall = sum(float(f.double().sum()) for f in gradients.values()) / max(entries, 1) or 1.0
    matters = {name: (f + FLOOR * (float(f.mean()) or overall)) ** exponent for name, f in gradients.items()}
    pool = Pool(vector, one, num_kept(keep, num_entries(vector)), matters)
    pruned = pruned_by(vector, pool, pool.select([1.0]))
    facts = {**foreign(vector.facts), "method": "salient", "keep": keep, "saliency": exponent}
    return TaskVector(pruned.changes, vector.base, vector.removed, facts)


def prune_fitted(
    vector: TaskVector,
    model: nn.Module,
    lesson: Lesson,
    keep: float,
    fit: Refit | None = None,
    exponent: float = EXPONENT,
    *,
    gradients: Mapping[str, Tensor] | None = None,
    report: Callable[[int, float], None] | None = None,
) -> TaskVector:
    """See above.

    Args:
        vector: with its base at hand, where its differences are exact.
        model: the base; in the end it is bitwise as it was. Takes the memory of three more models.
        lesson: the calibration rows, without labels, on the model's device.
        keep: in (0, 1], see ``paring.slim.pruners``.
        gradients: what ``saliency`` found, where that is at hand (it does not depend on ``keep``); None: found here.
        report: is told of every step of the refit, see ``refit``.

    Raises:
        ValueError: a setting. DeltaError: the model is another base, or the distance is no longer a number.
    """
    check_keep(keep)
    found = gradients if gradients is not None else saliency(vector, model, lesson)
    fitted = refit(prune_salient(vector, keep, found, exponent), vector, model, lesson, fit or Refit(), report)
    return TaskVector(fitted.changes, fitted.base, fitted.removed, {**fitted.facts, "method": "fitted"})
