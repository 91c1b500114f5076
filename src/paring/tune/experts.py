"""Mixture-of-experts layers whose weights are one tensor ``[experts, out, in]`` (transformers' fused experts).

Each expert's matrix is sliced, all at the same place: the working copy is ``[experts, r, n]``. No module's forward takes
one expert's matrix, so the layer's own forward is watched instead: whenever it multiplies by a view of the fused weight,
the slice's working copy is tied to that product's output (see ops), and autograd makes the input gradient only. That is
so for the implementations "eager" (a product an expert) and "grouped_mm" (one for all); "batched_mm" copies a whole
matrix for every token, so there is nothing to tie to.

A tensor is named ``….experts.gate_up_proj``, expert 3 of it ``….experts.gate_up_proj[3]``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from paring.delta.blocks import Rect
from paring.tune.config import SliceConfig
from paring.tune.kinds import FusedExperts
from paring.tune.ops import Placement, attach, thin_product
from paring.tune.slices import Slice
from paring.tune.slot import Member, wide_dtype
from paring.tune.targets import Layer

_PRODUCTS = {F.linear, torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__}
_GROUPED = {f for f in (getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None)) if f is not None}


class ExpertsSlot:
    """What ``Slot`` is, for a fused weight. The attributes are Slot's.

    ``slot_weight`` reads the weight as ``[experts, r, n]``, a view.
    """

    def __init__(self, layer: Layer, config: SliceConfig) -> None:
        assert isinstance(layer.module, FusedExperts)
        self.layer, self.carrier, self.copy_name = layer, layer.module.owner, f"slice_{layer.module.attribute}"
        self.members: list[Member] = []  # no module runs one expert's product
        self.biased: list[Member] = []
        self.bias_copies: list[nn.Parameter] = []
        self.slice: Slice | None = None
        self.placement = Placement(layer.name)
        self.tried = self.used = False
        self.rank = config.rank
        lengths = {layer.matrix.length(axis) for axis in config.modes}
        rows = (config.rank, *lengths) if len(lengths) == 1 else (config.rank * max(lengths),)
        self.copy = nn.Parameter(
            torch.zeros((self.num_experts, *rows), dtype=wide_dtype(self.weight), device=self.weight.device)
        )
        self.stands_for: list[nn.Parameter] = [self.weight]

    @property
    def weight(self) -> nn.Parameter:
        return self.layer.module.weight

    @property
    def num_experts(self) -> int:
        return int(self.weight.shape[0])

    def num_active(self) -> int:
        if self.slice is None:
            return 0
        return self.num_experts * self.slice.width * self.layer.matrix.length(self.slice.axis)

    def touched(self, slice_: Slice) -> list[tuple[str, Tensor, Rect]]:
        rect = self.layer.kind.rect(self.layer.module, slice_)
        return [(f"{self.layer.name}[{i}]", self.weight.detach()[i], rect) for i in range(self.num_experts)]

    def place(self, slice_: Slice | None) -> None:
        self.slice = slice_
        self.placement.number += 1
        if slice_ is not None:
            self.rank = slice_.width
            self.load()

    def load(self) -> None:
        if self.slice is None:
            return
        with torch.no_grad():
            self.copy.zero_()
            self._window().copy_(self._seen())

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        return [] if self.slice is None else [(self._seen(), self._window())]

    def hooks(self, guard: Callable[[], None]) -> list[RemovableHandle]:
        """Watches the layer's forward while the session lasts."""
        watches: list[_Watch] = []

        def begin(module: nn.Module, args: Any) -> None:
            if module is not self.carrier:  # a deep copy of the model runs plain
                return
            guard()
            watches.append(_Watch(self))
            watches[-1].__enter__()

        def end(module: nn.Module, args: Any, output: Any) -> None:
            if module is self.carrier and watches:
                watches.pop().__exit__(None, None, None)

        return [
            self.carrier.register_forward_pre_hook(begin),
            self.carrier.register_forward_hook(end, always_call=True),
        ]

    def _seen(self) -> Tensor:
        """The slice of every expert's matrix, ``[experts, r, n]``, a view of the weight."""
        assert self.slice is not None
        weight = self.weight.detach()
        matrix = weight.transpose(1, 2) if self.layer.kind.transposed else weight
        if self.slice.axis == "row":
            return matrix[:, self.slice.start : self.slice.stop]
        return matrix[:, :, self.slice.start : self.slice.stop].transpose(1, 2)

    def _window(self) -> Tensor:
        """The used part of the working copy, ``[experts, r, n]``."""
        assert self.slice is not None
        width, length = self.slice.width, self.layer.matrix.length(self.slice.axis)
        return self.copy.detach().flatten(1)[:, : width * length].unflatten(1, (width, length))


