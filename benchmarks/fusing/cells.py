"""One line of the table on one set of fine-tunes: settings chosen on validation rows, the test rows scored with them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from json import dumps
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from fusing.fronts import BUDGET, SUBSPACES, task_vectors
from fusing.joint import joint
from fusing.merges import KEEP, MERGES, Merge, Setting
from fusing.problem import RATES, TASKS, Problem, problem
from paring.delta.taskvector import TaskVector
from paring.fuse import emr
from paring.fuse.method import Method
from paring.fuse.registry import METHODS
from paring.fusion.coefficients import Coefficients
from paring.fusion.fitting import Fit, fit
from paring.fusion.held import hold
from paring.fusion.merging import Merging, Settings, same_for_all
from paring.fusion.searched import Objective, search_weights
from paring.search.settings import SearchSettings
from quality import tasks
from quality.store import versions
from slimming.cells import refit_identity

REVISION = 1  # raised when a change here makes older results incomparable


@dataclass(frozen=True)
class Cell:
    """A line of ``MERGES``, or "joint", on the fine-tunes of one seed."""

    suite: str
    seed: int
    merge: str

    @property
    def key(self) -> str:
        what: dict[str, Any] = {**asdict(self), "tasks": TASKS[self.suite], "revision": REVISION}
        if rates := {task: rate for (suite, task, _), rate in RATES.items() if suite == self.suite}:
            what["rates"] = rates
        if self.merge != "joint":
            merge = MERGES[self.merge]
            what |= {"how": {k: v for k, v in asdict(merge).items() if k not in ("title", "heads")}}
            if merge.searched or merge.front in ("nps", "fitted"):
                what |= {"budget": BUDGET[self.suite], "subspaces": SUBSPACES, "keep": KEEP}
            if merge.searched:
                what |= {"by": "accuracy"}
            if merge.front == "fitted":
                what |= {"refit": refit_identity()}
            if merge.fitted:
                # As it was before heads could be tuned, so that such cells stand.
                what |= {"fit": {k: v for k, v in asdict(Fit()).items() if merge.heads or k != "head_rate"}}
        return blake2b(dumps(what, sort_keys=True).encode(), digest_size=8).hexdigest()


def measure(cells: Sequence[Cell], zoo: Path, results: Path) -> Iterator[dict[str, Any]]:
    """Cells of one suite and seed, whose fine-tunes are loaded once."""
    torch.set_num_threads(1)
    if len({(cell.suite, cell.seed) for cell in cells}) != 1:
        raise ValueError(f"{cells}: expected cells of one suite and seed, whose fine-tunes are loaded")
    about = problem(cells[0].suite, cells[0].seed, zoo, results)
    for cell in cells:
        begun = time.perf_counter()
        if cell.merge == "joint":
            found: dict[str, Any] = {"test": joint(cell.suite, cell.seed, zoo, results)}
        else:
            found = _merged(about, MERGES[cell.merge], zoo, results)
        out = {**asdict(cell), "key": cell.key, **found, "own": about.own["test"]}
        yield {**out, "seconds": time.perf_counter() - begun, "versions": versions()}


def share(found: Mapping[str, float], own: Mapping[str, float]) -> float:
    """Mean over tasks of the accuracy over the fine-tune's own."""
    return mean(found[task] / own[task] for task in own)


def _merged(about: Problem, merge: Merge, zoo: Path, results: Path) -> dict[str, Any]:
    if merge.method == "emr":
        return _emr(about)
    how = METHODS["task_arithmetic" if merge.method == "base" else merge.method]
    vectors = task_vectors(about, merge.front, zoo, results)
    parts = hold(about.parts(vectors))
    models = list(about.models.values())
    best: tuple[float, Setting, dict[str, float]] | None = None
    tried = _settings(merge, len(models))
    for setting in tried:
        # A weight for each model where the method has one; the search replaces it.
        given = how.resolve({"weight": 1.0, **setting} if _weighted(how) else setting, [{} for _ in models])
        settings, chosen = same_for_all(given), dict(setting)
        values: Mapping[str, Tensor] = {}
        heads: Mapping[str, Mapping[str, Tensor]] = {}
        merging = Merging(models, parts, how, settings, seed=about.seed)
        if merge.searched:
            names = Coefficients(parts.tasks)
            how_long = SearchSettings(budget=BUDGET[about.suite], seed=about.seed)
            found = search_weights(merging, names, _objective(about), settings, names.starts(how, given), how_long)
            settings, chosen = names.settings(found.x, how, settings), {"weights": list(found.x)}
        if merge.fitted:
            imitated = None if merge.front == "whole" else hold(about.parts())
            how_to = Fit(seed=about.seed) if merge.heads else Fit(seed=about.seed, head_rate=0.0)
            fitted = fit(merging, settings, about.lessons, how_to, tuned=imitated)
            values, heads, chosen = fitted.values, fitted.heads, {**chosen, "distance": list(fitted.distance)}
        with merging:
            merging.to(settings)
            merging.put(values, heads)
            score = share(about.accuracies("validation"), about.own["validation"])
            if best is None or score > best[0]:
                best = score, chosen, about.accuracies("test")
    assert best is not None
    alone = {} if merge.front == "whole" else {"alone": _alone(about, vectors)}
    return {"setting": best[1], "validation": best[0], "test": best[2], "tried": len(tried), **alone}


def _alone(about: Problem, vectors: Mapping[str, TaskVector]) -> dict[str, float]:
    """Test accuracy of what is merged, each by itself."""
    out = {}
    for task, model in about.models.items():
        with vectors[task].apply(model):
            out[task] = tasks.accuracy(model, about.suite, task, "test")
    return out


def _settings(merge: Merge, count: int) -> Sequence[Setting]:
    """What validation rows choose among."""
    if merge.method == "base":
        return [{"weight": 0.0}]
    if merge.fitted:
        return [{"weight": 1 / count}]  # of the average, which is tuned
    return [{}] if merge.searched else merge.settings()


def _weighted(how: Method) -> bool:
    return any(p.name == "weight" for p in how.parameters)


def _objective(about: Problem) -> Objective:
    """The mean over tasks of the accuracy on calibration rows over the fine-tune's own."""
    accuracies, own = about.calibrated(), {}
    for task, model in about.models.items():
        with about.vectors[task].apply(model):
            own[task] = accuracies[task](model)
    return Objective(accuracies, own)


def _emr(about: Problem) -> dict[str, Any]:
    """Each task's own model of the shared vector."""
    parts, models, how = hold(about.parts()), list(about.models.values()), METHODS["emr"]
    settings: Settings = same_for_all(how.resolve({}, [{} for _ in models]))
    merging = Merging(models, parts, how, settings)
    scores: dict[str, dict[str, float]] = {"validation": {}, "test": {}}
    with merging:
        found = {name: emr.parts(merging.inputs(name, settings(name))) for name in merging.names}
        for i, (task, model) in enumerate(about.models.items()):
            scale = emr.scale([own[i] for _, own in found.values()])
            for name, (shared, own) in found.items():
                base = merging.base(name)
                merging.put({name: base + scale * own[i].mask(base.shape) * shared})
            for split in scores:
                scores[split][task] = tasks.accuracy(model, about.suite, task, split, about.every(split))  # type: ignore[arg-type]
    validation = share(scores["validation"], about.own["validation"])
    return {"setting": {}, "validation": validation, "test": scores["test"], "tried": 1}
