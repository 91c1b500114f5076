"""Working copies and hooks into a model, and out again without a trace.

A layer keeps its class, its name and its ``state_dict`` keys. What is added while a session lasts: on each sliced layer
a Parameter (``slice_weight``, ``slice_bias``) that ``state_dict`` does not show, and a forward hook that ties it to the
output. Modules trained whole in half precision get fp32 working copies (``slice_whole_*``) in the same manner, since an
optimizer's small steps would round to nothing there.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from paring.delta.claims import claim, is_claimed, release
from paring.tune.config import SliceConfig
from paring.tune.entered import Entered, refusal
from paring.tune.experts import ExpertsSlot
from paring.tune.kinds import AnyLayer, FusedExperts
from paring.tune.ops import attach, attach_traced
from paring.tune.slot import BIAS, START, Member, Slot, traceable, wide_dtype
from paring.tune.targets import Layer, Selection

WHOLE = "slice_whole_"
AnySlot = Slot | ExpertsSlot


def make_slot(layer: Layer, config: SliceConfig) -> AnySlot:
    """The slot for a selected layer."""
    return ExpertsSlot(layer, config) if isinstance(layer.module, FusedExperts) else Slot(layer, config)


def refuse_second(model: nn.Module) -> None:
    """That no session is open on the model or a part of it, and that it is not wrapped yet.

    Raises:
        RuntimeError: a session is open.
        ValueError: the model is wrapped for distributed training or compiled.
    """
    if is_claimed(model):
        raise RuntimeError(
            f"{type(model).__name__} is already in a session, or a part of it is; close that one first (leave its with block)"
        )
    wrapper = type(model).__name__
    if wrapper in ("DistributedDataParallel", "OptimizedModule", "FullyShardedDataParallel", "DataParallel"):
        raise ValueError(f"the model is wrapped in {wrapper}; enter the session on the bare model first, then wrap it")


class WholeTensor:
    """A parameter of a module trained whole; ``master`` is its fp32 working copy where it is half precision.

    ``used``: whether a gradient has ever reached what is trained.
    """

    def __init__(self, name: str, module: nn.Module, attribute: str) -> None:
        self.name, self.module, self.attribute = name, module, attribute
        self.used = False
        self.original: nn.Parameter = module._parameters[attribute]  # type: ignore[assignment]
        self._gradient = self.original.grad
        wide = wide_dtype(self.original)
        self.master = None if wide == self.original.dtype else nn.Parameter(self.original.detach().to(wide))

    @property
    def trained(self) -> nn.Parameter:
        return self.original if self.master is None else self.master

    def load(self) -> None:
        """The working copy from the model's parameter."""
        if self.master is not None:
            with torch.no_grad():
                self.master.copy_(self.original)

    def put_back(self) -> None:
        """``grad`` as it was on entering, so that no gradient of the session's acts on a later optimizer; and the parameter
        in its place, should an interrupt have come while the working copy stood there."""
        before, here = self._gradient, self.original
        fits = before is not None and (before.dtype, before.shape, before.device) == (here.dtype, here.shape, here.device)
        here.grad = before if fits else None
        now = self.module._parameters.get(self.attribute)
        if isinstance(now, Tensor) and not isinstance(now, nn.Parameter):
            self.module._parameters[self.attribute] = self.original


