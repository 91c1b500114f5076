"""Layer kinds that can be sliced: how each reads its weight as ``[out, in]``, and the gradient of a slice of it.

    nn.Linear          stored [out, in]
    Conv1D             stored [in, out] (Hugging Face's GPT-2 layer)
    nn.Conv1d/2d/3d    stored [out, in/groups, k...], read as [out, in/groups · k]
    fused experts      stored [experts, out, in]; each expert's matrix is sliced (see experts)
    nn.Embedding       not a target; sliced only where it shares its weight with a target, so that the gradient is whole

A kind says what a forward pass must keep of its input for a slice's gradient (``keep``), and how the gradient comes
out of that and the output's gradient (a ``Product``). Thin side left, see ops.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.grad
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from paring.delta.blocks import Rect
from paring.tune.ops import Product, thin_product
from paring.tune.slices import Slice

AnyLayer = Any  # an nn.Module whose attributes (weight, groups, stride ...) follow from its kind


@dataclass(frozen=True)
class Kind:
    """How to slice one kind of layer.

    Attributes:
        name: for messages.
        extents: module -> (out, in) of the weight read as a matrix.
        transposed: the weight is stored ``[in, out]``.
        keep: (module, input, output, slice) -> what backward needs of the input, detached.
        product: (module, slice, bias) -> the backward.
    """

    name: str
    extents: Callable[[AnyLayer], tuple[int, int]]
    transposed: bool
    keep: Callable[[AnyLayer, Tensor, Tensor, Slice], Tensor]
    product: Callable[[AnyLayer, Slice, bool], Product]

    def rect(self, module: AnyLayer, slice_: Slice) -> Rect:
        """Where the slice lies in the stored weight (read as ``[shape[0], prod(shape[1:])]``)."""
        out, inp = self.extents(module)
        rows, columns = ((slice_.start, slice_.stop), (0, inp))
        if slice_.axis == "column":
            rows, columns = (0, out), (slice_.start, slice_.stop)
        if self.transposed:
            rows, columns = columns, rows
        return Rect(*rows, *columns)


class FusedExperts(nn.Module):
    """One fused weight of a transformers experts module, as if it were a layer of its own; stands in no model.

    Attributes:
        weight: the owner's Parameter, ``[experts, out, in]``, or ``[experts, in, out]`` where the owner says so.
        owner, attribute: the module that holds and uses it, and under which name.
    """

    owner: AnyLayer

    def __init__(self, owner: AnyLayer, attribute: str) -> None:
        super().__init__()
        self.weight = owner._parameters[attribute]
        self.bias = None
        self.__dict__["owner"] = owner  # not a child: this is a view of it
        self.attribute = attribute


def fused_weights(module: AnyLayer) -> list[str]:
    """Names of the fused weights of a transformers experts module; [] for any other module."""
    if not hasattr(module, "_apply_gate") or not hasattr(module, "is_transposed"):
        return []
    return [name for name, p in module._parameters.items() if p is not None and p.ndim == 3]


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module, or None if it cannot be sliced."""
    if isinstance(module, FusedExperts):
        return EXPERTS_TRANSPOSED if module.owner.is_transposed else EXPERTS
    if isinstance(module, nn.Linear):
        # A subclass with a forward of its own, or one whose forward its owner never calls, is something else.
        plain = type(module).forward is nn.Linear.forward and not isinstance(module, NonDynamicallyQuantizableLinear)
        return LINEAR if plain else None
    if type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return CONV
    hugging_face = sys.modules.get("transformers.pytorch_utils")
    if hugging_face is not None and type(module) is hugging_face.Conv1D:
        return CONV1D
    return None


SLICEABLE = "nn.Linear, transformers' Conv1D and fused experts, nn.Conv1d, nn.Conv2d and nn.Conv3d"


# Linear, and Conv1D, which differs in storage only.


@dataclass(frozen=True)
class _LinearProduct:
    slice: Slice
    bias: bool

    def __call__(self, kept: Tensor, dy: Tensor) -> tuple[Tensor, Tensor | None]:
        dy_TO = dy.reshape(-1, dy.shape[-1])
        kept_T = kept.reshape(-1, kept.shape[-1])
        if self.slice.axis == "column":
            return thin_product(kept_T, dy_TO), dy.new_zeros(self.slice.width) if self.bias else None
        dy_Tr = dy_TO[:, self.slice.start : self.slice.stop]
        return thin_product(dy_Tr, kept_T), dy_Tr.sum(0) if self.bias else None


def _linear_keep(module: AnyLayer, x: Tensor, y: Tensor, slice_: Slice) -> Tensor:
    x = x.detach()
    if slice_.axis == "column":
        x = x[..., slice_.start : slice_.stop].contiguous()
    return x.to(y.dtype)  # under autocast the layer computes in a smaller type than its input's


# Convolutions.


