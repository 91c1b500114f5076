"""Swaps of a bank against writing the same entries once: two deltas in turn on a model of MiniLM's shapes.

A swap takes the leaving delta off and puts the entering one on. The floor writes the leaving delta's entries and the entering
delta's, as they are, with what PyTorch has for it: ``index_copy_`` at positions, ``copy_`` into blocks. In every round each
takes its turn.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from paring.bank.bank import Bank
from paring.delta.base import base_of
from paring.delta.blocks import Rect
from paring.delta.change import exact_change
from paring.delta.places import Blocks, Places, Scattered
from paring.delta.sources import MemorySource
from paring.delta.taskvector import Lazy, TaskVector, ready

KEEP = 0.01
KINDS = ("blocks", "scattered")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Encoder(nn.Module):
    """The matrices of MiniLM: an embedding and six blocks; nothing is computed with them."""

    def __init__(self, vocabulary: int = 30522, width: int = 384, blocks: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        shapes = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
        self.layers = nn.ModuleList(nn.Linear(a, b) for _ in range(blocks) for a, b in shapes)


def run(rounds: int, tiny: bool = False) -> list[dict[str, Any]]:
    out = []
    for title, dtype in DTYPES.items():
        for kind in KINDS:
            torch.manual_seed(0)
            model = (Encoder(500, 32, 2) if tiny else Encoder()).to(dtype).requires_grad_(False)
            out.append({"weights": title, "places": kind, "keep": KEEP} | times(model, kind, rounds))
    return out


def times(model: nn.Module, kind: str, rounds: int) -> dict[str, Any]:
    """Seconds of swaps and of writing their entries once, and whether base and deltas came out bitwise."""
    base = {n: t.clone() for n, t in model.state_dict().items()}
    vectors = [task_vector(model, kind, seed) for seed in (1, 2)]
    bank = Bank(model)
    for name, vector in zip("ab", vectors, strict=True):
        bank.add(name, vector)
    for name in "abab":  # reads and prepares them
        bank.activate(name)
    write = writer(model, vectors)  # what is in `b` and in `a`, in turn the last
    found: dict[str, Any] = {"swap_s": [], "write_s": [], "num_entries": sum(_count(v) for v in vectors)}
    for i in range(2 * rounds):
        start_s = time.perf_counter()
        bank.activate("ab"[i % 2])
        found["swap_s"].append(time.perf_counter() - start_s)
        found["write_s"].append(write())
    bank.deactivate()
    found["same_bits"] = all(torch.equal(t, base[n]) for n, t in model.state_dict().items())
    bank.close()
    return found


def writer(model: nn.Module, vectors: list[TaskVector]) -> Callable[[], float]:
    """Writes the entries of all vectors into a copy of the model's tensors; returns the seconds."""
    tensors = {n: t.clone() for n, t in model.state_dict().items()}
    jobs: list[tuple[Tensor, Places, Tensor]] = []
    for vector in vectors:
        for name, change in vector.load_all():
            jobs.append((tensors[name], change.places, change.after(change.places.gather(tensors[name]), name)))
    prepared = [job for tensor, places, values in jobs for job in _prepared(tensor, places, values)]

    def write() -> float:
        start_s = time.perf_counter()
        for target, positions, values in prepared:
            if positions is None:
                target.copy_(values)
            else:
                target.index_copy_(0, positions, values)
        return time.perf_counter() - start_s

    return write


def _prepared(tensor: Tensor, places: Places, values: Tensor) -> list[tuple[Tensor, Tensor | None, Tensor]]:
    if isinstance(places, Scattered):
        return [(tensor.view(-1), places.positions, values)]
    assert isinstance(places, Blocks)
    pieces = values.split([r.shape[0] * r.shape[1] for r in places.rects])
    return [
        (tensor[r.row : r.row_stop, r.column : r.column_stop], None, piece.view(r.shape))
        for r, piece in zip(places.rects, pieces, strict=True)
    ]


def task_vector(model: nn.Module, kind: str, seed: int) -> TaskVector:
    """An exact change of ``KEEP`` of each matrix's entries: of a block of columns, or scattered."""
    random = torch.Generator().manual_seed(seed)
    changes: dict[str, Lazy] = {}
    for name, tensor in model.state_dict().items():
        if tensor.ndim < 2:
            continue
        places: Places
        if kind == "blocks":
            width = max(1, round(KEEP * tensor.shape[1]))
            start = int(torch.randint(tensor.shape[1] - width + 1, (), generator=random))
            places = Blocks((Rect(0, tensor.shape[0], start, start + width),))
        else:
            places = Scattered((torch.rand(tensor.numel(), generator=random) < KEEP).nonzero().view(-1))
        before = places.gather(tensor).clone()
        after = before + torch.randn(before.shape, generator=random).to(before.dtype) * 0.01
        changes[name] = ready(exact_change(before, after, places, tensor.shape))
    return TaskVector(changes, base_of(MemorySource(model)))


def _count(vector: TaskVector) -> int:
    return sum(change.places.count for _, change in vector.load_all())
