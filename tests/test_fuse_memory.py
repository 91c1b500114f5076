"""Methods that work on whole matrices take about the memory that they say, and a dry run says it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from merges import family, write
from paring.fuse.engine import fuse
from paring.fuse.estimate import estimate
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
from paring.fuse.registry import METHODS, Inputs
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
    found.append([how.work_bytes(torch.Size(shape), given.parameters), status("VmHWM") - before])
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
        parameters = {p.name: p.default for p in how.parameters}
        assert (how.work_bytes(torch.Size((60, 40)), parameters) > 0) == (name in whole), name
        if name != "arcee_fusion":
            assert how.work_bytes(torch.Size((60,)), parameters) == 0


def test_a_dry_run_counts_a_matrix_for_each_thread(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)
    models = [{"model": p} for p in paths[1:]]
    path = write(tmp_path, {"merge_method": "tsv", "base_model": paths[0], "models": models})
    work = METHODS["tsv"].work_bytes
    largest, second = work(torch.Size((50, 24)), {}), work(torch.Size((50, 24)), {})  # embeddings and head
    plain = 2 * 50 * 24 * 4
    for threads, expected in ((1, largest), (2, largest + second)):
        found = estimate(path, tmp_path / "out", threads=threads)
        assert (found.work_bytes, found.held_bytes) == (expected, plain + expected)
        assert any("for whole matrices of all models" in line for line in found.lines())
    found = estimate(
        write(tmp_path, {"merge_method": "linear", "models": [m | {"parameters": {"weight": 1}} for m in models]}), "x"
    )
    assert found.work_bytes == 0 and not any("whole matrices" in line for line in found.lines())
    fuse(path, tmp_path / "out", threads=2)
