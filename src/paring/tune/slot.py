"""One sliced weight: its working copy, where the slice lies now, and the modules that use it.

The working copy is a small contiguous leaf, fp32 where the weight is half precision, registered on the layer so that
optimizers and ``DistributedDataParallel`` find it among the model's parameters. It keeps its identity and size for the
whole session; a move changes its contents. With one mode it is ``[r, n]``; with two, whose n differ, it is flat and as
long as the longer one, the rest idle at zero gradient; so is what a slice narrower than the configured rank leaves.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from paring.delta.blocks import Rect, read, view, write
from paring.tune.config import SliceConfig
from paring.tune.kinds import EMBEDDING, LINEAR, AnyLayer, Kind
from paring.tune.ops import Placement, Product
from paring.tune.slices import Slice
from paring.tune.targets import Layer

COPY, BIAS, START = "slice_weight", "slice_bias", "slice_start"


@dataclass
class Member:
    """A module that runs on a sliced weight; tied weights have several."""

    name: str
    module: AnyLayer
    kind: Kind
    product: Product | None = None
    bias_copy: nn.Parameter | None = None


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """fp32 for half precision, else the tensor's own."""
    return torch.promote_types(tensor.dtype, torch.float32)


class Slot:
    """A sliced weight and its working copy (not yet registered: see inject).

    Attributes:
        layer: what was selected.
        carrier, copy_name: the module that the working copy is registered on, and under which name.
        members: the modules that use the weight; the first is the layer itself and carries the working copy.
        biased: those of them that carry a working copy of their bias, each bias once.
        stands_for: the parameters whose entries the working copies hold.
        slice: the active slice; None outside the layer window.
        placement: which of its placements this is.
        tried: whether an optimizer has ever stepped while the slice was active.
        used: whether a gradient has ever reached the working copy.
    """

    def __init__(self, layer: Layer, config: SliceConfig) -> None:
        self.layer, self.carrier, self.copy_name = layer, layer.module, COPY
        self.members = [Member(*m) for m in ((layer.name, layer.module, layer.kind), *layer.sharing)]
        self.slice: Slice | None = None
        self.placement = Placement(layer.name)
        self.tried = self.used = False
        self.rank = config.rank
        weight = layer.module.weight
        lengths = [layer.matrix.length(axis) for axis in config.modes]
        flat = len(set(lengths)) > 1
        shape = (config.rank * max(lengths),) if flat else (config.rank, lengths[0])
        self.copy = nn.Parameter(torch.zeros(shape, dtype=wide_dtype(weight), device=weight.device))
        self.biased: list[Member] = []
        self.bias_copies: list[nn.Parameter] = []
        for member in self.members if config.bias else ():
            if member.kind is EMBEDDING or member.module.bias is None:
                continue
            shared = next((m for m in self.biased if m.module.bias is member.module.bias), None)
            if shared is None:
                member.bias_copy = nn.Parameter(torch.zeros(config.rank, dtype=wide_dtype(weight), device=weight.device))
                self.biased.append(member)
                self.bias_copies.append(member.bias_copy)
            else:  # a tied bias has one copy, in which the gradients of every use add up
                member.bias_copy = shared.bias_copy
        self.stands_for: list[nn.Parameter] = [weight, *(m.module.bias for m in self.biased)]

    @property
    def weight(self) -> nn.Parameter:
        return self.layer.module.weight

    @property
    def weight_name(self) -> str:
        return f"{self.layer.name}.weight"

    @property
    def rect(self) -> Rect:
        assert self.slice is not None
        return self.layer.kind.rect(self.layer.module, self.slice)

    def hooks(self, guard: Callable[[], None]) -> list[RemovableHandle]:
        """Beyond those on the members: none."""
        return []

    def num_active(self) -> int:
        """Entries trained now, bias entries included."""
        if self.slice is None:
            return 0
        bias = len(self.biased) * self.slice.width if self.slice.axis == "row" else 0
        return self.slice.width * self.layer.matrix.length(self.slice.axis) + bias

    def touched(self, slice_: Slice) -> list[tuple[str, Tensor, Rect]]:
        """The tensors that training ``slice_`` changes, and where."""
        out: list[tuple[str, Tensor, Rect]] = [(self.weight_name, self.weight, self.layer.kind.rect(self.layer.module, slice_))]
        if slice_.axis == "row":
            out += [(f"{m.name}.bias", m.module.bias, Rect(slice_.start, slice_.stop, 0, 1)) for m in self.biased]
        return out

    def place(self, slice_: Slice | None) -> None:
        """Makes ``slice_`` the active one and loads the working copy from the weight."""
        self.slice = slice_
        self.placement.number += 1
        if slice_ is None:
            return
        self.rank = slice_.width
        for member in self.members:
            member.product = member.kind.product(member.module, slice_, member.bias_copy is not None)
            start = member.module._buffers.get(START)
            if start is not None:
                start.fill_(slice_.start)
        self.load()

    def load(self) -> None:
        """Working copies from the model's tensors."""
        if self.slice is None:
            return
        with torch.no_grad():
            _, window, thin = self._pair()
            self.copy.zero_()  # a flat copy's idle end too: optimizers that look at a whole tensor's norm see no leftovers
            window.copy_(self._thin_first(read(self.weight, self.rect)) if thin is None else thin)
            for bias_copy in self.bias_copies:
                bias_copy.zero_()
            for bias_window, bias in self._bias_pairs():
                bias_window.copy_(bias)

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """(view into the model, working copy) to be written back; a weight without views is written here."""
        if self.slice is None:
            return []
        rect, window, thin = self._pair()
        out = [(bias, copy) for copy, bias in self._bias_pairs()]
        if thin is None:
            write(self.weight, rect, self._thin_first(window.detach()))
        else:
            out.append((thin, window))
        return out

    def _pair(self) -> tuple[Rect, Tensor, Tensor | None]:
        """Where the slice lies; the used part of the working copy ``[r, n]``; the same entries of the weight as a view."""
        assert self.slice is not None
        rect, rank = self.rect, self.slice.width
        window = self.copy.detach()
        length = self.layer.matrix.length(self.slice.axis)
        if window.shape != (rank, length):
            window = window.view(-1)[: rank * length].view(rank, length)
        seen = view(self.weight.detach(), rect)
        return rect, window, None if seen is None else self._thin_first(seen)

    def _thin_first(self, matrix: Tensor) -> Tensor:
        """From the stored orientation to ``[r, n]``, or back."""
        assert self.slice is not None
        return matrix.t() if (self.slice.axis == "column") != self.layer.kind.transposed else matrix

    def _bias_pairs(self) -> list[tuple[Tensor, Tensor]]:
        assert self.slice is not None
        if self.slice.axis == "column":
            return []
        rows = slice(self.slice.start, self.slice.stop)
        pairs = zip(self.bias_copies, self.biased, strict=True)
        return [(copy.detach()[: self.slice.width], m.module.bias.detach()[rows]) for copy, m in pairs]


def traceable(kind: Kind) -> bool:
    """Whether a compiled graph can hold the slice's backward: linear layers (and Conv1D, which has the same product)."""
    return kind.product is LINEAR.product
