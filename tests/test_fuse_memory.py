"""Methods that work on whole matrices take about the memory that they say, and a dry run says it."""

import json
import subprocess
import sys
import time
import weakref
from pathlib import Path
from threading import Lock

import pytest
import torch

import paring
from adapters import adapted, llama
from merges import family, write
from paring.fuse.engine import fuse
from paring.fuse.estimate import estimate
from paring.fuse.models import Read, Tuned
from paring.fuse.registry import METHODS

CASES = [
    ("tsv", (2048, 384), {}),
    ("tsv", (640, 640), {}),
    ("iso", (2048, 384), {}),
    ("iso", (384, 2048), {}),
    ("wudi", (2048, 512), {"steps": 3}),
    ("wudi", (256, 1024), {"steps": 3}),
    ("wudi", (640, 640), {"steps": 0}),
    ("arcee_fusion", (2048, 1024), {}),
]
MEASURE = """
import ctypes, json, sys, torch
import paring.fuse.inputs
from paring.fuse.registry import METHODS, Inputs
paring.fuse.inputs.PIECE = 1 << 17  # small beside the matrices
torch.set_num_threads(1)

def status(key):
    return next(int(l.split()[1]) << 10 for l in open("/proc/self/status") if l.startswith(key))

def inputs(how, shape, parameters):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator).mul_(0.02)
    models = [base + 1e-3 * torch.randn(shape, generator=generator) for _ in range(how.max_models or 4)]
    settings = how.resolve(parameters, [{}] * len(models))
    return Inputs("w", tuple(models), base, settings.parameters, settings.per_model)

found = []
for name, shape, parameters in json.loads(sys.argv[1]):
    how = METHODS[name]
    how(inputs(how, [32, 48], parameters))  # loads what is loaded once
    given, out = inputs(how, shape, parameters), torch.zeros(shape, dtype=torch.bfloat16)
    ctypes.CDLL(None).malloc_trim(0)
    open("/proc/self/clear_refs", "w").write("5")  # the peak is that from now on
    before = status("VmRSS")
    how(given, out)
    found.append([how.work_bytes(torch.Size(shape), given.parameters, given.per_model), status("VmHWM") - before])
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process can be begun anew on Linux alone")
def test_whole_matrices_take_what_they_say() -> None:
    run = subprocess.run([sys.executable, "-c", MEASURE, json.dumps(CASES)], check=True, capture_output=True, text=True)
    pieces = 8e6  # which stay in the cache
    for (name, shape, _), (said, took) in zip(CASES, json.loads(run.stdout), strict=True):
        assert 0.7 * took - pieces <= said <= 1.5 * took + pieces, f"{name} {shape}: said {said:,}, took {took:,}"


def test_methods_by_entry_hold_nothing() -> None:
    whole = {name for name, _, _ in CASES}
    for name, how in METHODS.items():
        parameters = {p.name: p.default for p in how.parameters}  # densities of 1: nothing is thinned
        own = [parameters] * 3
        assert (how.work_bytes(torch.Size((60, 40)), parameters, own) > 0) == (name in whole), name
        if name != "arcee_fusion":
            assert how.work_bytes(torch.Size((60,)), parameters, own) == 0
        if name not in whole:
            assert how.work_bytes(torch.Size((4, 6, 5, 5)), parameters, own) == 0


@pytest.mark.parametrize(
    ("name", "rescales"), [("dare_ties", True), ("della_linear", True), ("ties", False), ("breadcrumbs", False)]
)
def test_what_is_rescaled_holds_a_bit_an_entry_and_model(name: str, rescales: bool) -> None:
    how, shape = METHODS[name], torch.Size((60, 40))
    given = how.resolve({"density": 0.5, "weight": 1}, [{}, {}, {"density": 1.0}])
    assert how.work_bytes(shape, given.parameters, given.per_model) == (2 * 2400 // 8 if rescales else 0)
    given = how.resolve({"density": 0.5, "weight": 1, "rescale": not rescales}, [{}, {}, {"density": 1.0}])
    assert how.work_bytes(shape, given.parameters, given.per_model) == (0 if rescales else 2 * 2400 // 8)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process can be begun anew on Linux alone")
def test_ranks_along_dimension_1_hold_no_copy_of_a_tensor() -> None:
    shape = (16, 512, 40, 40)
    case = ("della", shape, {"weight": 1, "density": 0.5})
    run = subprocess.run([sys.executable, "-c", MEASURE, json.dumps([case])], check=True, capture_output=True, text=True)
    ((said, took),) = json.loads(run.stdout)
    assert said == 4 * torch.Size(shape).numel() // 8 and took < 4 * torch.Size(shape).numel(), f"took {took:,}"


@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_a_dry_run_of_adapters_alone(tmp_path: Path) -> None:
    """No model is a checkpoint; their bases are, and give the output its configuration and tokenizer, too."""
    paths = family(tmp_path, 1)
    (Path(paths[0]) / "tokenizer.json").write_text("{}")
    adapted(llama(), tmp_path / "adapter", target_modules=["q_proj"])
    models = [{"model": f"{paths[0]}+{tmp_path / 'adapter'}", "parameters": {"weight": 1.0}}]
    path = write(tmp_path, {"merge_method": "linear", "models": models})
    assert any(line.startswith("time ") for line in estimate(path, tmp_path / "out").lines())
    fuse(path, tmp_path / "out")
    assert {p.name for p in Path(paths[0]).iterdir()} <= {p.name for p in (tmp_path / "out").iterdir()}


def test_a_dry_run_of_models_that_must_change_different_entries(tmp_path: Path) -> None:
    paths = family(tmp_path, 3)
    path = write(tmp_path, {"merge_method": "disjoint", "base_model": paths[0], "models": [{"model": p} for p in paths[1:]]})
    assert estimate(path, tmp_path / "out").seconds > 0


@pytest.mark.parametrize("method", ["task_arithmetic", "emr"])
def test_a_dry_run_says_that_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    import shutil

    paths = family(tmp_path, 1)
    asked = {"merge_method": method, "base_model": paths[0], "models": [{"model": paths[1]}]}
    path = write(tmp_path, asked | ({"parameters": {"weight": 1}} if method != "emr" else {}))
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError, match=r"out takes [\d,]+ bytes, of which .* has 1,000 free; nothing was written"):
        estimate(path, tmp_path / "out")


def test_a_dry_run_counts_a_matrix_for_each_thread(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)
    models = [{"model": p} for p in paths[1:]]
    path = write(tmp_path, {"merge_method": "tsv", "base_model": paths[0], "models": models})
    work = METHODS["tsv"].work_bytes
    largest, second = work(torch.Size((50, 24)), {}, ()), work(torch.Size((50, 24)), {}, ())  # embeddings and head
    plain = 2 * 50 * 24 * 4
    for threads, expected in ((1, largest), (2, largest + second)):
        found = estimate(path, tmp_path / "out", threads=threads)
        assert (found.work_bytes, found.held_bytes) == (expected, plain + expected)
        assert any("of whole tensors for the method" in line for line in found.lines())
    found = estimate(
        write(tmp_path, {"merge_method": "linear", "models": [m | {"parameters": {"weight": 1}} for m in models]}), "x"
    )
    assert found.work_bytes == 0 and not any("of whole tensors for the method" in line for line in found.lines())
    fuse(path, tmp_path / "out", threads=2)


def test_thresholds_over_all_tensors_hold_no_more_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pcb ranks every model's entries by what all models say: of deltas, every thread decodes them all."""
    paths = family(tmp_path, 3)
    deltas = [str(tmp_path / f"{i}.delta.safetensors") for i in (1, 2, 3)]
    for path, delta in zip(paths[1:], deltas, strict=True):
        paring.save_delta(paring.diff(paths[0], path), delta)
    read, lock, now, most = Tuned.read, Lock(), [0], [0]

    def add(num_bytes: int) -> None:
        with lock:
            now[0] += num_bytes
            most[0] = max(most[0], now[0])

    def watched(model: Tuned, name: str) -> Read:
        found = read(model, name)
        add(found.tensor.nbytes)
        weakref.finalize(found.tensor, add, -found.tensor.nbytes)
        time.sleep(0.001)  # so that threads meet
        return found

    monkeypatch.setattr(Tuned, "read", watched)
    asked = {"merge_method": "pcb", "base_model": paths[0], "scope": "global", "models": [{"model": d} for d in deltas]}
    path = write(tmp_path, asked)
    largest = 50 * 24 * 4
    monkeypatch.setattr(Tuned, "held_bytes", lambda model, name: model.infos[name].nbytes)
    room = estimate(path, tmp_path / "out", threads=3).held_bytes
    assert room == 4 * largest  # an output, and a tensor of each model
    fuse(path, tmp_path / "out", threads=3)
    assert 2 * largest < most[0] <= room
