"""A delta as a LoRA adapter of PEFT's: ``adapter_config.json``, ``adapter_model.safetensors`` and a model card.

Each difference becomes the nearest one of a given rank, ``W + scale B A`` with scale 1 (``lora_alpha`` = rank): by Eckart and
Young nothing of that rank is nearer in the Frobenius norm. What is lost of the energy ``||tau||^2`` is told, tensor by
tensor. LoRA: Hu et al. 2021, arXiv 2106.09685; the files: PEFT's ``save_pretrained``.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from paring.delta.change import unchanged
from paring.delta.errors import DeltaError
from paring.delta.taskvector import TaskVector
from paring.files import replacing_folder
from paring.neighbours.layers import Layers
from paring.neighbours.lowrank import Factors, nearest, own
from paring.neighbours.peft_card import adapter_card
from paring.neighbours.peft_plan import Plan, exact_pattern, plan

PREFIX = "base_model.model."
_FILES = ("adapter_model.safetensors", "adapter_config.json", "README.md")
_WHY_NOT = "the rest of the delta, without these, is written with --allow-lost (allow_lost=True)"


@dataclass(frozen=True)
class Exported:
    """An adapter that was written, and what it lacks.

    Attributes:
        folder: where it is.
        rank: the highest of its factors.
        lost: tensor -> the share of its energy that the adapter does not hold; 1 of those that it leaves out.
        left_out: tensor -> why nothing of it is in the adapter.
        total_lost: the share of the energy of all differences that is lost.
        tied: tensors that have an adapter under each of several names.
        modules_to_save: new modules, whole.
        num_bytes: of the adapter's weights.
    """

    folder: Path
    rank: int
    lost: Mapping[str, float]
    left_out: Mapping[str, str]
    total_lost: float
    tied: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    num_bytes: int


def export_peft(
    vector: TaskVector,
    out: str | Path,
    rank: int,
    *,
    model: nn.Module,
    base_name: str = "",
    allow_lost: bool = False,
    overwrite: bool = False,
    report: Callable[[str, Factors], None] = lambda name, factors: None,
) -> Exported:
    """Writes ``vector`` as a LoRA adapter that ``PeftModel.from_pretrained(base, out)`` loads.

    Args:
        vector: of which exact differences can be read as numbers (``load_delta(path, base=...)``).
        out: a new folder.
        rank: the highest of a factor; tensors of lower rank get lower ones.
        model: of the tuned model's class, by which modules are told apart; its values do not matter (``layers.skeleton``).
        base_name: the base's name in the adapter's configuration; by default where the delta's base was found.
        allow_lost: whether tensors that no LoRA can carry may be left out.
        overwrite: whether an old ``out`` is replaced.
        report: is told of each tensor's factors.

    Raises:
        DeltaError: ``vector`` changes tensors that a LoRA cannot carry or that ``model`` does not have, or none that it can;
            or its base is not at hand. FileExistsError: ``out`` is there. Nothing is written then.
        ValueError: the rank is less than 1.
    """
    if rank < 1:
        raise ValueError(f"rank: got {rank}; expected 1 or more")
    layers = Layers(model)
    changed = {n: c for n, c in vector.changes.items() if c.kind == "new" or not unchanged(c.load())}
    vector = TaskVector(changed, vector.base, vector.removed, vector.facts)
    parts = plan(vector, layers)
    if parts.left_out and not allow_lost:
        listed = [f"'{n}' ({why})" for n, why in parts.left_out.items()]
        more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
        raise DeltaError(f"a LoRA cannot carry {', '.join(listed[:5])}{more}; {_WHY_NOT}")
    tensors, ranks, energy = _factors(vector, parts, rank, layers, report)
    if not ranks:
        raise DeltaError("the delta changes no weight of a linear layer or an embedding: there is nothing for a LoRA to carry")
    for name in parts.left_out:
        if name in vector:
            total = _energy(vector[name])
            energy[name] = (0.0, total)
    for name, there in parts.saved.items():
        change = vector.change(name)
        tensors[PREFIX + there] = change.values.view(change.shape).clone()
    config = adapter_config(parts, ranks, layers, base_name or vector.base.origin)
    total = sum(whole for _, whole in energy.values())
    exported = Exported(
        Path(out),
        max(ranks.values()),
        {n: max(0.0, 1 - kept / whole) if whole else 0.0 for n, (kept, whole) in energy.items()},
        parts.left_out,
        max(0.0, 1 - sum(kept for kept, _ in energy.values()) / total) if total else 0.0,
        tuple(n for n, modules in parts.weights.items() if len(modules) > 1),
        parts.modules_to_save,
        sum(t.numel() * t.itemsize for t in tensors.values()),
    )
    with replacing_folder(Path(out), overwrite, ours=_FILES) as folder:
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / _FILES[0], {"format": "pt"})
        (folder / _FILES[1]).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        (folder / _FILES[2]).write_text(adapter_card(vector, exported, layers.called), "utf-8")
    return exported


def adapter_config(parts: Plan, ranks: Mapping[str, int], layers: Layers, base_name: str) -> dict[str, Any]:
    """What ``adapter_config.json`` says; ``ranks`` are by module."""
    rank = max(ranks.values())
    lower = {f"^{re.escape(m)}": r for m, r in ranks.items() if r != rank}
    alone = all(exact_pattern(m, layers) for m in ranks)
    return {
        "peft_type": "LORA",
        "task_type": parts.task_type,
        "base_model_name_or_path": base_name or None,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": lower,
        "alpha_pattern": lower,
        "target_modules": sorted(ranks) if alone else "|".join(re.escape(m) for m in sorted(ranks)),
        "modules_to_save": list(parts.modules_to_save) or None,
        "fan_in_fan_out": any(layers.modules[m] == "conv1d" for m in ranks),
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "inference_mode": True,
    } | ({"lora_bias": True} if parts.biases else {})


def _factors(
    vector: TaskVector, parts: Plan, rank: int, layers: Layers, report: Callable[[str, Factors], None]
) -> tuple[dict[str, Tensor], dict[str, int], dict[str, tuple[float, float]]]:
    """The adapter's tensors, the rank on each module, and of each difference the energy (kept, whole)."""
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    energy: dict[str, tuple[float, float]] = {}
    for name, modules in parts.weights.items():
        low = factors() if (factors := vector.changes[name].factors) else None
        found = own(low) if low and low.rank <= rank and not low.is_zero() else nearest(vector[name], rank)
        report(name, found)
        energy[name] = (found.kept, found.total)
        for module in modules if len(found.A) else ():
            ranks[module] = len(found.A)
            _put(tensors, module, layers, found.B, found.A)
    biases = {module: name for name, module in parts.biases.items()}
    for module in dict.fromkeys([*ranks, *biases] if biases else []):
        change = vector[biases[module]] if module in biases else torch.zeros(layers.tensors[f"{module}.bias"])
        if module in biases:
            energy[biases[module]] = (_energy(change),) * 2
        if module not in ranks:
            shape = layers.tensors[f"{module}.weight"]
            ranks[module] = 1
            _put(tensors, module, layers, torch.zeros(shape[0], 1), torch.zeros(1, shape[1]))
        tensors[f"{PREFIX}{module}.lora_B.bias"] = change.float()
    return tensors, ranks, energy


def _put(tensors: dict[str, Tensor], module: str, layers: Layers, B: Tensor, A: Tensor) -> None:
    """``B @ A`` in the shape of the module's weight, under the names and in the orientation that PEFT has for it."""
    kind = layers.modules[module]
    if kind == "embedding":  # (lora_embedding_B @ lora_embedding_A).T
        tensors[f"{PREFIX}{module}.lora_embedding_A"], tensors[f"{PREFIX}{module}.lora_embedding_B"] = B.T.clone(), A.T.clone()
        return
    B, A = (A.T, B.T) if kind == "conv1d" else (B, A)
    tensors[f"{PREFIX}{module}.lora_A.weight"], tensors[f"{PREFIX}{module}.lora_B.weight"] = A.clone(), B.clone()


def _energy(difference: Tensor) -> float:
    return float(difference.double().square().sum())
