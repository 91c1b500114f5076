"""Step times of the methods that are reported, interleaved: every round each method takes one step, in rotating order."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from quality.methods import METHODS, Tuning, optimizer, prepare
from quality.store import versions
from quality.tasks import SUITES, fresh_model, training_batches

ROUNDS, WARMUP = 24, 2


def measure(suite: str, methods: Sequence[str], results: Path) -> Path:
    """Times one step of each method on the suite's first task; writes ``tune_quality_{suite}_steps.json``.

    A layer window passes over all blocks within the rounds, so its time is a mean over its places.
    """
    path = results / f"tune_quality_{suite}_steps.json"
    task = SUITES[suite].tasks[0]
    tunings: dict[str, tuple[Tuning, Any]] = {}
    for name in methods:
        method = METHODS[name]
        if "window" in method.settings:
            method = replace(method, settings={**method.settings, "move_steps": 3})
        tuning = prepare(method, fresh_model(suite, task, 0), SUITES[suite].num_blocks)
        tunings[name] = tuning, optimizer(tuning, 1e-6)
    batches = training_batches(suite, task, 0)
    rounds: list[dict[str, float]] = []
    for index in range(WARMUP + ROUNDS):
        batch = next(batches)
        order = list(tunings)[index % len(tunings) :] + list(tunings)[: index % len(tunings)]
        times = {name: _step(*tunings[name], batch) for name in order}
        if index >= WARMUP:
            rounds.append(times)
    record = {"suite": suite, "task": task, "rounds": rounds, "versions": versions(), "cores": os.cpu_count()}
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def ratios(results: Path, suite: str, to: str = "lora-r8") -> dict[str, float]:
    """Time of a run beside ``to``'s: the median over the rounds, of a windowed method the ratio of the sums; {} unmeasured."""
    path = results / f"tune_quality_{suite}_steps.json"
    if not path.exists():
        return {}
    rounds = json.loads(path.read_text())["rounds"]
    return {
        name: sum(r[name] for r in rounds) / sum(r[to] for r in rounds)
        if "window" in METHODS[name].settings
        else median(r[name] / r[to] for r in rounds)
        for name in rounds[0]
    }


def _step(tuning: Tuning, train: Any, batch: dict[str, Any]) -> float:
    start = time.perf_counter()
    tuning.model(**batch).loss.backward()
    train.step()
    tuning.after_step(train)
    train.zero_grad()
    return time.perf_counter() - start