class Injection:
    """What a session has put into a model.

    Args:
        model: the model, unchanged so far.
        slots: sliced weights.
        selection: names of the modules trained whole.
        guard: called by every sliced layer's forward; raises if the weights are stale.
    """

    def __init__(self, model: nn.Module, slots: list[AnySlot], selection: Selection, guard: Callable[[], None]) -> None:
        self.model, self.slots = model, slots
        self.wholes = list(_whole_tensors(model, selection.whole))
        self._guard = guard
        self._handles: list[RemovableHandle] = []
        self._added: list[tuple[nn.Module, str]] = []
        self._modules = list(model.modules())
        self.entered = Entered(model)
        self.entered.watch([*(p for slot in slots for p in slot.stands_for), *(w.original for w in self.wholes)])

    def insert(self) -> None:
        """Freezes the model, adds working copies and hooks; on any failure the model is as before."""
        try:
            claim(self._modules)
            self.entered.freeze()
            for slot in self.slots:
                self._add(slot.carrier, slot.copy_name, slot.copy, slot.load)
                self._handles += slot.hooks(self._guard)
                for member, copy in zip(slot.biased, slot.bias_copies, strict=True):
                    self._add(member.module, BIAS, copy, slot.load)
                for member in slot.members:
                    if traceable(member.kind):
                        start = torch.zeros((), dtype=torch.long, device=slot.weight.device)
                        member.module.register_buffer(START, start, persistent=False)
                    # Before any hook of the user's, which may change the output.
                    tie = self._hook(slot, member)
                    self._handles.append(member.module.register_forward_hook(tie, with_kwargs=True, prepend=True))
            for whole in self.wholes:
                if whole.master is None:
                    whole.original.requires_grad_(True)
                else:
                    self._add(whole.module, WHOLE + whole.attribute, whole.master, whole.load)
                    self._handles += _use_master(whole)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """A plain model again: classes, keys, their order, and ``requires_grad`` as before; the weights as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for module, name in self._added:
            del module._parameters[name]
        self._added.clear()
        for slot in self.slots:
            for member in slot.members:
                member.module._buffers.pop(START, None)
                member.module._non_persistent_buffers_set.discard(START)
        for whole in self.wholes:
            whole.put_back()
        release(self._modules)
        self.entered.restore()

    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer trains: working copies, then modules trained whole."""
        sliced = [p for slot in self.slots for p in (slot.copy, *slot.bias_copies)]
        return sliced + list({id(w.trained): w.trained for w in self.wholes}.values())

    def write_back(self) -> None:
        """Working copies into the weights.

        Raises:
            RuntimeError: a weight has another type, shape or identity than on entering; nothing is written then.
        """
        self.refuse_changed()
        self._write(self.slots, self.wholes)

    def refuse_changed(self) -> None:
        if changes := self.entered.changes():
            raise refusal(changes)

    def write_last(self) -> RuntimeError | None:
        """On leaving: writes what still fits; the error, if weights were changed under their working copies."""
        changes = self.entered.changes()
        if not changes:
            self._write(self.slots, self.wholes)
            return None
        gone = {id(c.parameter) for c in changes if not c.writable}
        slots = [slot for slot in self.slots if not any(id(p) in gone for p in slot.stands_for)]
        self._write(slots, [w for w in self.wholes if id(w.original) not in gone])
        return refusal(changes)

    def _write(self, slots: Iterable[AnySlot], wholes: Iterable["WholeTensor"]) -> None:
        pairs = [pair for slot in slots for pair in slot.pairs()]
        pairs += [(w.original.detach(), w.master.detach()) for w in wholes if w.master is not None]
        if pairs:
            with torch.no_grad():
                torch._foreach_copy_([into for into, _ in pairs], [copy for _, copy in pairs])

    def load(self) -> None:
        """Weights into the working copies."""
        for slot in self.slots:
            slot.load()
        for whole in self.wholes:
            whole.load()

    def _add(self, module: nn.Module, name: str, parameter: nn.Parameter, reload: Callable[[], None]) -> None:
        module.register_parameter(name, parameter)
        self._added.append((module, name))

        def hide(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
            state.pop(prefix + name, None)

        def not_missing(module: nn.Module, result: Any) -> None:
            result.missing_keys[:] = [k for k in result.missing_keys if k.rpartition(".")[2] != name]
            reload()  # the weights under the working copy were replaced

        self._handles.append(module.register_state_dict_post_hook(hide))
        self._handles.append(module.register_load_state_dict_post_hook(not_missing))

    def _hook(self, slot: AnySlot, member: Member) -> Callable[..., Tensor | None]:
        kept_by, traced = member.kind.keep, traceable(member.kind)

        def tie(module: AnyLayer, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Tensor | None:
            if slot.slice is None or module is not member.module:  # a deep copy of the model runs plain
                return None
            x = args[0] if args else next(iter(kwargs.values()))
            if torch.compiler.is_compiling() and traced:
                return attach_traced(x, y, slot.copy, member.bias_copy, module.slice_start, slot.slice.axis, slot.rank)
            return eager(module, x, y)

        def eager(module: AnyLayer, x: Tensor, y: Tensor) -> Tensor | None:
            self._guard()
            if not torch.is_grad_enabled():
                return None
            assert slot.slice is not None and member.product is not None
            kept = kept_by(module, x, y, slot.slice)
            return attach(y, slot.copy, member.bias_copy, kept, member.product, slot.placement)

        # Convolutions break a compiled graph here and run as written (what torch.compiler.disable marks, without
        # its import of the compiler).
        eager._torchdynamo_disable = True  # type: ignore[attr-defined]
        return tie


def _whole_tensors(model: nn.Module, names: Iterable[str]) -> Iterable[WholeTensor]:
    modules = dict(model.named_modules())
    seen: set[int] = set()
    for name in names:
        for inner, module in modules[name].named_modules(prefix=name):
            for attribute, parameter in module._parameters.items():
                if parameter is not None and id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield WholeTensor(f"{inner}.{attribute}", module, attribute)


def _use_master(whole: WholeTensor) -> list[RemovableHandle]:
    """While the module runs, its parameter is the fp32 copy cast down, so that the gradient reaches the copy."""
    attribute, master = whole.attribute, whole.master
    assert master is not None
    stood: nn.Parameter | None = whole.original

    def swap(module: nn.Module, args: Any) -> None:
        nonlocal stood
        if module is whole.module:  # a deep copy of the model runs plain
            stood = module._parameters[attribute]
            module._parameters[attribute] = master.to(whole.original.dtype)  # type: ignore[assignment]

    def swap_back(module: nn.Module, args: Any, output: Any) -> None:
        if module is whole.module:
            module._parameters[attribute] = stood

    return [
        whole.module.register_forward_pre_hook(swap),
        whole.module.register_forward_hook(swap_back, always_call=True),
    ]
