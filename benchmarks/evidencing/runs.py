"""Probes side by side, each in a process of its own; what is finished is published at once."""

import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from evidencing import page
from evidencing.inputs import prepare
from evidencing.plan import PROBES, Probe
from evidencing.published import publish
from quality.workers import pool


def run(probes: Sequence[Probe], runs: Path, docs: Path, workers: int, minutes: float | None) -> list[str]:
    """Measures what is missing, in this order; the names of those that failed, which are said and left."""
    begun = time.perf_counter()
    places = prepare(probes, runs / "inputs")
    threads = max(1, (os.cpu_count() or 1) // workers)
    queue, failed, finished = list(probes), list[str](), 0
    with pool(workers, tasks_each=1) as processes:
        pending: dict[Future[str], Probe] = {}
        while queue or pending:
            late = minutes is not None and time.perf_counter() - begun > 60 * minutes
            while queue and len(pending) < workers and not late:
                probe = queue.pop(0)
                pending[processes.submit(measure, probe, *places[probe.name], runs / probe.name, threads)] = probe
            if not pending:
                break
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                probe = pending.pop(future)
                finished += 1
                at = f"{(time.perf_counter() - begun) / 60:.1f} min, {finished} of {len(probes)} probes"
                try:
                    said = future.result()
                    publish(runs / probe.name, docs / "evidence" / probe.name)
                except Exception as error:  # whatever a probe raises; the others go on
                    failed.append(probe.name)
                    _say(f"{at}: {probe.name} failed: {type(error).__name__}: {error}")
                    continue
                page.write(PROBES, docs)
                _say(f"{at}: {probe.name} {said}")
    if queue:
        _say(f"{len(queue)} probes are left for another time: {', '.join(probe.name for probe in queue)}")
    return failed


def measure(probe: Probe, model: str, data: str | None, out: Path, threads: int) -> str:
    """One probe; its verdict."""
    import torch

    from paring.probe import run

    torch.set_num_threads(threads)
    given: dict[str, Any] = dict(probe.settings)
    if data is not None:
        given["data"] = data
    result = run(probe.kind, model, out=out, say=lambda line: _say(f"[{probe.name}] {line}"), **given)
    return str(result.verdict.sentence)


def _say(line: str) -> None:
    print(line, flush=True, file=sys.stderr)
