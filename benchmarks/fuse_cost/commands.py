"""``paring fuse`` and ``mergekit-yaml`` on a synthetic base and four fine-tunes, as whole processes, beside the raw floor.

A round takes the methods in an order of its own; for each it runs paring, measures the floor right after (every input byte
read into a buffer, an output as large written and synced), then runs mergekit, in the rounds that have it. Both are given the
same configuration file. Files are in the page cache; paring's memory of fingerprints is empty each time, so that it hashes
every input; mergekit is told to read tensors lazily and to write no model card.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from delta_cost import record
from delta_cost.checkpoints import SIZES, make
from delta_cost.floor import floor_s
from delta_cost.processes import Measured, measured
from delta_cost.record import Record
from paring.delta.checkpoint.read import open_checkpoint

NUM_TUNED = 4
# Parameters of each model, and of all.
METHODS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "linear": ({"weight": 0.25}, {}),
    "task_arithmetic": ({"weight": 0.25}, {}),
    "ties": ({"weight": 0.25, "density": 0.3}, {}),
    "dare_ties": ({"weight": 0.25, "density": 0.3}, {}),
    "breadcrumbs": ({"weight": 0.25, "density": 0.3}, {}),
    "della": ({"weight": 0.25, "density": 0.3}, {}),
    "sce": ({}, {"select_topk": 0.3}),
}
DRAWN = ("dare_ties", "della")
_PARING = """
import sys, time
print(time.monotonic(), flush=True)
from paring.cli.main import main
code = main(sys.argv[1:])
print(time.monotonic(), flush=True)
sys.exit(code)
"""
_MERGEKIT = """
import sys, time
print(time.monotonic(), flush=True)
from mergekit.scripts.run_yaml import main
main(sys.argv[1:], standalone_mode=False)
print(time.monotonic(), flush=True)
"""


def run(
    name: str, methods: Sequence[str], rounds: int, mergekit: Mapping[str, int], python: str, work: Path, path: Path
) -> Record:
    """Measures one size; its record is at ``path`` in the end.

    Args:
        mergekit: method -> in how many rounds mergekit runs, too.
        python: of an environment that has mergekit; "" where ``mergekit`` is empty.
    """
    size = SIZES[name]
    settings = {
        "size": name,
        "num_parameters": size.num_parameters,
        "largest_bytes": size.largest_bytes,
        "num_tuned": NUM_TUNED,
        "rounds": rounds,
        "methods": list(methods),
        "mergekit": dict(mergekit),
        "mergekit_versions": _versions(python) if mergekit else {},
    }
    rec = record.resume(path, record.new(f"fuse {name}", settings) | {"rounds": []})
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{name}: {size.num_parameters:,} parameters, a base and {NUM_TUNED} fine-tunes", flush=True)
    paths = make(folder, size, num_tuned=NUM_TUNED)
    for made in paths:
        (made / "config.json").write_text(json.dumps(_llama(name)))
    if not rec["rounds"]:
        one_method("linear", paths, folder, "")  # fills the page cache
    while len(rec["rounds"]) < rounds:
        number = len(rec["rounds"])
        order = random.Random(number).sample(list(methods), len(methods))
        found = {m: one_method(m, paths, folder, python if mergekit.get(m, 0) > number else "") for m in order}
        rec["rounds"].append(record.read_back({m: found[m] for m in methods}))
        record.save_partial(path, rec)
        print(f"{name}: round {number + 1} of {rounds}: {_line(rec['rounds'][-1])}", flush=True)
    return rec


def one_method(method: str, paths: Sequence[Path], folder: Path, python: str) -> Record:
    """What one merge took, here and (with ``python``) in mergekit."""
    config, ours, theirs = folder / f"{method}.yml", folder / "ours", folder / "theirs"
    config.write_text(json.dumps(configuration(method, paths)))  # JSON is YAML
    for out in (ours, theirs):
        shutil.rmtree(out, ignore_errors=True)
    os.sync()  # nobody else's bytes are on their way to the disk
    with tempfile.TemporaryDirectory() as cache:
        took = measured([sys.executable, "-c", _PARING, "fuse", str(config), str(ours)], {"PARING_CACHE": cache})
    inputs = [file for path in paths for file in sorted(path.glob("*.safetensors"))]
    num_bytes = sum(file.stat().st_size for file in ours.glob("*.safetensors"))
    os.sync()
    read_s, write_s = floor_s(inputs, folder / "floor", num_bytes)
    found: Record = {"paring": _whole(took), "floor_read_s": read_s, "floor_write_s": write_s, "output_bytes": num_bytes}
    found["input_bytes"] = sum(file.stat().st_size for file in inputs)
    if python:
        os.sync()
        options = ["--lazy-unpickle", "--no-write-model-card", "--no-copy-tokenizer", "--quiet"]
        found["mergekit"] = _whole(measured([python, "-c", _MERGEKIT, str(config), str(theirs), *options], {}))
        if method not in DRAWN:
            found["difference"] = difference(paths[0], ours, theirs)
    for out in (ours, theirs):
        shutil.rmtree(out, ignore_errors=True)
    return found


def configuration(method: str, paths: Sequence[Path]) -> dict[str, Any]:
    """A merge of the fine-tunes, ``paths[1:]``, of the base ``paths[0]``."""
    own, shared = METHODS[method]
    models = [{"model": str(path), "parameters": dict(own)} for path in paths[1:]]
    found: dict[str, Any] = {"merge_method": method, "models": models, "parameters": dict(shared), "dtype": "bfloat16"}
    return found if method == "linear" else found | {"base_model": str(paths[0])}


def difference(base: Path, ours: Path, theirs: Path) -> float:
    """Mean |ours - theirs|, in units of the mean |theirs - base|: mergekit rounds to bf16 in between."""
    apart = moved = 0.0
    with open_checkpoint(base) as b, open_checkpoint(ours) as a, open_checkpoint(theirs) as c:
        assert a.names == c.names, "not the same tensors"
        for name in a.names:
            first, second = a.tensor(name).float(), c.tensor(name).float()
            apart += float((first - second).abs().sum(dtype=torch.float64))
            moved += float((second - b.tensor(name).float()).abs().sum(dtype=torch.float64))
    return apart / moved


def _whole(took: Measured) -> dict[str, float]:
    """With start and end of the process."""
    return {"wall_s": took.around_s + took.work_s} | asdict(took)


def _llama(name: str) -> dict[str, Any]:
    """By which mergekit knows the architecture."""
    size = SIZES[name]
    heads = max(1, size.width // 64)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size.width,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": size.vocabulary,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }


def _versions(python: str) -> dict[str, str]:
    code = (
        "from importlib.metadata import version; import json; "
        "print(json.dumps({n: version(n) for n in ('mergekit', 'torch', 'transformers')}))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{python} has no mergekit: {done.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(done.stdout))


def _line(found: Record) -> str:
    parts = []
    for method, r in found.items():
        beside = f" (mergekit {r['mergekit']['wall_s']:.0f})" if "mergekit" in r else ""
        parts.append(f"{method} {r['paring']['wall_s']:.1f} s{beside}")
    return ", ".join(parts)
