"""What is measured, by worker processes of one thread, one for each set of fine-tunes; each finished line is stored at once."""

import sys
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from fusing.cells import Cell, measure, share
from fusing.merges import MERGES
from quality.store import Store

SEEDS = (0, 1, 2)


def cells(suite: str) -> list[list[Cell]]:
    """By set of fine-tunes."""
    return [[Cell(suite, seed, merge) for merge in ("joint", *MERGES)] for seed in SEEDS]


def store(results: Path, suite: str) -> Store:
    return Store(results / f"fuse_quality_{suite}.jsonl")


def run(suite: str, kept: Store, workers: int, zoo: Path, results: Path, minutes: float | None) -> None:
    """Measures what is not stored; after ``minutes`` no set is begun, and none goes on to its next line."""
    begun = time.perf_counter()
    queue = [todo for group in cells(suite) if (todo := [c for c in group if c.key not in kept.cells])]
    context, running = get_context("spawn"), dict[Connection, Any]()
    until = None if minutes is None else time.time() + 60 * minutes
    try:
        while queue or running:
            while queue and len(running) < workers:
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(queue.pop(0), zoo, results, until, theirs), daemon=True)
                process.start()
                theirs.close()
                running[ours] = process
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                try:
                    cell = ready.recv()
                except EOFError:
                    process = running.pop(ready)
                    process.join()
                    if process.exitcode:
                        raise RuntimeError(f"a worker ended with {process.exitcode}; what it said stands above") from None
                    continue
                kept.add(cell)
                _say(cell, begun)
    finally:
        for process in running.values():
            process.terminate()


def _work(group: list[Cell], zoo: Path, results: Path, until: float | None, out: Connection) -> None:
    for cell in measure(group, zoo, results):
        out.send(cell)
        if until is not None and time.time() > until:
            return


def _say(cell: dict[str, Any], begun: float) -> None:
    print(
        f"{(time.perf_counter() - begun) / 60:5.1f} min  {cell['suite']:10} seed {cell['seed']} {cell['merge']:18} "
        f"test {100 * share(cell['test'], cell['own']):.1f} % of the fine-tunes, {cell['seconds']:.0f} s",
        flush=True,
        file=sys.stderr,
    )
