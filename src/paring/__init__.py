"""paring: fine-tune thin slices of a pretrained network, and keep what was learnt as something small.

    import paring

    with paring.sliced(model, paring.SliceConfig(rank=8, modes=("column",), move_steps=50)) as session:
        optimizer = torch.optim.AdamW(session.parameters(), lr=2e-3)
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            session.step()
            optimizer.zero_grad()

Names are loaded on first use, so that ``import paring`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Slice": "paring.tune.slices",
    "SliceConfig": "paring.tune.config",
    "SliceSession": "paring.tune.session",
    "sliced": "paring.tune.session",
    "Bank": "paring.bank.bank",
    "DeltaError": "paring.delta.errors",
    "TaskVector": "paring.delta.taskvector",
    "apply_to_checkpoint": "paring.delta.patch",
    "diff": "paring.delta.diff",
    "load_delta": "paring.delta.files",
    "save_delta": "paring.delta.files",
    "SliceTrainer": "paring.trainer.trainer",
    "SliceCallback": "paring.trainer.callback",
    "inject_peft": "paring.trainer.paper",
    "restore_layers": "paring.trainer.paper",
}
_ROOMS = ("probe",)
__all__ = [
    "Bank",
    "DeltaError",
    "Slice",
    "SliceCallback",
    "SliceConfig",
    "SliceSession",
    "SliceTrainer",
    "TaskVector",
    "__version__",
    "apply_to_checkpoint",
    "diff",
    "inject_peft",
    "load_delta",
    "probe",
    "restore_layers",
    "save_delta",
    "sliced",
]

if TYPE_CHECKING:
    from paring import probe
    from paring.bank.bank import Bank
    from paring.delta.diff import diff
    from paring.delta.errors import DeltaError
    from paring.delta.files import load_delta, save_delta
    from paring.delta.patch import apply_to_checkpoint
    from paring.delta.taskvector import TaskVector
    from paring.trainer.callback import SliceCallback
    from paring.trainer.paper import inject_peft, restore_layers
    from paring.trainer.trainer import SliceTrainer
    from paring.tune.config import SliceConfig
    from paring.tune.session import SliceSession, sliced
    from paring.tune.slices import Slice


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"paring.{name}")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'paring' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
