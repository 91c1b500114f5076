"""The flow of the demo: one pretrained model, five tasks, four ways to tune it, each starting from the same weights."""

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import paring
from paring.demo.methods import METHODS, Method
from paring.demo.picture import picture
from paring.demo.table import conclusions, table
from paring.tasks.digits import Shift, accuracy, fit, load_splits, named_shifts, pretrained
from paring.tasks.digits.cache import digest
from paring.tasks.digits.vit import PRETRAINING_STEPS
from paring.tasks.extras import require
from paring.tasks.files import write_bytes


@dataclass(frozen=True)
class Result:
    """One way to tune on one task.

    Attributes:
        task, method: names.
        test_accuracy: after training, 0 to 1.
        curve: (optimizer steps taken, validation accuracy).
        num_trainable: entries trained at any one time.
        kept_bytes: what must be stored beside the base.
        seconds: of training, without scoring.
    """

    task: str
    method: str
    test_accuracy: float
    curve: tuple[tuple[int, float], ...]
    num_trainable: int
    kept_bytes: int
    seconds: float


def run(
    out: str | Path,
    *,
    seed: int = 0,
    steps: int = 300,
    tasks: Sequence[str] | None = None,
    pretraining_steps: int = PRETRAINING_STEPS,
) -> dict[str, Any]:
    """Runs the demo: prints a table and what it shows, writes ``demo.json`` and ``demo.png``.

    Args:
        out: folder for the two files; made when missing, and asked for before anything is trained.
        seed: of the pretrained model and of every run.
        steps: optimizer steps of every run.
        tasks: names of shifts; None: all five.
        pretraining_steps: optimizer steps of the pretraining, when the model is not in the cache.

    Returns:
        What ``demo.json`` holds.

    Raises:
        ValueError: an unknown task, or no steps. ImportError: an optional package is missing.
    """
    start = time.perf_counter()
    if steps < 1:
        raise ValueError(f"demo: steps is {steps}; expected at least 1")
    shifts = named_shifts(tasks)
    require("matplotlib", "the demo's picture")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)

    print("A small vision transformer, pretrained on upright digits (trained now unless it is in the cache) ...", flush=True)
    model = pretrained(seed, steps=pretraining_steps)
    test = load_splits()["test"]
    upright = accuracy(model, test.images, test.labels)
    base = digest(model.state_dict())
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{size:,} weights, test accuracy {upright:.3f} on upright digits. Now tasks it has never seen:")

    results: list[Result] = []
    untuned: dict[str, float] = {}
    for shift in shifts:
        print(f"  {shift.name}: {shift.summary} ...", flush=True)
        untuned[shift.name] = _score(model, shift)
        results += [_tune(model, shift, method, steps, seed) for method in METHODS.values()]
    intact = digest(model.state_dict()) == base

    record: dict[str, Any] = {
        "settings": {"seed": seed, "steps": steps, "pretraining_steps": pretraining_steps},
        "splits": {name: len(examples) for name, examples in load_splits().items()},
        "base": {"num_weights": size, "upright_test_accuracy": upright, "bitwise_intact": intact},
        "tasks": [{"name": s.name, "summary": s.summary, "untuned_test_accuracy": untuned[s.name]} for s in shifts],
        "methods": [_described(method) for method in METHODS.values()],
        "results": [asdict(result) for result in results],
        "versions": _versions(),
        "machine": {"platform": platform.platform(), "threads": torch.get_num_threads()},
        "seconds": time.perf_counter() - start,
    }
    record["conclusions"] = conclusions(record)
    print("\n" + table(record) + "\n")
    print("\n".join(record["conclusions"]))
    write_bytes(out / "demo.json", (json.dumps(record, indent=2) + "\n").encode())
    write_bytes(out / "demo.png", picture(record, shifts))
    print(f"Wrote {out / 'demo.json'} and {out / 'demo.png'}; {time.perf_counter() - start:.0f} s.")
    return record


def _tune(model: nn.Module, shift: Shift, method: Method, steps: int, seed: int) -> Result:
    """Tunes the model one way on one task, scores it, and puts it back."""
    splits = load_splits()
    train, validation = shift(splits["train"]), shift(splits["validation"])
    with method.prepare(model) as tuning:
        history = fit(
            model,
            tuning.parameters,
            train,
            steps=steps,
            rate=method.rate,
            seed=seed,
            after_step=tuning.after_step,
            watch=lambda: accuracy(model, validation.images, validation.labels),
        )
        return Result(
            task=shift.name,
            method=method.name,
            test_accuracy=_score(model, shift),
            curve=history.curve,
            num_trainable=tuning.num_trainable,
            kept_bytes=tuning.kept_bytes(),
            seconds=history.seconds,
        )


def _score(model: nn.Module, shift: Shift) -> float:
    test = shift(load_splits()["test"])
    return accuracy(model, test.images, test.labels)


def _described(method: Method) -> dict[str, Any]:
    slices = method.config.as_dict() if method.config else None
    return {"name": method.name, "label": method.label, "rate": method.rate, "slices": slices}


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "scikit-learn", "safetensors", "numpy", "matplotlib")
    return {"paring": paring.__version__, "python": platform.python_version(), **{p: version(p) for p in packages}}
