"""The gradient of a slice, and nothing else of the weight's.

A sliced layer runs its own forward on its real, frozen weight ``W_OI``; autograd's backward of that makes the input
gradient only. ``attach`` then ties the slice's working copy to the layer's output: the identity in forward, and in
backward one thin product. With T = batch x positions, r = the slice's width:

    column slice   dS_rO = x_Tr.T @ dy_TO    keeps x[:, p:p+r], r of the input's I features
    row slice      dS_rI = dy_Tr.T @ x_TI    keeps x, which the layer itself dropped

The thin side stands left, so that the result is ``[r, n]``: the same product with the thin side right (``dy.T @ x_r``)
takes 4 to 5 times as long on a CPU. The working copy is therefore stored ``[r, n]``, contiguous, for both kinds; which
also is what fused optimizers need (on a strided view they write outside the slice).
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Product(Protocol):
    """The layer-kind specific backward: ``(kept, dy) -> (dS [r, n], d_bias [r])``; frozen, so that it can be kept."""

    def __call__(self, kept: Tensor, dy: Tensor) -> tuple[Tensor, Tensor | None]: ...


@dataclass
class Placement:
    """How often the slice of ``layer`` has been placed; a graph is good for the placement that it was built under."""

    layer: str
    number: int = 0


class _Attach(torch.autograd.Function):
    """Identity on ``y``; its backward hands the slice (and the bias entries) their gradients.

    ``y`` is marked as changed in place rather than returned as a view: a view made by a custom function could not be
    changed in place by what follows (``ReLU(inplace=True)``).
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, copy: Tensor, bias: Tensor | None, kept: Tensor, product: Product, placement: Placement | None
    ) -> Tensor:
        if not y._is_view():  # always so (see attach); asked here because the compiler leaves a function alone that asks
            ctx.mark_dirty(y)
        ctx.save_for_backward(kept)
        ctx.product, ctx.placement, ctx.number = product, placement, placement and placement.number
        ctx.like, ctx.bias_like = _meta(copy), None if bias is None else _meta(bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None, None]:
        if ctx.placement is not None and ctx.placement.number != ctx.number:
            raise RuntimeError(
                f"backward of a forward from before the slice of '{ctx.placement.layer}' moved: the gradient would go to other "
                "entries than the loss was computed with; run the forward again after session.step()"
            )
        (kept,) = ctx.saved_tensors
        d_slice, d_bias = ctx.product(kept, dy)
        return dy, _fill(d_slice, *ctx.like), _bias(d_bias, ctx.bias_like), None, None, None


def attach(
    y: Tensor, copy: Tensor, bias: Tensor | None, kept: Tensor, product: Product, placement: Placement | None = None
) -> Tensor:
    """``y``, through which ``copy`` (and ``bias``) now receive gradients.

    Args:
        y: the layer's output, any shape.
        copy: the slice's working copy, a leaf, ``[r, n]`` or flat with at least r·n entries.
        bias: the working copy of the bias entries of the active rows, ``[r]``, or None.
        kept: what ``product`` needs of the input.
        product: makes the gradients from ``kept`` and the output's gradient.
        placement: the slice's; backward raises RuntimeError if the slice has been placed anew by then.
    """
    if y._is_view():
        # Outputs often are views (three dimensions, Conv1D). In place on a view, autograd would copy the whole gradient;
        # this is the same memory as a tensor of its own, which nothing else refers to.
        y = torch.ops.aten._unsafe_view(y, y.shape)
    return _Attach.apply(y, copy, bias, kept, product, placement)


def thin_product(thin: Tensor, wide: Tensor) -> Tensor:
    """``thin.T @ wide`` for ``[T, r]`` and ``[T, n]``, r far below n.

    In fp32 on a CPU it is cut into pieces of T that are summed at the end: each thread then works on rows of ``wide``
    that fit its cache (0.7 of the time of one product at T = 4096, n = 1536).
    """
    length = thin.shape[0]
    if thin.device.type == "cpu" and thin.dtype == torch.float32 and length >= 1024 and length % 8 == 0:
        pieces = thin.view(8, length // 8, -1).transpose(1, 2) @ wide.view(8, length // 8, -1)
        return pieces.sum(0)
    return thin.t() @ wide


def _meta(copy: Tensor) -> tuple[torch.Size, torch.dtype]:
    return copy.shape, copy.dtype


def _fill(gradient: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The gradient in the working copy's type and shape; a copy with room for more entries ends in zeros."""
    if gradient.shape == shape:
        return gradient.to(dtype)
    filled = gradient.new_zeros(shape, dtype=dtype)
    filled.view(-1)[: gradient.numel()] = gradient.reshape(-1)
    return filled


def _bias(gradient: Tensor | None, like: tuple[torch.Size, torch.dtype] | None) -> Tensor | None:
    """In a column window no bias entry is active: its gradient is zero, not missing, since data-parallel training
    waits for every parameter."""
    if like is None:
        return None
    if gradient is None:
        raise AssertionError("a product gave no bias gradient")
    return _fill(gradient, *like)


class _AttachTraced(torch.autograd.Function):
    """The same for ``torch.compile``, linear layers only: the position is a tensor, so a move compiles nothing anew.

    A compiled graph has no in-place marks; the copy of ``y`` made here is fused away. Nor has it a place for the check
    that a backward belongs to this placement (a number read while tracing would be a constant of the graph, and every move
    compile it anew): a backward left over from before a move is not noticed here.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, copy: Tensor, bias: Tensor | None, kept: Tensor, index: Tensor, axis: str) -> Tensor:
        ctx.save_for_backward(kept, index)
        ctx.axis, ctx.shape, ctx.dtype = axis, copy.shape, copy.dtype
        ctx.bias_shape = None if bias is None else bias.shape
        return y.clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None, None]:
        kept, index = ctx.saved_tensors
        dy_TO = dy.reshape(-1, dy.shape[-1])
        kept_T = kept.reshape(-1, kept.shape[-1])
        thin = kept_T if ctx.axis == "column" else dy_TO.index_select(1, index)
        d_slice = thin.t() @ (dy_TO if ctx.axis == "column" else kept_T)
        d_bias = None
        if ctx.bias_shape is not None:
            d_bias = (thin.sum(0) if ctx.axis == "row" else dy.new_zeros(index.shape[0])).to(ctx.dtype)
            d_bias = _padded(d_bias, ctx.bias_shape)
        d_slice = _padded(d_slice, ctx.shape)
        return dy, d_slice.to(ctx.dtype), d_bias, None, None, None


def _padded(gradient: Tensor, shape: torch.Size) -> Tensor:
    """``_fill`` without writing in place, for the compiler."""
    if gradient.shape == shape:
        return gradient
    return torch.nn.functional.pad(gradient.reshape(-1), (0, shape.numel() - gradient.numel())).view(shape)


def attach_traced(x: Tensor, y: Tensor, copy: Tensor, bias: Tensor | None, start: Tensor, axis: str, rank: int) -> Tensor:
    """``attach`` inside a compiled graph, for ``[..., in] -> [..., out]``; ``start`` (int64, no dimension) may move."""
    index = start + torch.arange(rank, device=start.device)
    kept = x.detach().to(y.dtype)
    if axis == "column":
        kept = kept.index_select(-1, index)
    return _AttachTraced.apply(y, copy, bias, kept, index, axis)
