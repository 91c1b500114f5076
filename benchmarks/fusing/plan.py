"""What is measured, by worker processes of one thread, one for each set of fine-tunes; each finished line is stored at once."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from fusing.cells import Cell, measure, share
from fusing.merges import MERGES
from quality.groups import measured
from quality.store import Store

SEEDS = (0, 1, 2)


def cells(suite: str) -> list[list[Cell]]:
    """By set of fine-tunes."""
    return [[Cell(suite, seed, merge) for merge in ("joint", *MERGES)] for seed in SEEDS]


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
