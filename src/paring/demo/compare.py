"""The flow of the demo: one pretrained model, five tasks, four ways to tune it, each starting from the same weights."""

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

import paring
from paring.bank import Bank
from paring.demo.methods import METHODS, Method
from paring.demo.picture import picture
from paring.demo.runs import TaskResults, score, tune_all
from paring.demo.samples import as_text, samples
from paring.demo.slimming import KEEP, VALUES
from paring.demo.table import conclusions, table
from paring.files import write_bytes
from paring.report import PAGE, write_report
from paring.tasks.digits import Shift, accuracy, load_splits, named_shifts, one_thread, pretrained
from paring.tasks.digits.vit import PRETRAINING_STEPS
from paring.tasks.extras import require

DELTAS = "deltas"


def run(
    out: str | Path,
    *,
    seed: int = 0,
    steps: int = 300,
    tasks: Sequence[str] | None = None,
    pretraining_steps: int = PRETRAINING_STEPS,
    workers: int = 1,
) -> dict[str, Any]:
    """Runs the demo: prints a table and what it shows, writes ``demo.json``, ``demo.png``, a folder of deltas and a page.

    Args:
        out: folder for these; made when missing, and asked for before anything is trained.
        seed: of the pretrained model and of every run.
        steps: optimizer steps of every run.
        tasks: names of shifts; None: all five.
        pretraining_steps: optimizer steps of the pretraining, when the model is not in the cache.
        workers: tasks tuned at a time, each on one thread of a process of its own; the results are the same. With more
            than one, a script must call this under ``if __name__ == "__main__":``.

    Returns:
        What ``demo.json`` holds.

    Raises:
        ValueError: an unknown task, no steps, no workers. ImportError: an optional package is missing.
    """
    start = time.perf_counter()
    if steps < 1:
        raise ValueError(f"demo: steps is {steps}; expected at least 1")
    if workers < 1:
        raise ValueError(f"demo: workers is {workers}; expected at least 1")
    shifts = named_shifts(tasks)
    require("matplotlib", "the demo's picture")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)

    print("A small vision transformer, pretrained on upright digits (trained now unless it is in the cache) ...", flush=True)
    model = pretrained(seed, steps=pretraining_steps)
    test = load_splits()["test"]
    with one_thread():
        upright = accuracy(model, test.images, test.labels)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{size:,} weights, test accuracy {upright:.3f} on upright digits. Now tasks it has never seen:")

    done: list[TaskResults] = []
    for shift, results in zip(shifts, tune_all(model, shifts, steps, seed, workers, out / DELTAS), strict=True):
        done.append(results)
        print(f"  {shift.name}: {shift.summary}", flush=True)

    record: dict[str, Any] = {
        "settings": {"seed": seed, "steps": steps, "pretraining_steps": pretraining_steps},
        "splits": {name: len(examples) for name, examples in load_splits().items()},
        "base": {"num_weights": size, "upright_test_accuracy": upright, "bitwise_intact": all(d.intact for d in done)},
        "tasks": [
            {"name": s.name, "summary": s.summary, "untuned_test_accuracy": d.untuned_accuracy, "samples": _samples(s)}
            for s, d in zip(shifts, done, strict=True)
        ],
        "methods": [_described(method) for method in METHODS.values()],
        "results": [asdict(result) for d in done for result in d.results],
        "slim": {"keep": KEEP, "values": VALUES, "results": [asdict(d.slim) for d in done]},
        "bank": _banked(model, shifts, done, out / DELTAS),
        "versions": _versions(),
        "machine": {"platform": platform.platform(), "workers": workers},
        "seconds": time.perf_counter() - start,
    }
    record["conclusions"] = conclusions(record)
    print("\n" + table(record) + "\n")
    print("\n".join(record["conclusions"]))
    write_bytes(out / "demo.json", (json.dumps(record, indent=2) + "\n").encode())
    write_bytes(out / "demo.png", picture(record, shifts))
    print(f"Wrote {out / 'demo.json'}, {out / 'demo.png'} and {out / DELTAS}/; {time.perf_counter() - start:.0f} s.")
    print(f"Wrote {write_report(out, out / PAGE)}: the numbers as a page, to open in a browser.")
    return record


def _banked(model: nn.Module, shifts: Sequence[Shift], done: Sequence[TaskResults], folder: Path) -> dict[str, Any]:
    """Every result once more, from its file: one model in memory, swapped from delta to delta."""
    of = [(one.delta, one.test_accuracy, s) for d, s in zip(done, shifts, strict=True) for one in d.results]
    of += [(d.slim.delta, d.slim.test_accuracy, s) for d, s in zip(done, shifts, strict=True)]
    results = {name: (reached, shift) for name, reached, shift in of}
    same, swaps = 0, []
    with Bank(model) as bank, one_thread():
        for name in results:
            bank.add(name, folder / f"{name}.delta.safetensors")
        for name, (reached, shift) in results.items():
            bank.activate(name)
            same += score(model, shift) == reached
        for name in results:  # now that all are in memory
            start = time.perf_counter()
            bank.activate(name)
            swaps.append(time.perf_counter() - start)
    checkpoint = sum(tensor.numel() * tensor.itemsize for tensor in model.state_dict().values())
    return {
        "num_deltas": len(results),
        "same_accuracy": same,
        "bytes": checkpoint + sum((folder / f"{name}.delta.safetensors").stat().st_size for name in results),
        "checkpoint_bytes": checkpoint * len(results),
        "median_swap_seconds": median(swaps),
    }


def _samples(shift: Shift) -> dict[str, list[str]]:
    before, shown, labels = samples(shift)
    return {"upright": as_text(before), "shown": as_text(shown), "labels": [str(int(label)) for label in labels]}


def _described(method: Method) -> dict[str, Any]:
    slices = method.config.as_dict() if method.config else None
    return {"name": method.name, "label": method.label, "rate": method.rate, "slices": slices}


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "scikit-learn", "safetensors", "numpy", "matplotlib")
    return {"paring": paring.__version__, "python": platform.python_version(), **{p: version(p) for p in packages}}
