"""The methods compared, each of which turns a plain model into one that is tuned its way.

All train the same head whole, all use the same optimizer, and those with a rank use the same one. Adapters go into
every linear layer of the backbone; slices into every layer that paring slices by default, which are the same, and in
ViT also the convolution that cuts the patches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from cost.models import Family

if TYPE_CHECKING:
    from paring import SliceSession

RANK = 8
MOVE_STEPS = 100  # optimizer steps between two moves of a slice; more than the rounds, so moves are timed apart
NUM_WINDOWS = 3


@dataclass
class Tuning:
    """A model made ready by one method.

    Attributes:
        model: takes the batch, returns an output with ``loss``.
        parameters: what is trained.
        optimizer: over ``parameters``.
        session: of paring's methods.
    """

    model: nn.Module
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    session: "SliceSession | None" = None

    @property
    def num_trainable(self) -> int:
        """Entries trained in one step."""
        return self.session.num_trainable if self.session else sum(p.numel() for p in self.parameters)

    def close(self) -> None:
        if self.session:
            self.session.close()


Prepare = Callable[[nn.Module, Family, int], tuple[nn.Module, list[nn.Parameter], Any]]


def prepare(method: str, model: nn.Module, family: Family, rounds: int) -> Tuning:
    """``model`` under ``method``, ready for its first step.

    Args:
        method: a key of ``METHODS``.
        model: a fresh one, changed from now on.
        family: how its parts are called.
        rounds: steps that will be timed; a layer window passes over all blocks within them.

    Raises:
        REFUSALS: by a method of ``PEERS``, if it cannot tune such a model; the first step may raise them too.
    """
    tuned, parameters, session = METHODS[method](model, family, rounds)
    return Tuning(tuned, parameters, torch.optim.AdamW(parameters, lr=1e-4, fused=True), session)


def window_move_steps(rounds: int) -> int:
    """Optimizer steps that a layer window stays, so that ``rounds`` steps are shared evenly by all windows."""
    return max(2, -(-rounds // NUM_WINDOWS))


# References.


def _floor(model: nn.Module, family: Family, rounds: int) -> tuple[nn.Module, list[nn.Parameter], None]:
    """The least that any method below can cost: the gradient flows through all blocks and next to nothing is trained."""
    model.requires_grad_(False)
    model.get_submodule(family.first_norm).weight.requires_grad_(True)
    for head in family.head:
        model.get_submodule(head).requires_grad_(True)
    return model, _trained(model), None


def _full(model: nn.Module, family: Family, rounds: int) -> tuple[nn.Module, list[nn.Parameter], None]:
    return model, _trained(model), None


# paring.


def _slices(axis: Literal["row", "column"], windowed: bool = False) -> Prepare:
    def prepare(model: nn.Module, family: Family, rounds: int) -> tuple[nn.Module, list[nn.Parameter], Any]:
        import paring

        config: Any = model.config
        window = config.num_hidden_layers // NUM_WINDOWS if windowed else None
        move_steps = window_move_steps(rounds) if windowed else MOVE_STEPS
        slices = paring.SliceConfig(rank=RANK, modes=(axis,), move_steps=move_steps, layer_window=window)
        session = paring.sliced(model, slices, verbose=False).__enter__()
        if session.selection.whole != family.head:
            raise AssertionError(f"trained whole: {session.selection.whole}; the other methods train {family.head}")
        return model, session.parameters(), session

    return prepare


# PEFT.


def _peft(make: Callable[[nn.Module, Family], Any]) -> Prepare:
    def prepare(model: nn.Module, family: Family, rounds: int) -> tuple[nn.Module, list[nn.Parameter], None]:
        import peft

        wrapped = peft.get_peft_model(model, make(model, family))
        return wrapped, _trained(wrapped), None

    return prepare


def _linear_layers(model: Any, family: Family) -> list[str]:
    """Every linear layer but the head and the output embeddings: what PEFT calls all-linear."""
    output = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in family.head and module is not output
    ]


def _head(family: Family) -> list[str] | None:
    return list(family.head) or None


def _lora(model: nn.Module, family: Family, dora: bool = False) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        lora_dropout=0.0,
        use_dora=dora,
        target_modules=_linear_layers(model, family),
        modules_to_save=_head(family),
    )


def _shira(model: nn.Module, family: Family) -> Any:
    from peft import ShiraConfig

    targets = _linear_layers(model, family)
    return ShiraConfig(r=RANK, random_seed=0, target_modules=targets, modules_to_save=_head(family))


def _miss(model: nn.Module, family: Family) -> Any:
    from peft import MissConfig

    return MissConfig(r=RANK, target_modules=_linear_layers(model, family), modules_to_save=_head(family))


def _ia3(model: nn.Module, family: Family) -> Any:
    from peft import IA3Config

    return IA3Config(
        target_modules=list(family.ia3),
        feedforward_modules=list(family.ia3_feedforward),
        modules_to_save=_head(family),
    )


def _norms(model: nn.Module, family: Family) -> Any:
    from peft import LNTuningConfig

    return LNTuningConfig(target_modules=list(family.norms), modules_to_save=_head(family))


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


METHODS: dict[str, Prepare] = {
    "floor": _floor,
    "column": _slices("column"),  # SliceFine, arXiv 2510.08513
    "row": _slices("row"),
    "window": _slices("column", windowed=True),
    "full": _full,
    "lora": _peft(_lora),  # arXiv 2106.09685
    "dora": _peft(lambda model, family: _lora(model, family, dora=True)),  # arXiv 2402.09353
    "shira": _peft(_shira),  # arXiv 2406.13175
    "miss": _peft(_miss),  # arXiv 2409.15371
    "ia3": _peft(_ia3),  # arXiv 2205.05638
    "ln": _peft(_norms),  # arXiv 2312.11420
}
PEERS = ("lora", "dora", "shira", "miss", "ia3", "ln")
REFUSALS = (ValueError, TypeError, RuntimeError)  # NotImplementedError and running out of GPU memory are RuntimeErrors
SLICES = ("column", "row", "window")
TITLES = {
    "floor": "floor: frozen, gradient through all",
    "column": "column slices, r 8",
    "row": "row slices, r 8",
    "window": "column slices, a third of the blocks at a time",
    "full": "full",
    "lora": "LoRA, r 8",
    "dora": "DoRA, r 8",
    "shira": "SHiRA, r 8",
    "miss": "MiSS, r 8",
    "ia3": "IA3",
    "ln": "LN-tuning",
}
