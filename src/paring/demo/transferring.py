"""The way from the base to a full fine-tune, base + lambda * delta: what its task gains there, and what upright digits lose.

By the code of ``paring transfer``, whole and pruned; base and fine-tune have one head, which moves with the rest.
"""

from pathlib import Path
from typing import Any

from torch import nn

from paring.delta.files import load_delta
from paring.recipes.scoring import Batch, Scoring
from paring.recipes.transfer.methods import candidates
from paring.recipes.transfer.problem import TUNED, Problem, Side
from paring.recipes.transfer.report import Traced, best_place, record
from paring.recipes.transfer.settings import TransferSettings
from paring.tasks.digits import Shift, load_splits
from paring.tasks.digits.data import Examples

UPRIGHT = "upright"
_METHODS = ("whole", "magnitude", "nps")
_SPLITS = ("calibration", "validation", "test")
_ROWS = 256  # in a batch
_SHARE = 5  # a search has as many evaluations as a run has steps, over this


def transferred(model: nn.Module, shift: Shift, deltas: Path, steps: int, seed: int) -> dict[str, Any]:
    """What ``paring transfer --report`` writes of a full fine-tune as transfer.json, and the task's name; the model is bitwise
    as before.

    Args:
        model: the base. deltas: the folder of the fine-tune's file.
        steps: of a run of the demo, by which the search is as long or as short as these. seed: of the search.
    """
    vector = load_delta(deltas / f"{shift.name}-full.delta.safetensors", base=model).in_memory()
    tuned, upright = (_side(name, model, as_shown) for name, as_shown in ((TUNED, shift), (UPRIGHT, None)))
    about = Problem(vector, tuned, (upright,), ())
    budget = max(2, steps // _SHARE)
    settings = TransferSettings(methods=_METHODS, budget=budget, subspaces="magnitude*kind", seed=seed, batch_size=_ROWS)
    traced = []
    for candidate in candidates(_METHODS, about, settings, lambda _: None):
        places = about.trace(candidate.vector, settings.lambdas, "validation")
        best = best_place(places, candidate.method)
        traced.append(Traced(candidate, places, best, about.trace(candidate.vector, (best.lam,), "test")[0]))
    chosen = max(traced, key=lambda t: (t.best.point.h, t.best.point.likelihood))
    ends = {
        name: {split: about.trace(vector, (lam,), split)[0] for split in ("validation", "test")}
        for name, lam in (("base", 0.0), ("tuned", 1.0))
    }
    return {"task": shift.name, **record(about, traced, chosen, ends, settings)}


def _side(name: str, model: nn.Module, shift: Shift | None) -> Side:
    """One of the two tasks; None: upright digits."""
    splits = {split: examples if shift is None else shift(examples) for split, examples in load_splits().items()}
    return Side(name, model, {split: _scoring(splits[split]) for split in _SPLITS}, name)  # type: ignore[index]


def _scoring(examples: Examples) -> Scoring:
    pairs = zip(examples.images.split(_ROWS), examples.labels.split(_ROWS), strict=True)
    batches: list[Batch] = [{"pixel_values": images, "labels": labels} for images, labels in pairs]
    return Scoring("image-classification", batches, len(examples))
