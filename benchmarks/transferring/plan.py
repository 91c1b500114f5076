"""What is measured, the lines that decide first, one fine-tune a worker process."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from quality.groups import measured
from quality.store import Store
from quality.tasks import SUITES
from transferring.cells import Cell, measure

SEEDS = (0, 1, 2)
DECISIVE = ("base", "tuned", "whole", "magnitude", "rescaled", "dare", "nps")
# A joint search scores the rows of every task: on MiniLM four times as long as all other lines together.
FURTHER = {"digits": ("fitted", "joint"), "docstrings": ("fitted",)}
SCREENED = (0,)  # seeds of these


def groups(suite: str) -> list[list[Cell]]:
    """Cells of one fine-tune together: those that decide for all fine-tunes, then the others."""

    def of(lines: Sequence[str], seeds: Sequence[int]) -> list[list[Cell]]:
        return [[Cell(suite, task, seed, line) for line in lines] for seed in seeds for task in SUITES[suite].tasks]

    return [*of(DECISIVE, SEEDS), *(group for line in FURTHER[suite] for group in of((line,), SCREENED))]


def store(results: Path, suite: str) -> Store:
    return Store(results / f"transfer_{suite}.jsonl")


def run(suite: str, kept: Store, workers: int, zoo: Path, results: Path, minutes: float | None) -> None:
    """Measures what is not stored; after ``minutes`` no fine-tune is begun, and none goes on to its next line."""
    queue = [todo for group in groups(suite) if (todo := [c for c in group if c.key not in kept.cells])]
    measured(queue, partial(measure, zoo=zoo, results=results), kept, workers, minutes, _say)


def _say(cell: dict[str, Any], seconds: float) -> None:
    test = cell["test"]
    print(
        f"{seconds / 60:5.1f} min  {cell['task']:10} seed {cell['seed']} {cell['line']:10} lambda {cell['lambda']:.3g}: "
        f"H {test['h']:.3f} (tuned {test['tuned']:.3f}, original {test['original']:.3f}), {cell['seconds']:.0f} s",
        flush=True,
        file=sys.stderr,
    )
