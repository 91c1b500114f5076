"""The two functions of the SliceFine project page: put slices into a model, take them out again.

    from paring import inject_peft, restore_layers

    session = inject_peft(model, rank=5, position=0, bias=False, mode=("row", "column"))
    ...                          # a loop of one's own with session.parameters() and session.step(); or a SliceTrainer
    restore_layers(model)        # a plain model with the weights learnt

``paring.sliced`` does the same as a context manager, which also restores after an exception.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from paring.tune.config import SliceConfig
from paring.tune.session import SliceSession
from paring.tune.slices import Axis

_injected: dict[int, SliceSession] = {}  # by identity of the model; a session keeps its model, so none is reused


def inject_peft(
    model: nn.Module,
    rank: int = 5,
    position: int = 0,
    bias: bool = False,
    mode: Sequence[Axis] = ("row", "column"),
    *,
    move_steps: int | None = 1000,
    verbose: bool = True,
    **settings: Any,
) -> SliceSession:
    """Opens a session on ``model`` that lasts until ``restore_layers(model)``.

    Args:
        rank, position, bias: as in ``SliceConfig``.
        mode: ``("row",)``, ``("column",)``, or both: then windows alternate in the order given.
        move_steps: optimizer steps between moves; None: never (one mode).
        verbose: print what is sliced.
        settings: more of ``SliceConfig``'s (``targets``, ``layers`` ...).

    Returns:
        The open session. ``SliceTrainer(model=model, ...)`` needs none of it: it takes over with its own settings.

    Raises:
        ValueError, RuntimeError: as ``paring.sliced``; nothing is changed then.
    """
    config = SliceConfig(rank=rank, position=position, bias=bias, modes=tuple(mode), move_steps=move_steps, **settings)
    session = SliceSession(model, config, verbose=verbose)
    _injected[id(model)] = session.__enter__()
    return session


def restore_layers(model: nn.Module, *, revert: bool = False) -> nn.Module:
    """Takes the slices out: a plain model with the weights learnt so far. A model without slices is left as it is.

    Args:
        revert: put back, bitwise, the weights from before ``inject_peft``.

    Returns:
        ``model``.

    Raises:
        ValueError: ``revert`` of a model that ``inject_peft`` was not called on (a trainer's: ``trainer.session.revert()``).
    """
    session = _injected.pop(id(model), None)
    if session is not None:
        session.close()
        if revert:
            session.revert()
    elif revert:
        raise ValueError("revert: inject_peft has no session on this model; revert the session that trained it instead")
    return model


def take_over(model: nn.Module) -> None:
    """Closes a session that ``inject_peft`` opened on ``model``, for a trainer that opens its own.

    Raises:
        RuntimeError: it has been trained; its way back would be lost.
    """
    session = _injected.get(id(model))
    if session is None:
        return
    if session.num_steps:
        raise RuntimeError(
            f"the session of inject_peft on this model has taken {session.num_steps} steps; "
            "call restore_layers(model) before it goes to a trainer"
        )
    del _injected[id(model)]
    session.close()
