"""Subspaces of a task vector: a label for every entry, by which NPS re-weights it (Du et al. 2025, arXiv 2505.18713).

    magnitude        the paper's: entries ranked by magnitude and cut into M equal parts, the largest first
    layer            blocks of layers (``encoder.layer.3``), everything outside of blocks together; at most M, neighbours joined
    kind             attention / MLP / norm / embedding / bias / other, by name and shape
    magnitude*kind   each kind cut into parts by magnitude: all entries of rank above keep, above 4 keep, and the rest
    random           M random parts, the first as large as what is kept: the weights (1 / keep, 0, 0 ...) are DARE

A subspace is a function from a tensor's name and its flat magnitudes to labels; what it needs to know of the whole task vector
(thresholds) is found in one streamed reading before.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paring.delta.taskvector import TaskVector
from paring.slim.histogram import Threshold, patterns, thresholds
from paring.slim.pruners import flats, generator, num_entries, num_kept

Label = Callable[[str, Tensor], Tensor]
COUNTED = ("magnitude", "layer", "random")  # those whose number is asked for
KINDS = ("attention", "mlp", "norm", "embedding", "bias", "other")


@dataclass(frozen=True)
class Subspaces:
    """How a task vector is cut.

    Attributes:
        names: of the subspaces; their number is M.
        label: for a tensor's name and its flat difference, the index of each entry's subspace (int64).
    """

    names: tuple[str, ...]
    label: Label


def kind_of(name: str, shape: Sequence[int]) -> str:
    """What a tensor is for, by its name and shape."""
    parts = name.lower()
    if re.search(r"embed|wte|wpe|cls_token", parts):
        return "norm" if re.search(r"norm|ln", parts.rsplit(".", 2)[-2] if "." in parts else "") else "embedding"
    if re.search(r"norm|\bln_?\w*\.|\.ln", parts):
        return "norm"
    if len(shape) < 2:
        return "bias"
    if re.search(r"attn|attention|query|key|value|[qkvo]_proj", parts):
        return "attention"
    if re.search(r"mlp|ffn|intermediate|output\.dense|fc\d?|gate|up_proj|down_proj|dense|experts", parts):
        return "mlp"
    return "other"


def by_magnitude(vector: TaskVector, parts: int, keep: float, seed: int) -> Subspaces:
    n = num_entries(vector)
    if parts > n:
        raise ValueError(f"{parts} subspaces of {n:,} entries; expected no more subspaces than entries")
    at = _at(vector, [round(n * i / parts) for i in range(1, parts)])
    return Subspaces(tuple(f"magnitude {i}" for i in range(parts)), lambda name, tau: _rank(tau, at))


def by_layer(vector: TaskVector, parts: int, keep: float, seed: int) -> Subspaces:
    found = {name: match[1] if (match := re.match(r"(.*?\.\d+)(?=\.|$)", name)) else "" for name in vector.names}
    layers = list(dict.fromkeys(found.values()))
    size = -(-len(layers) // parts)  # neighbours share a weight where there are more layers than that
    index = {layer: i // size for i, layer in enumerate(layers)}
    names = [layers[i] or "outside" for i in range(0, len(layers), size)]
    return Subspaces(tuple(names), lambda name, tau: torch.full((tau.numel(),), index[found[name]], dtype=torch.int64))


def by_kind(vector: TaskVector, parts: int, keep: float, seed: int) -> Subspaces:
    kinds, index = _kinds(vector)
    return Subspaces(tuple(kinds), lambda name, tau: torch.full((tau.numel(),), index[name], dtype=torch.int64))


def by_magnitude_and_kind(vector: TaskVector, parts: int, keep: float, seed: int) -> Subspaces:
    kinds, index = _kinds(vector)
    n = num_entries(vector)
    at = _at(vector, [num_kept(min(1.0, share), n) for share in (keep, 4 * keep)])
    names = tuple(f"{kind} {i}" for kind in kinds for i in range(len(at) + 1))
    return Subspaces(names, lambda name, tau: index[name] * (len(at) + 1) + _rank(tau, at))


def by_chance(vector: TaskVector, parts: int, keep: float, seed: int) -> Subspaces:
    share = torch.tensor([keep] + [(1 - keep) / (parts - 1)] * (parts - 1), dtype=torch.float64)
    ends = share.cumsum(0)[:-1].contiguous()

    def label(name: str, tau: Tensor) -> Tensor:
        n = tau.numel()
        places = torch.randperm(n, generator=generator(seed, name)).double().add_(0.5) / n
        return torch.searchsorted(ends, places)

    return Subspaces(tuple(f"random {i}" for i in range(parts)), label)


Cut = Callable[[TaskVector, int, float, int], Subspaces]  # of a task vector, M, keep, and a seed where it draws
SUBSPACES: dict[str, Cut] = {
    "magnitude": by_magnitude,
    "layer": by_layer,
    "kind": by_kind,
    "magnitude*kind": by_magnitude_and_kind,
    "random": by_chance,
}


def _kinds(vector: TaskVector) -> tuple[list[str], dict[str, int]]:
    of = {name: kind_of(name, vector.changes[name].shape) for name in vector.names}
    kinds = [kind for kind in KINDS if kind in of.values()]
    return kinds, {name: kinds.index(kind) for name, kind in of.items()}


def _at(vector: TaskVector, counts: Sequence[int]) -> list[Threshold]:
    return thresholds(lambda: ((None, tau) for _, tau in flats(vector)), 1, [(0, count) for count in counts])


def _rank(tau: Tensor, at: Sequence[Threshold]) -> Tensor:
    """How many thresholds an entry's magnitude is below: 0 is the largest part. Ties go to the larger part."""
    p = patterns(tau)
    return torch.from_numpy(sum((p < t.pattern).astype(np.int64) for t in at) + np.zeros(p.size, np.int64))
