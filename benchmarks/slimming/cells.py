"""One measurement: a fine-tune pruned one way to one keep, scored on rows that played no part in it."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paring.delta.taskvector import TaskVector
from paring.search.settings import SearchSettings
from paring.slim.fitted import EXPONENT, prune_salient
from paring.slim.lost import as_stored
from paring.slim.nps import Nps, prune_nps
from paring.slim.pruners import PRUNERS, prune
from paring.slim.refit import FACTOR_RATE, Refit, refit
from paring.slim.saliency import saliency
from quality.store import versions
from slimming.finetunes import LESSON_ROWS, FineTune, fine_tune
from slimming.weights import weighted

BUDGET = 200  # evaluations of a search
CODED = ("fp16", "int8", "int4", "sign")
REVISION = 2  # raised when a change here, or in what is measured, makes older results incomparable
REFIT = 2  # the same for changes of the refit
RANKED = ("salient", "weights:", "fitted")  # methods that keep entries by saliency


def refit_identity() -> dict[str, Any]:
    """What the values of a refit depend on beside its rows."""
    return {name: getattr(Refit(), name) for name in ("steps", "rate", "mix")} | {"revision": REFIT}


@dataclass(frozen=True)
class Cell:
    """What is measured: ``method`` is one of ``TITLES`` on the fine-tune ``tuned`` ("full" or a slice's name); behind a stroke
    stands what it has otherwise than by default."""

    suite: str
    task: str
    tuned: str
    seed: int
    keep: float
    method: str

    @property
    def key(self) -> str:
        what = {**asdict(self), "revision": REVISION}
        if self.method.startswith("nps:"):
            what["budget"] = BUDGET
        if self.method.startswith(RANKED):
            what["exponent"] = EXPONENT
        if self.method.startswith("weights:"):
            what["rate"] = FACTOR_RATE
        if self.method.startswith(("fitted", "weights:")) or self.method.endswith("+refit"):
            what["refit"] = refit_identity()
            what["rows"] = LESSON_ROWS[self.suite]
        return blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=8).hexdigest()


TITLES = {
    "none": "fine-tune",
    "magnitude": "magnitude",
    "rescaled": "magnitude, rescaled",
    "dare": "DARE",
    "della": "DELLA",
    "nps:magnitude": "NPS, by magnitude (the paper's)",
    "nps:layer": "NPS, by layer",
    "nps:kind": "NPS, by kind",
    "nps:magnitude*kind": "NPS, by magnitude and kind",
    "nps:random": "NPS, random subspaces",
    "salient": "by saliency, no refit",
    "weights:kind": "by saliency, a weight for each kind",
    "weights:tensor": "by saliency, a weight for each tensor",
    "weights:magnitude*tensor": "by saliency, 8 weights for each tensor",
    "weights:row": "by saliency, a weight for each row",
    "magnitude+refit": "magnitude, refit",
    "dare+refit": "DARE, refit",
    "fitted": "fitted (by saliency, refit)",
    "fitted:int4": "fitted as int4",
    "fitted:sign": "fitted as sign",
    "rescaled/scope=tensor": "magnitude, rescaled, each tensor by itself",
    "nps:magnitude/parts=4": "NPS, by magnitude, M = 4",
    "nps:magnitude/parts=16": "NPS, by magnitude, M = 16",
    "nps:magnitude*kind/most=1.5": "NPS, by magnitude and kind, weights to 1.5 s",
    "nps:magnitude*kind/most=6": "NPS, by magnitude and kind, weights to 6 s",
    "nps:magnitude*kind/by=errors": "NPS, by magnitude and kind, searched by the errors",
    "nps:magnitude*kind/budget=320": "NPS, by magnitude and kind, 320 evaluations",
}


def measure(cells: Sequence[Cell], zoo: Path, results: Path) -> Iterator[dict[str, Any]]:
    """Cells of one fine-tune, which is loaded once."""
    torch.set_num_threads(1)
    first = cells[0]
    tune = fine_tune(first.suite, first.task, first.tuned, first.seed, zoo, results)
    gradients: dict[str, Tensor] | None = None
    for cell in cells:
        begun = time.perf_counter()
        if gradients is None and cell.method.startswith(RANKED):
            gradients = saliency(tune.vector, tune.model, tune.lesson)
            begun = time.perf_counter()
        pruned, evaluations = _pruned(tune, cell, gradients or {})
        out = {**asdict(cell), "key": cell.key, "seconds": time.perf_counter() - begun, "evaluations": evaluations}
        if "num_weights" in pruned.facts:
            out["num_weights"] = pruned.facts["num_weights"]
        out["versions"] = versions()
        for split in ("validation", "test"):
            out[split] = tune.accuracy(pruned, split)  # type: ignore[arg-type]
        with pruned.apply(tune.model):
            out["calibration_loss"] = tune.loss(tune.model)
        out["coded"] = _coded(tune, pruned, _kinds(cell.method))
        yield out


def _pruned(tune: FineTune, cell: Cell, gradients: dict[str, Tensor]) -> tuple[TaskVector, int]:
    """The pruned task vector, and how many times the calibration rows were scored for it."""
    name, _, varied = cell.method.partition("/")
    other = dict([varied.split("=")]) if varied else {}
    vector, (way, _, more) = tune.vector, name.partition("+")
    if cell.method == "none":
        return vector, 0
    if way.startswith("nps:"):
        how = Nps(way.removeprefix("nps:"), int(other.get("parts", Nps.parts)), float(other.get("most", Nps.most)))
        settings = SearchSettings(budget=int(other.get("budget", BUDGET)), seed=cell.seed)
        objective = tune.errors if "by" in other else tune.loss
        found = prune_nps(vector, tune.model, objective, cell.keep, how, settings)
        return found.vector, found.result.num_evaluations
    if way in PRUNERS:
        pruned = prune(vector, way, cell.keep, seed=cell.seed, scope=other.get("scope", "global")).in_memory()
    else:
        pruned = prune_salient(vector, cell.keep, gradients, EXPONENT)
    if way.startswith("weights:"):
        return weighted(pruned, vector, tune.model, tune.lesson, way.removeprefix("weights:"), Refit(seed=cell.seed)), 0
    if more or way.startswith("fitted"):
        values = way.partition(":")[2] or "fp32"
        return refit(pruned, vector, tune.model, tune.lesson, Refit(seed=cell.seed, values=values)).in_memory(), 0
    return pruned, 0


def _kinds(method: str) -> Sequence[str]:
    """The value types that are measured: of what has its values refitted, since that is what is stored small."""
    if method.startswith("fitted:"):
        return (method.partition(":")[2],)
    return CODED if method == "fitted" else ()


def _coded(tune: FineTune, pruned: TaskVector, kinds: Sequence[str]) -> dict[str, dict[str, float]]:
    """Bytes of the file and test accuracy of what comes back from it, by value type."""
    out = {}
    for kind in kinds:
        stored, num_bytes = as_stored(pruned, kind, 0)
        entries = sum(tune.vector.changes[n].shape.numel() for n in tune.vector.changes)
        head = sum(tune.vector.changes[n].shape.numel() for n in tune.vector.new)
        out[kind] = {
            "bytes": num_bytes,
            "bits_per_parameter": 8 * num_bytes / entries,
            "head_entries": head,
            "test": tune.accuracy(stored, "test"),
        }
    return out
