"""Every optimizer step, as the session sees it: which weights wait to be written, and whose state is to be dropped.

Torch calls a hook before and after the step of any optimizer. Those that train parameters of the session make the
weights stale until ``session.step()``; a slice that becomes active loses its state in all of them.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from paring.tune.inject import Injection
from paring.tune.optimizers import forget, owned_by


class OptimizerWatch:
    """Sees the optimizers of a session, from ``start`` to ``stop``.

    Attributes:
        stale: an optimizer has stepped, and the weights have not been written since.
        trained: an optimizer of ours was ever seen to step.
    """

    def __init__(self) -> None:
        self.stale = self.trained = False
        self._injection: Injection | None = None
        self._optimizers: WeakSet[Optimizer] = WeakSet()
        self._hooks: list[RemovableHandle] = []
        self._closure_hook: RemovableHandle | None = None
        self._inside = False  # an optimizer of ours is at work, or has failed at it
        self._moved: set[nn.Parameter] = set()  # working copies whose slice has moved since the start or the resumption

    def start(self, injection: Injection) -> None:
        self._injection = injection
        self._hooks = [
            register_optimizer_step_pre_hook(self._stepping),
            register_optimizer_step_post_hook(self._stepped),
        ]

    def stop(self) -> None:
        self.stale = False
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._leave_step()

    @property
    def started(self) -> bool:
        return bool(self._hooks)

    def settle(self) -> None:
        """After a step that failed inside the optimizer, which never ended for us: the weights get what it changed."""
        if self._inside:
            self._leave_step()
            self._ours.write_back()

    def moved(self, parameter: nn.Parameter) -> None:
        """``parameter`` holds another slice now: its gradient and state belong to entries that are frozen."""
        parameter.grad = None
        self._moved.add(parameter)
        forget(self._optimizers, parameter)

    def restarted(self) -> None:
        """Training begins, or begins anew: no state of any parameter is left."""
        self._leave_step()
        self._moved.clear()
        for parameter in self._ours.parameters():
            parameter.grad = None
            forget(self._optimizers, parameter)

    def refuse_stale(self) -> None:
        if self.stale and not self._inside:
            raise RuntimeError("the optimizer has stepped, but session.step() was not called after it: the weights are stale")

    def idle(self) -> list[str]:
        """What was to be trained and never received a gradient, a sentence each. A parameter in its own type that the loss
        does not use is left alone by any optimizer, so it is not worth a word."""
        out = []
        slots = [slot.layer.name for slot in self._ours.slots if slot.tried and not slot.used]
        if slots:
            out.append(f"{len(slots)} sliced layer(s) never received a gradient, e.g. '{slots[0]}'")
        masters = [whole.name for whole in self._ours.wholes if whole.master is not None and not whole.used]
        if masters:
            out.append(
                f"trained whole in half precision, but without any gradient: {', '.join(masters)}; a working copy stands in "
                "only while its own module's forward runs, so if another module reads the tensor (as nn.MultiheadAttention "
                "does out_proj's), load the model in fp32, or leave that module out of train_also"
            )
        return out

    # Inside.

    @property
    def _ours(self) -> Injection:
        assert self._injection is not None
        return self._injection

    def _stepping(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Before any optimizer's step. One of ours that is new may have been loaded with moments of slices left since."""
        if not owned_by(optimizer, self._ours.parameters()):
            return
        self._ours.refuse_changed()  # here nothing has been changed yet
        self._leave_step()
        self._inside = True
        self._closure_hook = self._ours.model.register_forward_pre_hook(self._refresher())
        if optimizer not in self._optimizers:
            self._optimizers.add(optimizer)
            for parameter in self._moved:
                forget([optimizer], parameter)

    def _refresher(self) -> Callable[[nn.Module, Any], None]:
        """A closure (LBFGS) looks at the loss inside a step: the weights follow the working copies there.

        The hook is there only while an optimizer steps: on a compiled model a hook would change how all else is compiled.
        A function, not a method: a deep copy of the model would copy a method's session with it.
        """

        def refresh(module: nn.Module, args: Any) -> None:
            if self._inside and module is self._ours.model:
                self._ours.write_back()

        return refresh

    def _leave_step(self) -> None:
        """Torch calls no hook after a step that raised: the next occasion comes here too."""
        self._inside = False
        if self._closure_hook is not None:
            self._closure_hook.remove()
            self._closure_hook = None

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """After any optimizer's step: is it one of ours? Then the weights wait for ``session.step``."""
        if not owned_by(optimizer, self._ours.parameters()):
            return
        self._leave_step()
        self.stale = self.trained = True
        for whole in self._ours.wholes:
            whole.used = whole.used or whole.trained.grad is not None
        slots = self._ours.slots
        if not owned_by(optimizer, (slot.copy for slot in slots)):
            return
        waiting = [slot for slot in slots if not slot.used and slot.slice is not None]
        for slot in waiting:
            slot.tried, slot.used = True, slot.copy.grad is not None
        if waiting and not any(slot.used for slot in slots):
            raise RuntimeError(
                "no slice received a gradient. Was backward called? Was the model compiled before the session was entered "
                "(compile it inside)? Does it use reentrant gradient checkpointing (pass use_reentrant=False)?"
            )
