"""The flow of the demo: one pretrained model; five tasks, each tuned four ways and slim; all fused; the way to the first."""

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

import paring
from paring.demo.banking import banked
from paring.demo.conclusions import conclusions
from paring.demo.fusing import FOLDER, fused, refuse_foreign
from paring.demo.methods import METHODS, Method
from paring.demo.picture import picture
from paring.demo.runs import Job, each
from paring.demo.samples import as_text, samples
from paring.demo.slimming import KEEP, VALUES
from paring.demo.table import kept, table
from paring.demo.transferring import transferred
from paring.demo.tuning import TaskResults, on_task
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
    """Runs the demo: prints tables and what they show, writes ``demo.json``, ``demo.png``, a folder of deltas, one of the tasks
    fused into one model, and a page.

    Args:
        out: folder for these; made when missing, and asked for before anything is trained.
        seed: of the pretrained model and of every run.
        steps: optimizer steps of every run, of every refit and of the fit of the fused model.
        tasks: names of shifts; None: all five. Of one alone nothing is fused.
        pretraining_steps: optimizer steps of the pretraining, when the model is not in the cache.
        workers: parts at a time (a task, the fused model), each on one thread of a process of its own; the results are the
            same. With more than one, a script must call this under ``if __name__ == "__main__":``.

    Returns:
        What ``demo.json`` holds.

    Raises:
        ValueError: an unknown task, no steps, no workers. ImportError: an optional package is missing.
        FileExistsError: ``out`` is a file, or its folder of the fused model holds other files than a demo's.
    """
    start = time.perf_counter()
    for name, value in (("steps", steps), ("workers", workers)):
        if value < 1:
            raise ValueError(f"demo: {name} is {value}; expected at least 1")
    shifts = named_shifts(tasks)
    require("matplotlib", "the demo's picture")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    refuse_foreign(out / FOLDER)

    model, base = _base(seed, pretraining_steps)
    done, intact = _tuned(model, shifts, out / DELTAS, steps, seed, workers)
    ended, also_intact = _ended(model, shifts, out, steps, seed, workers)
    record: dict[str, Any] = {
        "settings": {"seed": seed, "steps": steps, "pretraining_steps": pretraining_steps},
        "splits": {name: len(examples) for name, examples in load_splits().items()},
        "base": base | {"bitwise_intact": intact and also_intact},
        **_results(shifts, done),
        "bank": banked(model, shifts, done, out / DELTAS),
        **ended,
        "versions": _versions(),
        "machine": {"platform": platform.platform(), "workers": workers},
        "seconds": time.perf_counter() - start,
    }
    _finish(record, shifts, out)
    print(f"All in {time.perf_counter() - start:.0f} s.")
    return record


def _base(seed: int, pretraining_steps: int) -> tuple[nn.Module, dict[str, Any]]:
    """The pretrained model, and what there is to say of it."""
    print("A small vision transformer, pretrained on upright digits (trained now unless it is in the cache) ...", flush=True)
    model = pretrained(seed, steps=pretraining_steps)
    test = load_splits()["test"]
    with one_thread():
        upright = accuracy(model, test.images, test.labels)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{size:,} weights, test accuracy {upright:.3f} on upright digits. Now tasks it has never seen:")
    return model, {"num_weights": size, "upright_test_accuracy": upright}


def _tuned(
    model: nn.Module, shifts: Sequence[Shift], deltas: Path, steps: int, seed: int, workers: int
) -> tuple[list[TaskResults], bool]:
    """The results of each task, and whether the model was bitwise the same after all of them."""
    jobs = [partial(on_task, shift=shift, deltas=deltas, steps=steps, seed=seed) for shift in shifts]
    done, intact = [], True
    for shift, (results, same) in zip(shifts, each(jobs, model, workers), strict=True):
        done.append(results)
        intact &= same
        print(f"  {shift.name}: {shift.summary}", flush=True)
    return done, intact


def _ended(
    model: nn.Module, shifts: Sequence[Shift], out: Path, steps: int, seed: int, workers: int
) -> tuple[dict[str, Any], bool]:
    """The tasks in one model, where there are several, and the path to the first; and whether the model was the same after."""
    jobs: dict[str, Job] = {}
    common: dict[str, Any] = {"deltas": out / DELTAS, "steps": steps, "seed": seed}
    if len(shifts) > 1:
        print(f"Now all {len(shifts)} in one model, and the way from the base to {shifts[0].name} ...", flush=True)
        jobs["fused"] = partial(fused, shifts=shifts, out=out, **common)
    else:
        print(f"There is one task, so nothing to fuse. Now the way from the base to {shifts[0].name} ...", flush=True)
    jobs["transfer"] = partial(transferred, shift=shifts[0], **common)
    found = dict(zip(jobs, each(list(jobs.values()), model, workers), strict=True))
    one = asdict(found["fused"][0]) if "fused" in found else None
    return {"fused": one, "transfer": found["transfer"][0]}, all(same for _, same in found.values())


def _results(shifts: Sequence[Shift], done: Sequence[TaskResults]) -> dict[str, Any]:
    return {
        "tasks": [
            {"name": s.name, "summary": s.summary, "untuned_test_accuracy": d.untuned_accuracy, "samples": _samples(s)}
            for s, d in zip(shifts, done, strict=True)
        ],
        "methods": [_described(method) for method in METHODS.values()],
        "results": [asdict(result) for d in done for result in d.results],
        "slim": {"keep": KEEP, "values": VALUES, "results": [asdict(d.slim) for d in done]},
    }


def _finish(record: dict[str, Any], shifts: Sequence[Shift], out: Path) -> None:
    """Prints what there is to say, and writes numbers, picture and page."""
    record["kept"] = kept(record)
    record["conclusions"] = conclusions(record)
    print("\n" + table(record) + "\n")
    print("\n".join(record["conclusions"]))
    write_bytes(out / "demo.json", (json.dumps(record, indent=2) + "\n").encode())
    write_bytes(out / "demo.png", picture(record, shifts))
    written = [out / "demo.json", out / "demo.png", f"{out / DELTAS}/", *([f"{out / FOLDER}/"] if record["fused"] else [])]
    print(f"Wrote {', '.join(map(str, written[:-1]))} and {written[-1]}.")
    print(f"Wrote {write_report(out, out / PAGE)}: the numbers as a page, to open in a browser.")


def _samples(shift: Shift) -> dict[str, list[str]]:
    before, shown, labels = samples(shift)
    return {"upright": as_text(before), "shown": as_text(shown), "labels": [str(int(label)) for label in labels]}


def _described(method: Method) -> dict[str, Any]:
    slices = method.config.as_dict() if method.config else None
    return {"name": method.name, "label": method.label, "rate": method.rate, "slices": slices}


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "scikit-learn", "safetensors", "numpy", "matplotlib")
    return {"paring": paring.__version__, "python": platform.python_version(), **{p: version(p) for p in packages}}
