"""Worker processes that end when the process that began them does, however that ended."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from threading import Thread


def pool(count: int, tasks_each: int | None = None) -> ProcessPoolExecutor:
    """Of fresh processes. ``tasks_each``: after so many a worker is replaced; None: never."""
    spawn = get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=spawn, initializer=end_with_parent, max_tasks_per_child=tasks_each)


def end_with_parent() -> None:
    """To be called in a worker: without it, that of a killed parent goes on to the end of its work, which nobody takes."""
    parent = parent_process()
    if parent is not None:
        Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