class _Watch(TorchFunctionMode):
    """While the layer's forward runs: products by the fused weight, or by one expert's part of it, are tied to the slice."""

    def __init__(self, slot: ExpertsSlot) -> None:
        super().__init__()
        self._slot = slot
        self._pieces: Sequence[Tensor] = ()  # the working copy by expert; taken apart once, so that gradients join once

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        y = function(*args, **kwargs)
        slot = self._slot
        if slot.slice is None or not torch.is_grad_enabled() or len(args) < 2 or not isinstance(args[1], Tensor):
            return y
        x, weight = args[0], args[1]
        if function in _PRODUCTS and weight.ndim == 2 and self._is_ours(weight):
            self._pieces = self._pieces or slot.copy.unbind(0)
            expert = (weight.storage_offset() - slot.weight.storage_offset()) // slot.weight.stride(0)
            kept = _kept(x, slot.slice).to(y.dtype)
            return attach(y, self._pieces[expert], None, kept, _Product(slot.slice), slot.placement)
        if function in _GROUPED and weight.ndim == 3 and self._is_ours(weight):
            ends = kwargs["offs"] if "offs" in kwargs else args[2]
            kept = _kept(x, slot.slice).to(y.dtype)
            return attach(y, slot.copy, None, kept, _GroupedProduct(slot.slice, ends), slot.placement)
        return y

    def _is_ours(self, weight: Tensor) -> bool:
        ours = self._slot.weight
        if weight.untyped_storage().data_ptr() != ours.untyped_storage().data_ptr():
            return False
        return 0 <= weight.storage_offset() - ours.storage_offset() < ours.numel()


def _kept(x: Tensor, slice_: Slice) -> Tensor:
    x = x.detach()
    return x[..., slice_.start : slice_.stop].contiguous() if slice_.axis == "column" else x


def _gradient(kept_T: Tensor, dy_TO: Tensor, slice_: Slice) -> Tensor:
    """``[r, n]``; of no tokens, zeros."""
    if slice_.axis == "column":
        return thin_product(kept_T, dy_TO)
    return thin_product(dy_TO[:, slice_.start : slice_.stop], kept_T)


@dataclass(frozen=True)
class _Product:
    slice: Slice

    def __call__(self, kept: Tensor, dy: Tensor) -> tuple[Tensor, None]:
        return _gradient(kept.reshape(-1, kept.shape[-1]), dy.reshape(-1, dy.shape[-1]), self.slice), None


@dataclass(frozen=True)
class _GroupedProduct:
    """Rows are sorted by expert; ``ends`` says where each expert's stop. Rows beyond the last belong to none."""

    slice: Slice
    ends: Tensor

    def __call__(self, kept: Tensor, dy: Tensor) -> tuple[Tensor, None]:
        parts = [_gradient(kept[a:b], dy[a:b], self.slice) for a, b in _ranges(self.ends)]
        return torch.stack(parts).flatten(1), None


def _ranges(ends: Tensor) -> Iterator[tuple[int, int]]:
    start = 0
    for end in ends.tolist():
        yield start, end
        start = end
