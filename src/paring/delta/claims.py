"""Models that are being trained, so that nothing else writes into their weights meanwhile.

An open session trains copies of some entries and writes these into the weights after every step. Whatever another hand
put there would be overwritten later, and an exact way back would no longer be exact; so both sides ask here.
"""

from collections.abc import Iterable
from weakref import WeakSet

from torch import nn

_claimed: WeakSet[nn.Module] = WeakSet()


def claim(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        _claimed.add(module)


def release(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        _claimed.discard(module)


def is_claimed(model: nn.Module) -> bool:
    """Whether a session is open on the model, on a part of it, or on a model that it is part of."""
    return any(module in _claimed for module in model.modules())


def refuse_claimed(model: nn.Module, what: str) -> None:
    """That no session is open on the model or a part of it.

    Raises:
        RuntimeError: one is; ``what`` says what it is in the way of ("the delta cannot be applied").
    """
    if is_claimed(model):
        raise RuntimeError(
            f"{what}: {type(model).__name__} or a part of it is in an open session, which would write its working copies "
            "over it later; leave that session (its with block) first"
        )
