"""The ways to tune that are compared: paring's slices in all shapes, and PEFT's methods. All train the head whole."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from quality.moves import carrying, easing_in

HEAD = "classifier"
Step = Callable[[torch.optim.Optimizer], None]


@dataclass(frozen=True)
class Method:
    """One way to tune.

    Attributes:
        name: in results.
        title: for a reader.
        kind: "full", "head", "slices" or the name of one of PEFT's.
        settings: of ``SliceConfig``, or of PEFT's configuration. ``upper`` and ``window`` are shares of the blocks; ``carry``
            and ``ease_in`` change what happens at a move (see ``moves.py``).
        guess: where the walk over the rates begins, as a factor on the suite's middle rate.
    """

    name: str
    title: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    guess: float = 1.0

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass
class Tuning:
    """A model made ready: what an optimizer gets, what follows each of its steps, and what comes out in the end."""

    model: nn.Module
    parameters: list[nn.Parameter]
    after_step: Step
    num_trainable: int
    session: Any = None


def _column(rank: int, move_steps: int | None, **more: Any) -> dict[str, Any]:
    return {"rank": rank, "modes": ("column",), "move_steps": move_steps, **more}


MOVE = 25
METHODS = {
    m.name: m
    for m in (
        Method("full", "full fine-tuning", "full", guess=0.1),
        Method("head", "head only", "head", guess=10.0),
        Method("lora-r8", "LoRA, r 8", "lora", guess=0.5),
        Method("lora-r8-upper", "LoRA, r 8, upper half of the blocks", "lora", {"upper": 0.5}, guess=0.5),
        Method("shira-r8", "SHiRA, r 8", "shira", guess=2.0),
        Method("miss-r8", "MiSS, r 8", "miss", guess=0.5),
        *(Method(f"static-column-r{r}", f"static column, r {r}", "slices", _column(r, None), 2.0) for r in (1, 5, 16)),
        *(Method(f"column-r{r}", f"column sweep, r {r}", "slices", _column(r, MOVE), 2.0) for r in (1, 5, 16)),
        *(
            Method(f"row-r{r}", f"row sweep, r {r}", "slices", {"rank": r, "modes": ("row",), "move_steps": MOVE}, 2.0)
            for r in (1, 5, 16)
        ),
        *(
            Method(f"both-r{r}", f"row-column alternation, r {r}", "slices", {"rank": r, "move_steps": MOVE}, 2.0)
            for r in (1, 5, 16)
        ),
        Method("static-row-r16", "static row, r 16", "slices", {"rank": 16, "modes": ("row",), "move_steps": None}, 2.0),
        Method("static-column-r16-upper", "static column, r 16, upper half", "slices", _column(16, None, upper=0.5), 2.0),
        *(
            Method(f"static-column-r{r}-upper", f"static column, r {r}, upper half", "slices", _column(r, None, upper=0.5), 2.0)
            for r in (31, 32)
        ),
        Method("column-r16-window", "column sweep, r 16, window of half", "slices", _column(16, MOVE, window=0.5), 2.0),
        # Why does moving not pay? How long a slice stays, in what order, where it goes.
        *(
            Method(f"column-r16-n{n}", f"column sweep, r 16, moves every {n} steps", "slices", _column(16, n), 2.0)
            for n in (50, 100)
        ),
        Method("column-r16-random", "column, random order, r 16", "slices", _column(16, MOVE, order="random"), 2.0),
        Method("column-r16-to-and-fro", "column, two positions in turn, r 8", "slices", _column(8, MOVE, order=(0, 8)), 2.0),
        # The guess of these is the rate that was best for plain moving on MiniLM.
        Method("column-r16-carried", "column sweep, r 16, second moments kept", "slices", _column(16, MOVE, carry=True), 5.0),
        Method("column-r16-eased", "column sweep, r 16, eased in over 5 steps", "slices", _column(16, MOVE, ease_in=5), 5.0),
        Method("column-r16-stride", "column sweep, r 16, half a slice a move", "slices", _column(16, MOVE, stride=8), 5.0),
        Method("column-r31-upper", "column sweep, r 31, upper half", "slices", _column(31, MOVE, upper=0.5), 5.0),
        # For merges: the tasks of a suite train no entry in common. At the rate of the slice that all have in one place.
        *(
            Method(f"lane-{i}-of-{n}", f"static column, r 16, lane {i} of {n}", "slices", _column(16, None, lane=f"{i}/{n}"))
            for n in (4, 5)
            for i in range(1, n + 1)
        ),
    )
}
LANES = tuple(name for name in METHODS if name.startswith("lane-"))


def prepare(method: Method, model: nn.Module, num_blocks: int) -> Tuning:
    """Makes a fresh model ready to be tuned by ``method``."""
    if method.kind == "slices":
        return _slices(method, model, num_blocks)
    if method.kind in ("full", "head"):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(method.kind == "full" or name.startswith(HEAD))
        return _plain(model)
    import peft

    settings = dict(method.settings)
    upper = settings.pop("upper", 1.0)
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(HEAD) and _block(name, num_blocks) >= (1 - upper) * num_blocks
    ]
    common: dict[str, Any] = {"r": 8, "target_modules": targets, "modules_to_save": [HEAD], **settings}
    config = {
        "lora": lambda: peft.LoraConfig(lora_alpha=16, lora_dropout=0.0, **common),
        "shira": lambda: peft.ShiraConfig(random_seed=0, **common),
        "miss": lambda: peft.MissConfig(**common),
    }[method.kind]()
    return _plain(peft.get_peft_model(model, config))


def _plain(model: nn.Module) -> Tuning:
    trained = [p for p in model.parameters() if p.requires_grad]
    return Tuning(model, trained, lambda _: None, sum(p.numel() for p in trained))


def _slices(method: Method, model: nn.Module, num_blocks: int) -> Tuning:
    import paring

    settings = dict(method.settings)
    if "upper" in settings:
        settings["layers"] = f"upper:{round(settings.pop('upper') * num_blocks)}"
    if "window" in settings:
        settings["layer_window"] = round(settings.pop("window") * num_blocks)
    carry, ease_in = settings.pop("carry", False), settings.pop("ease_in", 0)
    # PEFT's methods leave convolutions alone, and four inputs are too few to choose columns from.
    exclude = tuple(n for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    session = paring.sliced(model, paring.SliceConfig(exclude=exclude, **settings), verbose=False).__enter__()
    after_step = carrying(session) if carry else easing_in(session, ease_in) if ease_in else lambda _: session.step()
    return Tuning(model, session.parameters(), after_step, session.num_trainable, session)


def _block(name: str, num_blocks: int) -> int:
    """The block a layer stands in; what follows the blocks (a pooler) belongs to the last one."""
    number = next((int(part) for part in name.split(".") if part.isdigit()), None)
    return num_blocks - 1 if number is None else number


def optimizer(tuning: Tuning, rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(tuning.parameters, lr=rate, weight_decay=0.0, fused=True)
