"""What is measured, the lines that decide first, one set of fine-tunes a worker process."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from fusing.cells import Cell, measure, share
from fusing.merges import MERGES
from quality.groups import measured
from quality.store import Store

SEEDS = (0, 1, 2)
DECISIVE = (  # what the goals name, the best without data, and the fit
    *("joint", "base", "average", "task_arithmetic", "ties", "dare_linear", "dare_ties", "consensus", "pcb", "tsv"),
    *("nps", "fit+heads", "fit", "emr"),
)
SCREENED = {"digits": SEEDS, "docstrings": (0,)}  # seeds of all other lines


def cells(suite: str) -> list[list[Cell]]:
    """By set of fine-tunes: the lines that decide of all sets, then the others."""
    others = [merge for merge in MERGES if merge not in DECISIVE]
    return [
        *([Cell(suite, seed, merge) for merge in DECISIVE] for seed in SEEDS),
        *([Cell(suite, seed, merge) for merge in others] for seed in SCREENED[suite]),
    ]


def store(results: Path, suite: str) -> Store:
    return Store(results / f"fuse_quality_{suite}.jsonl")


def run(suite: str, kept: Store, workers: int, zoo: Path, results: Path, minutes: float | None) -> None:
    """Measures what is not stored; after ``minutes`` no set is begun, and none goes on to its next line."""
    queue = [todo for group in cells(suite) if (todo := [c for c in group if c.key not in kept.cells])]
    measured(queue, partial(measure, zoo=zoo, results=results), kept, workers, minutes, _say)


def _say(cell: dict[str, Any], seconds: float) -> None:
    print(
        f"{seconds / 60:5.1f} min  {cell['suite']:10} seed {cell['seed']} {cell['merge']:18} "
        f"test {100 * share(cell['test'], cell['own']):.1f} % of the fine-tunes, {cell['seconds']:.0f} s",
        flush=True,
        file=sys.stderr,
    )
