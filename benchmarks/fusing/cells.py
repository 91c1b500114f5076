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

import paring
from fusing.joint import joint
from fusing.merges import KEEP, MERGES, Merge, Setting
from fusing.problem import TASKS, Problem, problem
from paring.delta.taskvector import TaskVector
from paring.fuse import emr
from paring.fuse.registry import METHODS
from paring.fusion.coefficients import Coefficients
from paring.fusion.held import hold
from paring.fusion.merging import Merging, same_for_all
from paring.fusion.searched import Objective, search_weights
from paring.search.settings import SearchSettings
from paring.slim.fitted import prune_fitted
from paring.slim.nps import Nps, prune_nps
from paring.slim.pruners import prune
from paring.slim.refit import Refit
from quality import tasks
from quality.store import versions

BUDGET = {"digits": 200, "docstrings": 60}  # evaluations of a search
SUBSPACES = "magnitude*kind"
REVISION = 1


@dataclass(frozen=True)
class Cell:
    """A line of ``MERGES``, or "joint", on the fine-tunes of one seed."""

    suite: str
    seed: int
    merge: str

    @property
    def key(self) -> str:
        what: dict[str, Any] = {**asdict(self), "tasks": TASKS[self.suite], "revision": REVISION}
        if self.merge != "joint":
            merge = MERGES[self.merge]
            what |= {"how": asdict(merge)}
            if merge.searched or merge.front in ("nps", "fitted"):
                what |= {"budget": BUDGET[self.suite], "subspaces": SUBSPACES, "keep": KEEP}
        return blake2b(dumps(what, sort_keys=True).encode(), digest_size=8).hexdigest()


def measure(cells: Sequence[Cell], zoo: Path, results: Path) -> Iterator[dict[str, Any]]:
    """Cells of one suite and seed, whose fine-tunes are loaded once."""
    torch.set_num_threads(1)
    about = problem(cells[0].suite, cells[0].seed, zoo, results)
    for cell in cells:
        begun = time.perf_counter()
        if cell.merge == "joint":
            found: dict[str, Any] = {"test": joint(cell.suite, cell.seed, zoo, results)}
        else:
            found = _merged(about, MERGES[cell.merge], zoo)
        out = {**asdict(cell), "key": cell.key, **found, "own": about.own["test"]}
        yield {**out, "seconds": time.perf_counter() - begun, "versions": versions()}


def share(found: Mapping[str, float], own: Mapping[str, float]) -> float:
    """Mean over tasks of the accuracy over the fine-tune's own."""
    return mean(found[task] / own[task] for task in own)


def _merged(about: Problem, merge: Merge, zoo: Path) -> dict[str, Any]:
    if merge.method == "emr":
        return _emr(about)
    vectors = _front(about, merge.front, zoo)
    how = METHODS["task_arithmetic" if merge.method == "base" else merge.method]
    parts = hold(about.parts(vectors))
    models = list(about.models.values())
    if merge.method == "base":
        tried: list[Setting] = [{"weight": 0.0}]
    elif merge.searched:
        tried = [{}]
    else:
        tried = list(merge.settings())
    best: tuple[float, Setting, dict[str, float]] | None = None
    for setting in tried:
        # A weight for each model where the method has one; the search replaces it.
        given = how.resolve({"weight": 1.0, **setting} if _weighted(how.name) else setting, [{} for _ in models])
        merging = Merging(models, parts, how, same_for_all(given), seed=about.seed)
        settings = same_for_all(given)
        chosen = dict(setting)
        if merge.searched:
            names = Coefficients(parts.tasks)
            found = search_weights(
                merging,
                names,
                _objective(about),
                settings,
                names.starts(how, given),
                SearchSettings(budget=BUDGET[about.suite], seed=about.seed),
            )
            settings, chosen = names.settings(found.x, how, settings), {"weights": list(found.x)}
        with merging:
            merging.to(settings)
            validation = about.accuracies("validation")
            score = share(validation, about.own["validation"])
            if best is None or score > best[0]:
                best = score, chosen, about.accuracies("test")
    assert best is not None
    return {"setting": best[1], "validation": best[0], "test": best[2], "tried": len(tried)}


def _weighted(name: str) -> bool:
    return any(p.name == "weight" for p in METHODS[name].parameters)


def _objective(about: Problem) -> Objective:
    """The mean over tasks of the likelihood on calibration rows over the fine-tune's own."""
    likelihoods, own = about.likelihoods(), {}
    for task, model in about.models.items():
        with about.vectors[task].apply(model):
            own[task] = likelihoods[task](model)
    return Objective(likelihoods, own)


def _front(about: Problem, front: str, zoo: Path) -> dict[str, TaskVector]:
    if front == "whole":
        return dict(about.vectors)
    return {task: _pruned(about, task, front, zoo) for task in about.vectors}


def _pruned(about: Problem, task: str, front: str, zoo: Path) -> TaskVector:
    """Kept in the zoo where it took a search or a refit."""
    vector, model = about.vectors[task], about.models[task]
    if front in ("magnitude", "dare"):
        return prune(vector, front, KEEP, seed=about.seed).in_memory()
    what = [about.suite, task, about.seed, front, KEEP, SUBSPACES, BUDGET[about.suite], vector.base.total, REVISION]
    key = blake2b(dumps(what).encode(), digest_size=8).hexdigest()
    path = zoo / f"{about.suite}-{task}-{front}-{about.seed}-{key}.delta.safetensors"
    if not path.exists():
        if front == "nps":
            settings = SearchSettings(budget=BUDGET[about.suite], seed=about.seed)
            made = prune_nps(vector, model, about.losses[task], KEEP, Nps(SUBSPACES), settings).vector
        else:
            made = prune_fitted(vector, model, about.lessons[task], KEEP, Refit(seed=about.seed))
        paring.save_delta(made, path, values="fp32")
    return paring.load_delta(path, base=model).in_memory()


def _emr(about: Problem) -> dict[str, Any]:
    """Each task's own model of the shared vector."""
    parts, models, how = hold(about.parts()), list(about.models.values()), METHODS["emr"]
    merging = Merging(models, parts, how, same_for_all(how.resolve({}, [{} for _ in models])))
    with merging:
        found = {name: emr.parts(merging.inputs(name, merging._settings(name))) for name in merging.names}
        scores: dict[str, dict[str, float]] = {"validation": {}, "test": {}}
        for i, (task, model) in enumerate(about.models.items()):
            scale = emr.scale([own[i] for _, own in found.values()])
            with torch.no_grad():
                for name, (shared, own) in found.items():
                    tensor = merging._tensors[name]
                    tensor.copy_(merging._base[name] + scale * own[i].mask(tensor.shape) * shared)
            for split in scores:
                scores[split][task] = tasks.accuracy(model, about.suite, task, split)  # type: ignore[arg-type]
    validation = share(scores["validation"], about.own["validation"])
    return {"setting": {}, "validation": validation, "test": scores["test"], "tried": 1}
