"""What a session does to the optimizers that train its parameters: fresh state for a slice that becomes active."""

from collections.abc import Iterable

from torch import nn
from torch.optim import Adagrad, Optimizer


def owned_by(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> bool:
    """Whether ``optimizer`` trains any of ``parameters``."""
    wanted = {id(p) for p in parameters}
    return any(id(p) in wanted for group in optimizer.param_groups for p in group["params"])


def forget(optimizers: Iterable[Optimizer], parameter: nn.Parameter) -> None:
    """Drops the state of ``parameter``, so that its next step is a first one.

    Most optimizers make a parameter's state at its first step. Those that make it when constructed (Adagrad) would
    miss it; they get what they would have made, by the settings of the parameter's own group.
    """
    for optimizer in optimizers:
        if optimizer.state.pop(parameter, None) is None:
            continue
        if isinstance(optimizer, Adagrad):
            group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
            first = Adagrad([parameter], initial_accumulator_value=group["initial_accumulator_value"], fused=group.get("fused"))
            optimizer.state[parameter] = first.state[parameter]
