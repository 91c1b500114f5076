"""Tiny models to merge, and configurations of merges."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from adapters import llama


def tuned(model: nn.Module, seed: int, size: float = 0.02) -> nn.Module:
    """A copy whose weights all differ a little."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn(p.shape, generator=generator) * size
    return model


def family(folder: Path, num: int = 2, base: nn.Module | None = None, **save: Any) -> list[str]:
    """A base and its fine-tunes on disk: their paths."""
    base = llama() if base is None else base
    paths = [folder / "base", *(folder / f"tuned{i}" for i in range(1, num + 1))]
    for i, path in enumerate(paths):
        (base if i == 0 else tuned(base, i)).save_pretrained(path, **save)
    return [str(path) for path in paths]


def write(folder: Path, config: Mapping[str, Any] | str) -> Path:
    path = folder / "merge.yml"
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(dict(config), sort_keys=False))
    return path


def weighted(paths: list[str], method: str = "task_arithmetic", **parameters: Any) -> dict[str, Any]:
    """The first path is the base; the others are merged with weights 0.5, 0.6 …"""
    models = [{"model": p, "parameters": {"weight": 0.5 + i / 10} | parameters} for i, p in enumerate(paths[1:])]
    return {"merge_method": method, "base_model": paths[0], "models": models}


def whole(folder: str | Path) -> dict[str, Tensor]:
    return {name: t for file in sorted(Path(folder).glob("*.safetensors")) for name, t in load_file(file).items()}


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def edit(folder: str | Path, **changes: Tensor | None) -> None:
    """Changes tensors of a checkpoint in one file; None removes one. Dots in names are written ``__``."""
    from safetensors.torch import save_file

    path = Path(folder) / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, path, {"format": "pt"})


def configure(folder: str | Path, **changes: Any) -> None:
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
