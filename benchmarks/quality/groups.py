"""Groups of cells measured by worker processes, one group a process; each finished cell is stored at once."""

import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from quality.store import Store
from quality.workers import end_with_parent

Measured = dict[str, Any]
C = TypeVar("C")


def measured(
    groups: Sequence[Sequence[C]],
    measure: Callable[[Sequence[C]], Iterable[Measured]],
    kept: Store,
    workers: int,
    minutes: float | None,
    say: Callable[[Measured, float], None],
) -> None:
    """Measures groups in their order, ``workers`` at a time.

    Args:
        groups: of cells that share what is loaded. measure: gives one line for each cell of a group; both picklable.
        minutes: after these no group is begun, and none goes on to its next cell; None: all are measured.
        say: is told of each line that was stored, and the seconds since the beginning.

    Raises:
        RuntimeError: a worker failed; what is stored by then stays.
    """
    begun = time.perf_counter()
    queue, context, running = list(groups), get_context("spawn"), dict[Connection, Any]()
    until = None if minutes is None else time.time() + 60 * minutes
    try:
        while queue or running:
            while queue and len(running) < workers and (until is None or time.time() <= until):
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(queue.pop(0), measure, until, theirs), daemon=True)
                process.start()
                theirs.close()
                running[ours] = process
            if not running:
                return
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                try:
                    line = ready.recv()
                except EOFError:
                    process = running.pop(ready)
                    process.join()
                    if process.exitcode:
                        raise RuntimeError(f"a worker ended with {process.exitcode}; what it said stands above") from None
                    continue
                kept.add(line)
                say(line, time.perf_counter() - begun)
    finally:
        for process in running.values():
            process.terminate()


def _work(
    group: Sequence[Any], measure: Callable[[Sequence[Any]], Iterable[Measured]], until: float | None, out: Connection
) -> None:
    end_with_parent()
    for line in measure(group):
        out.send(line)
        if until is not None and time.time() > until:
            return
