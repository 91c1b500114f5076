"""What is measured, the decisive cells first, by worker processes of one thread each; each finished cell is stored at once."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from quality.groups import measured
from quality.store import Store
from quality.tasks import SUITES
from slimming.cells import TITLES, Cell, measure
from slimming.weights import CUTS

SEEDS = (0, 1, 2)
SLICE = "static-column-r16"
DATA_FREE = ("magnitude", "rescaled", "dare", "della")
SEARCHED = ("nps:magnitude", "nps:layer", "nps:kind", "nps:magnitude*kind", "nps:random")
BEST_SEARCH = "nps:magnitude*kind"  # by the first trials (docs/log.md); the other kinds are screened on one seed
CODED = ("fitted:int4", "fitted:sign")
ABLATIONS = ("salient", "magnitude+refit", "dare+refit")
WEIGHTS = tuple(f"weights:{cut}" for cut in CUTS)  # how many weights a task needs
VARIED = (  # the choices of NPS, one at a time; see docs/method.md
    *("rescaled/scope=tensor", "nps:magnitude/parts=4", "nps:magnitude/parts=16", "nps:magnitude*kind/most=1.5"),
    *("nps:magnitude*kind/most=6", "nps:magnitude*kind/by=errors", "nps:magnitude*kind/budget=320"),
)
VARIED_KEEPS = (0.04, 0.01)
KEEPS = {"digits": (0.1, 0.04, 0.01, 0.003), "docstrings": (0.01, 0.003)}


def groups(suite: str) -> list[list[Cell]]:
    """Cells of one fine-tune together: those that decide for all fine-tunes, then the others."""
    tasks, keeps = SUITES[suite].tasks, KEEPS[suite]
    every = [(task, seed) for seed in SEEDS for task in tasks]

    def of(task: str, seed: int, tuned: str, methods: Sequence[str], keeps: Sequence[float] = keeps) -> list[Cell]:
        whole = [Cell(suite, task, tuned, seed, 1.0, "none")]
        return whole + [Cell(suite, task, tuned, seed, keep, method) for method in methods for keep in keeps]

    if suite == "digits":
        return [
            *(of(task, seed, "full", (*DATA_FREE, "fitted")) for task, seed in every),
            *(of(task, seed, "full", (BEST_SEARCH,)) for task, seed in every),
            *(of(task, seed, SLICE, ("rescaled", "fitted")) for task, seed in every),
            *(of(task, 0, "full", (*ABLATIONS, *CODED)) for task in tasks),
            *(of(task, 0, "full", [m for m in SEARCHED if m != BEST_SEARCH]) for task in tasks),
            *(of(task, 0, "full", VARIED, VARIED_KEEPS) for task in tasks),
            *(of(task, 0, "full", WEIGHTS) for task in tasks),
        ]
    return [
        *(of(task, seed, "full", ("fitted",), keeps[:1]) for task, seed in every),
        *(of(task, seed, "full", ("fitted",), keeps[1:]) for task, seed in every),
        *(of(task, seed, "full", DATA_FREE) for task, seed in every),
        *(of(task, seed, "full", (BEST_SEARCH,)) for task, seed in every),
        *(of(task, 0, SLICE, ("rescaled", "fitted")) for task in tasks),
        of(tasks[0], 0, "full", CODED),
    ]


def store(results: Path, suite: str) -> Store:
    return Store(results / f"slim_{suite}.jsonl")


def run(suite: str, kept: Store, workers: int, zoo: Path, results: Path, minutes: float | None) -> None:
    """Measures what is not stored; after ``minutes`` no group is begun, and none goes on to its next cell."""
    # A fine-tune's own score is in the first of its groups.
    open_ = [[c for c in group if c.key not in kept.cells] for group in groups(suite)]
    queue, whole = [], set[str]()
    for todo in open_:
        if any(c.method != "none" for c in todo):
            queue.append([c for c in todo if c.key not in whole])
            whole |= {c.key for c in todo if c.method == "none"}
    left = sum(map(len, queue))

    def say(cell: dict[str, Any], seconds: float) -> None:
        nonlocal left
        left -= 1
        _say(cell, seconds, left)

    measured(queue, partial(measure, zoo=zoo, results=results), kept, workers, minutes, say)


def _say(cell: dict[str, Any], seconds: float, left: int) -> None:
    print(
        f"{seconds / 60:5.1f} min  {cell['task']:10} {cell['tuned']:18} seed {cell['seed']} "
        f"keep {cell['keep']:<6g} {TITLES[cell['method']]:34} test {cell['test']:.3f}, {cell['seconds']:.0f} s; {left} left",
        flush=True,
        file=sys.stderr,
    )
