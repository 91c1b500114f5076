"""What is merged: the full fine-tunes, whole or pruned, or slices; what took a training or a search is kept in the zoo."""

from hashlib import blake2b
from json import dumps
from pathlib import Path

import paring
from fusing.merges import KEEP
from fusing.problem import Problem, task_vector
from paring.delta.taskvector import TaskVector
from paring.search.settings import SearchSettings
from paring.slim.fitted import prune_fitted
from paring.slim.nps import Nps, prune_nps
from paring.slim.pruners import prune
from paring.slim.refit import Refit
from slimming.cells import refit_identity

BUDGET = {"digits": 200, "docstrings": 60}  # evaluations of a search
SUBSPACES = "magnitude*kind"
SLICE = "static-column-r16"
REVISION = 1  # raised when a change here, or of a search, makes what is kept another


def task_vectors(about: Problem, front: str, zoo: Path, results: Path) -> dict[str, TaskVector]:
    """By task; ``front``: see ``fusing.merges.Merge``."""
    if front == "whole":
        return dict(about.vectors)
    if front in ("slices", "lanes"):
        names, count = {}, len(about.models)
        for i, task in enumerate(about.models):
            names[task] = SLICE if front == "slices" else f"lane-{i + 1}-of-{count}"
        return {
            task: task_vector(about.suite, task, name, about.seed, zoo, results, about.models[task], SLICE)
            for task, name in names.items()
        }
    return {task: _pruned(about, task, front, zoo) for task in about.vectors}


def _pruned(about: Problem, task: str, front: str, zoo: Path) -> TaskVector:
    vector, model = about.vectors[task], about.models[task]
    if front in ("magnitude", "dare"):
        return prune(vector, front, KEEP, seed=about.seed).in_memory()
    what = [about.suite, task, about.seed, front, KEEP, SUBSPACES, BUDGET[about.suite], vector.base.total, REVISION]
    if front == "fitted":
        what.append(refit_identity())
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