@dataclass(frozen=True)
class _ConvProduct:
    slice: Slice
    bias: bool
    module: AnyLayer

    def __call__(self, kept: Tensor, dy: Tensor) -> tuple[Tensor, Tensor | None]:
        dy = _batched(self.module, dy)
        if self.slice.axis == "column":
            groups, out = self.module.groups, dy.shape[1]
            dy_NGLo = dy.reshape(dy.shape[0], groups, out // groups, dy.shape[2:].numel()).transpose(2, 3)
            d_Gro = (kept @ dy_NGLo).sum(0)
            return d_Gro.transpose(0, 1).reshape(self.slice.width, -1), dy.new_zeros(self.slice.width) if self.bias else None
        d_slice = _conv_rows(self.module, kept, dy, self.slice)
        rows = dy[:, self.slice.start : self.slice.stop]
        return d_slice, rows.sum((0, *range(2, dy.ndim))) if self.bias else None


def _conv_keep(module: AnyLayer, x: Tensor, y: Tensor, slice_: Slice) -> Tensor:
    x = _batched(module, x.detach())
    kept = x if slice_.axis == "row" else _conv_columns(module, x, _batched(module, y), slice_)
    return kept.to(y.dtype)


def _conv_columns(module: AnyLayer, x: Tensor, y: Tensor, slice_: Slice) -> Tensor:
    """The slice's columns of the unfolded input, ``[N, groups, r, L]``, without unfolding the rest.

    Column j of the matrix is one input channel of every group and one place in the kernel; over all output places it
    reads that channel at a stride.
    """
    columns = torch.arange(slice_.start, slice_.stop)
    channel, *place = (i.tolist() for i in torch.unravel_index(columns, module.weight.shape[1:]))
    first, last = channel[0], channel[-1]
    grouped = x.unflatten(1, (module.groups, -1))[:, :, first : last + 1]
    padded = _pad(module, grouped.flatten(1, 2)).unflatten(1, (module.groups, -1))
    out = []
    for j in range(slice_.width):
        window: list[slice | int] = [slice(None), slice(None), channel[j] - first]
        for axis, k in enumerate(p[j] for p in place):
            begin = k * module.dilation[axis]
            window.append(slice(begin, begin + module.stride[axis] * (y.shape[2 + axis] - 1) + 1, module.stride[axis]))
        out.append(padded[tuple(window)].flatten(2))
    return torch.stack(out, dim=2)


def _conv_rows(module: AnyLayer, x: Tensor, dy: Tensor, slice_: Slice) -> Tensor:
    """The weight gradient of the slice's output channels, ``[r, in/groups · k]``."""
    groups, out = module.groups, module.weight.shape[0]
    start, stop, used = slice_.start, slice_.stop, 1
    if groups > 1:  # whole groups only can be given to the convolution; the rows wanted are cut out afterwards
        per = out // groups
        first, used = start // per, (stop - 1) // per - start // per + 1
        start, stop = first * per, (first + used) * per
        per_in = x.shape[1] // groups
        x = x[:, first * per_in : (first + used) * per_in]
    shape = (stop - start, *module.weight.shape[1:])
    grad = {3: torch.nn.grad.conv1d_weight, 4: torch.nn.grad.conv2d_weight, 5: torch.nn.grad.conv3d_weight}[x.ndim]
    whole_rows = grad(_pad(module, x), shape, dy[:, start:stop], module.stride, 0, module.dilation, used)
    return whole_rows.flatten(1)[slice_.start - start : slice_.stop - start]


def _pad(module: AnyLayer, x: Tensor) -> Tensor:
    sides = module._reversed_padding_repeated_twice
    if not any(sides):
        return x
    return F.pad(x, sides, "constant" if module.padding_mode == "zeros" else module.padding_mode)


def _batched(module: AnyLayer, x: Tensor) -> Tensor:
    """With the batch dimension that a convolution's input may leave out."""
    return x.unsqueeze(0) if x.ndim == module.weight.ndim - 1 else x


# Embeddings that share their weight [vocabulary, features] with a sliced linear layer.


@dataclass(frozen=True)
class _EmbeddingProduct:
    slice: Slice
    vocabulary: int
    padding: int | None

    def __call__(self, kept: Tensor, dy: Tensor) -> tuple[Tensor, Tensor | None]:
        ids, dy_TO = kept.reshape(-1), dy.reshape(-1, dy.shape[-1])
        wanted = torch.ones_like(ids, dtype=torch.bool) if self.padding is None else ids != self.padding
        if self.slice.axis == "row":
            wanted &= (ids >= self.slice.start) & (ids < self.slice.stop)
            return dy.new_zeros(self.slice.width, dy.shape[-1]).index_add_(
                0, ids[wanted] - self.slice.start, dy_TO[wanted]
            ), None
        dy_rT = dy_TO[wanted, self.slice.start : self.slice.stop].t()
        return dy.new_zeros(self.slice.width, self.vocabulary).index_add_(1, ids[wanted], dy_rT), None


LINEAR = Kind(
    "linear",
    lambda m: (m.out_features, m.in_features),
    False,
    _linear_keep,
    lambda m, s, bias: _LinearProduct(s, bias),
)
CONV1D = Kind("Conv1D", lambda m: (m.weight.shape[1], m.weight.shape[0]), True, _linear_keep, LINEAR.product)
CONV = Kind(
    "convolution",
    lambda m: (m.weight.shape[0], m.weight.shape[1:].numel()),
    False,
    _conv_keep,
    lambda m, s, bias: _ConvProduct(s, bias, m),
)
EXPERTS = Kind("experts", lambda m: (m.weight.shape[1], m.weight.shape[2]), False, _linear_keep, LINEAR.product)
EXPERTS_TRANSPOSED = Kind("experts", lambda m: (m.weight.shape[2], m.weight.shape[1]), True, _linear_keep, LINEAR.product)
EMBEDDING = Kind(
    "embedding",
    lambda m: (m.num_embeddings, m.embedding_dim),
    False,
    lambda m, ids, y, s: ids,
    lambda m, s, bias: _EmbeddingProduct(s, m.num_embeddings, m.padding_idx),
)
