"""Ways to tune a model, made ready for one step: slices, full fine-tuning, and every method that PEFT has.

The output head is frozen in all of them, so that what is counted is the method's own; a head trained beside it would add the
same to each. PEFT's methods are those that the installed version registers, each with its own defaults but for the rank (or the
number of virtual tokens), the target layers, and what it needs to run at all (``_NEEDS``).
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

from torch import nn

from paring.recipes.settings import Task
from paring.tune.config import SliceConfig
from paring.tune.session import SliceSession, sliced
from paring.tune.targets import Layer

OURS = ("row", "column", "recommended")
FULL = "full"
_TASK_TYPES: dict[Task, str | None] = {
    "text-classification": "SEQ_CLS",
    "causal-lm": "CAUSAL_LM",
    "image-classification": None,
}
_HEAD_COPY = "modules_to_save."
_TOTAL_STEPS = 100  # AdaLoRA plans its ranks over a run


@dataclass
class Tuning:
    """A model under a method.

    Attributes:
        model: takes the batch, returns an output with ``loss``.
        parameters: what an optimizer gets.
        by_layer: for every target layer the parameters that stand for it; empty where a method has none of its own there.
        num_trainable: entries trained in a step.
        session: of slices.
    """

    model: nn.Module
    parameters: list[nn.Parameter]
    by_layer: dict[str, list[nn.Parameter]]
    num_trainable: int
    session: SliceSession | None = None

    def close(self) -> None:
        if self.session:
            self.session.close()


def peft_methods() -> tuple[str, ...]:
    """Names of PEFT's methods, lower case, in the order of its registry; none where it is not installed."""
    if find_spec("peft") is None:
        return ()
    return tuple(kind.value.lower() for kind in _registry())


def prepare(method: str, model: nn.Module, layers: Sequence[Layer], task: Task, rank: int) -> Tuning:
    """A fresh model under a method.

    Args:
        method: of ``OURS``, ``FULL`` or ``peft_methods()``.
        model: changed from now on.
        layers: linear ones that are tuned.
        rank: of slices and adapters; number of virtual tokens.

    Raises:
        Exception: whatever PEFT raises where a method cannot tune such a model.
    """
    if method in OURS:
        return _slices(method, model, layers, rank)
    if method == FULL:
        model.requires_grad_(False)
        for layer in layers:
            layer.module.weight.requires_grad_(True)
        by_layer = {layer.name: [layer.module.weight] for layer in layers}
        return Tuning(model, _trained(model), by_layer, sum(p.numel() for p in _trained(model)))
    return _peft(method, model, layers, task, rank)


def _slices(method: str, model: nn.Module, layers: Sequence[Layer], rank: int) -> Tuning:
    names = tuple("re:" + re.escape(layer.name) for layer in layers)
    config = SliceConfig(rank=rank, modes=("row",), move_steps=None, targets=names, train_also=())
    if method == "column":
        config = SliceConfig(rank=rank, modes=("column",), move_steps=None, targets=names, train_also=())
    if method == "recommended":
        found = SliceConfig.recommended(model, _TOTAL_STEPS).config
        config = SliceConfig(
            rank=found.rank,
            modes=found.modes,
            move_steps=None,
            targets=names,
            exclude=tuple("re:" + re.escape(name) for name in found.exclude),
            layers=found.layers,
            train_also=(),
        )
    session = sliced(model, config, verbose=False).__enter__()
    parameters = session.parameters()
    chosen = session.selection.layers
    by_layer = {layer.name: [parameter] for layer, parameter in zip(chosen, parameters, strict=True)}
    return Tuning(model, parameters, by_layer, session.num_trainable, session)


def _peft(method: str, model: nn.Module, layers: Sequence[Layer], task: Task, rank: int) -> Tuning:
    import peft

    made = next(config for kind, config in _registry().items() if kind.value.lower() == method)
    wrapped = peft.get_peft_model(model, made(**_settings(method, made, model, layers, task, rank)))
    for name, parameter in wrapped.named_parameters():
        if _HEAD_COPY in name:  # PEFT trains a copy of a classifier that it knows by its name
            parameter.requires_grad_(False)
    by_layer: dict[str, list[nn.Parameter]] = {layer.name: [] for layer in layers}
    for name, parameter in wrapped.named_parameters():
        for layer in layers:
            if parameter.requires_grad and f".{layer.name}." in name:
                by_layer[layer.name].append(parameter)
    trained = _trained(wrapped)
    return Tuning(wrapped, trained, by_layer, sum(p.numel() for p in trained))


def _settings(method: str, made: Any, model: nn.Module, layers: Sequence[Layer], task: Task, rank: int) -> dict[str, Any]:
    known = {field.name for field in fields(made)}
    wanted: dict[str, Any] = {
        "r": rank,
        "rank": rank,
        "num_virtual_tokens": rank,
        "target_modules": [layer.name for layer in layers],
        "task_type": _TASK_TYPES[task],
    }
    wanted |= _NEEDS[method](model, layers, rank) if method in _NEEDS else {}
    return {name: value for name, value in wanted.items() if name in known}


Needs = Callable[[nn.Module, Sequence[Layer], int], dict[str, Any]]
_NEEDS: dict[str, Needs] = {
    "adalora": lambda model, layers, rank: {
        "init_r": rank,
        "target_r": max(rank // 2, 1),
        "total_step": _TOTAL_STEPS,
    },
    "c3a": lambda model, layers, rank: {"block_size": _common(layers, ("inp", "out"), 256)},
    "fourierft": lambda model, layers, rank: {"n_frequency": min(1000, _fewest(layers))},
    "ia3": lambda model, layers, rank: _ia3_layers(model, layers),
    "ln_tuning": lambda model, layers, rank: {
        "target_modules": [n for n, m in model.named_modules() if type(m).__name__.endswith("Norm") and hasattr(m, "weight")]
    },
    "oft": lambda model, layers, rank: {"r": 0, "oft_block_size": _common(layers, ("inp",), 32)},
    "road": lambda model, layers, rank: {"group_size": _common(layers, ("out",), 64)},
    "trainable_tokens": lambda model, layers, rank: {"target_modules": None, "token_indices": list(range(rank))},
    "vblora": lambda model, layers, rank: {"vector_length": _common(layers, ("inp", "out"), 256)},
    "waveft": lambda model, layers, rank: {"n_frequency": min(2592, _fewest(layers))},
}


def _common(layers: Sequence[Layer], extents: Sequence[str], most: int) -> int:
    """The largest power of two, at most ``most``, that divides the extents of all layers."""
    divisor = math.gcd(*(getattr(layer.matrix, extent) for layer in layers for extent in extents))
    return min(divisor & -divisor, most)


def _fewest(layers: Sequence[Layer]) -> int:
    """Entries of the smallest layer, less one."""
    return min(layer.matrix.out * layer.matrix.inp for layer in layers) - 1


def _ia3_layers(model: nn.Module, layers: Sequence[Layer]) -> dict[str, Any]:
    """Keys, values and the second layer of the MLP where PEFT knows the model, by its own defaults; else every layer, of which
    those that narrow scale their inputs, as the second of an MLP does."""
    from peft.utils import constants

    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind in constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
        return {"target_modules": None, "feedforward_modules": None}
    narrowing = [layer.name for layer in layers if layer.matrix.inp > layer.matrix.out]
    return {"feedforward_modules": narrowing}


def _registry() -> dict[Any, Any]:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return dict(PEFT_TYPE_TO_CONFIG_MAPPING)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]
