"""Which module of a model each tensor belongs to, and what kind of module it is; without the model's weights.

A delta knows names and shapes; whether ``[24, 24]`` is a linear layer's ``[out, in]``, a ``Conv1D``'s ``[in, out]`` or an
embedding's ``[entries, width]`` only the model's class says. It is built from ``config.json`` on PyTorch's meta device.
"""

import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from paring.delta.checkpoint.read import open_checkpoint
from paring.delta.errors import DeltaError
from paring.delta.taskvector import TaskVector

Kind = Literal["linear", "conv1d", "embedding", "other"]


def skeleton(config: Mapping[str, Any]) -> nn.Module:
    """The model that a ``config.json`` of transformers describes, without weights.

    Raises:
        DeltaError: it names no class, or one that transformers does not have (no code of a model's own is run).
        ImportError: transformers is not installed.
    """
    import transformers

    settings = dict(config)
    architectures = settings.get("architectures")
    called = architectures[0] if isinstance(architectures, list) and architectures else None
    kind = settings.pop("model_type", None)
    made = getattr(transformers, called, None) if isinstance(called, str) else None
    if not (isinstance(made, type) and issubclass(made, nn.Module) and isinstance(kind, str)):
        raise DeltaError(
            f"the configuration's model_type is {kind!r} and its architectures are {architectures!r}; expected those of a "
            f"class in transformers {transformers.__version__}"
        )
    try:
        with torch.device("meta"):
            return made(transformers.AutoConfig.for_model(kind, **settings))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DeltaError(f"the configuration of {called} is not one that transformers can read: {error}") from error


def read_config(folder: Path) -> dict[str, Any] | None:
    """``config.json`` in ``folder``; None without one.

    Raises:
        DeltaError: it is no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    return read_json(path)


def find_config(vector: TaskVector, delta: Path, given: str | None, base: str | None) -> dict[str, Any]:
    """The tuned model's configuration: in the folder ``given``, in the delta, beside its file, or else the base's.

    Raises:
        DeltaError: there is none anywhere.
    """
    if given is not None:
        found = read_config(Path(given))
        if found is None:
            raise DeltaError(f"there is no config.json in {given}")
        return found
    if isinstance(own := vector.facts.get("config"), dict):
        return own
    places = [delta if delta.is_dir() else delta.parent] + ([open_checkpoint(base).folder] if base else [])
    for folder in places:
        if found := read_config(folder):
            return found
    raise DeltaError(f"{delta} does not say what model it is for; give the folder of the tuned model's config.json by --config")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file. DeltaError: it is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DeltaError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise DeltaError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def kind_of(module: nn.Module) -> Kind:
    """What a module computes from its ``weight``; "other" also for a subclass with a ``forward`` of its own."""
    forward = type(module).forward
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "other"  # inside nn.MultiheadAttention, which reads its weight and never calls it
    if isinstance(module, nn.Linear) and forward is nn.Linear.forward:
        return "linear"
    if isinstance(module, nn.Embedding) and forward is nn.Embedding.forward:
        return "embedding"
    if type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils":
        return "conv1d"
    return "other"


class Layers:
    """The modules of a model and the names of its tensors.

    Attributes:
        called: the model's class.
        tensors: name -> shape, of all that it saves, a tied one under each of its names.
        modules: name -> kind, of all modules but the model itself.
        takes_ids: whether it is called with token ids.
        encoder_decoder: whether its configuration says that it is both.
    """

    def __init__(self, model: nn.Module) -> None:
        self.called = type(model).__name__
        state = model.state_dict(keep_vars=True)
        self.tensors = {n: t.shape for n, t in state.items()}
        self.modules = {n: kind_of(m) for n, m in model.named_modules(remove_duplicate=False) if n}
        self.takes_ids = "input_ids" in signature(type(model).forward).parameters
        self.encoder_decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        groups: dict[int, list[str]] = {}
        for name, tensor in state.items():
            groups.setdefault(id(tensor), []).append(name)
        self._tied = {name: tuple(group) for group in groups.values() for name in group}

    def names_of(self, name: str) -> tuple[str, ...]:
        """All names of the tensor ``name``: more than one where it is tied."""
        return self._tied.get(name, (name,))

    def kind(self, name: str) -> Kind:
        """Of the module whose ``weight`` or ``bias`` the tensor is; "other" for other tensors."""
        module, _, last = name.rpartition(".")
        return self.modules.get(module, "other") if last in ("weight", "bias") else "other"

    def inside(self, module: str) -> set[str]:
        """The names of all tensors of a module and those in it."""
        return {n for n in self.tensors if n.startswith(module + ".")}
