"""What is run: rates by a walk with one seed (screen), then the methods that matter with three (confirm).

Cells run in worker processes, one thread each; each finished cell is stored at once.
"""

import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from statistics import mean
from typing import Any

from quality import workers
from quality.methods import LANES, METHODS
from quality.runs import Cell, run
from quality.store import Store
from quality.tasks import SUITES, Suite
from quality.walk import best_rate, start

SEEDS = (0, 1, 2)
# Confirmed whatever the screen says; beside them NUM_BEST slices: the best that train no more entries than LoRA.
CONFIRMED = {
    "digits": (
        *("full", "head", "lora-r8", "lora-r8-upper", "shira-r8", "miss-r8"),
        *("static-column-r16", "column-r16", "static-column-r5"),
    ),
    "docstrings": ("full", "lora-r8", "lora-r8-upper", "static-column-r16", "column-r16", "static-column-r31-upper"),
}
NUM_BEST = {"digits": 2, "docstrings": 1}
# MiniLM is for the decisive cells: what the digits leave open.
TEXT_ONLY = (
    *("static-column-r31-upper", "static-column-r32-upper"),
    *("column-r16-carried", "column-r16-eased", "column-r16-stride", "column-r31-upper"),
)
SCREENED = {
    "digits": tuple(name for name in METHODS if name not in (*TEXT_ONLY, *LANES)),
    "docstrings": (
        *("full", "head", "lora-r8", "lora-r8-upper", "miss-r8", "static-column-r5", "static-column-r16", "column-r16"),
        *("both-r5", "static-column-r31-upper", "static-column-r32-upper", "column-r16-window"),
    ),
}
# Why moving loses on MiniLM: what changes when a slice stays longer, begins otherwise, goes elsewhere. One seed, two tasks.
MOVING = (
    *("static-column-r16", "column-r16", "column-r16-carried", "column-r16-eased", "column-r16-n100", "column-r16-n50"),
    *("column-r31-upper", "column-r16-random", "column-r16-stride"),
)
MOVING_TASKS = ("module", "kind")
MOVING_CONFIRMED = ("static-column-r16", "column-r16-n100")  # on all tasks, with three seeds
MOVING_RATE = 5e-3  # the static slice's; a rate of its own, found on one task, may be wrong on the other


class Runner:
    """Runs cells that are not stored yet.

    Args:
        store: of the suite.
        workers: processes, one thread each.
        zoo: where what was learnt is kept.
    """

    def __init__(self, suite: Suite, store: Store, workers: int, zoo: Path | None) -> None:
        self.suite, self.store = suite, store
        self._workers, self._zoo = workers, zoo

    def screen(self, methods: Sequence[str]) -> dict[str, float]:
        """The rate of each method; runs what its walk asks for."""
        begun = time.perf_counter()
        with self._pool() as pool:
            pending: dict[Future[dict[str, Any]], str] = {}
            wanted = {name: self._submit(pool, pending, self._wanted(name)) for name in methods}
            while pending:
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    self._take(future, pending, begun)
                for name in methods:
                    if not wanted[name] & set(pending.values()):
                        wanted[name] = self._submit(pool, pending, self._wanted(name))
        return {name: self.rate(name) for name in methods}

    def confirm(
        self,
        methods: Sequence[str],
        tasks: Sequence[str] | None = None,
        seeds: Sequence[int] = SEEDS,
        rate: float | None = None,
    ) -> None:
        """All tasks, three seeds, at the rates found (or those tasks, seeds and that rate); kept in the zoo."""
        tasks = tasks or self.suite.tasks
        cells = [self.cell(task, name, rate or self.rate(name), seed) for seed in seeds for name in methods for task in tasks]
        begun = time.perf_counter()
        with self._pool() as pool:
            pending: dict[Future[dict[str, Any]], str] = {}
            self._submit(pool, pending, cells, self._zoo)
            while pending:
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    self._take(future, pending, begun)

    def rate(self, method: str) -> float:
        """The rate the walk ended at; raises KeyError before it has."""
        index, _ = best_rate(len(self.suite.rates), self._start(method), lambda i: self.score(method, i))
        if index is None:
            raise KeyError(f"the rate of {method} is not known yet")
        return self.suite.rates[index]

    def score(self, method: str, index: int) -> float | None:
        """Validation accuracy at one rate, the mean over the screened tasks; None before all of them are stored."""
        cells = [self.store.cells.get(c.key) for c in self._screening_cells(method, index)]
        return None if None in cells else mean(c["validation"] for c in cells if c)

    def best_score(self, method: str) -> float:
        return self.score(method, self.suite.rates.index(self.rate(method))) or 0.0

    def to_confirm(self, screened: Sequence[str]) -> tuple[str, ...]:
        """Peers, the settings always shown, and the best slices on the screen with no more entries than LoRA."""

        def num_trainable(name: str) -> int:
            cells = self._screening_cells(name, self.suite.rates.index(self.rate(name)))
            return int(self.store.cells[cells[0].key]["num_trainable"])

        limit = num_trainable("lora-r8")
        slices = [n for n in screened if METHODS[n].kind == "slices" and num_trainable(n) <= limit]
        best = sorted(slices, key=self.best_score, reverse=True)[: NUM_BEST[self.suite.name]]
        names = [n for n in (*CONFIRMED[self.suite.name], *best) if n in screened]
        return tuple(dict.fromkeys(names))

    def _wanted(self, method: str) -> list[Cell]:
        _, indices = best_rate(len(self.suite.rates), self._start(method), lambda i: self.score(method, i))
        return [cell for i in indices for cell in self._screening_cells(method, i)]

    def _screening_cells(self, method: str, index: int) -> list[Cell]:
        return [self.cell(task, method, self.suite.rates[index], SEEDS[0]) for task in self.suite.screened]

    def _start(self, method: str) -> int:
        return start(self.suite.rates, METHODS[method].guess)

    def cell(self, task: str, method: str, rate: float, seed: int) -> Cell:
        return Cell(self.suite.name, task, method, rate, seed, self.suite.num_steps)

    def _pool(self) -> ProcessPoolExecutor:
        return workers.pool(self._workers)

    def _submit(
        self,
        pool: ProcessPoolExecutor,
        pending: dict[Future[dict[str, Any]], str],
        cells: list[Cell],
        zoo: Path | None = None,
    ) -> set[str]:
        todo = [c for c in cells if c.key not in self.store.cells and c.key not in pending.values()]
        for cell in todo:
            pending[pool.submit(run, cell, zoo)] = cell.key
        return {c.key for c in cells if c.key not in self.store.cells}

    def _take(self, future: Future[dict[str, Any]], pending: dict[Future[dict[str, Any]], str], begun: float) -> None:
        del pending[future]
        cell = future.result()
        self.store.add(cell)
        print(
            f"{(time.perf_counter() - begun) / 60:5.1f} min  {cell['task']:10} {cell['method']:28} rate {cell['rate']:<7g} "
            f"seed {cell['seed']}: validation {cell['validation']:.3f}, {cell['seconds']:.0f} s; {len(pending)} in line",
            flush=True,
            file=sys.stderr,
        )


def runner(suite: str, results: Path, workers: int, zoo: Path | None) -> Runner:
    """The runner of a suite, with what is stored in ``results``."""
    return Runner(SUITES[suite], Store(results / f"tune_quality_{suite}.jsonl"), workers, zoo)
