"""Restricted gradients (SliceFine, definition of a local winner): which slices could lower the loss at once?

A slice ``M`` is a *local winner* at θ0 if ``‖∇_M L(θ0)‖ > 0`` and some update of it lowers the loss. The second follows from
the first: along the negative gradient the loss falls, for a step short enough. So the norm of the gradient on the slice's
entries decides, and one backward gives that of every slice.

    relative norm   ‖∇_M L‖ / (‖∇_W L‖ · sqrt(entries of M / entries of W)): 1 where the layer's gradient is spread evenly
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from paring.probe.layers import as_matrices
from paring.tune.slices import Axis
from paring.tune.targets import Layer

Batch = Mapping[str, Tensor]


def slice_norms(gradient: Tensor, axis: Axis, positions: Sequence[int], rank: int) -> Tensor:
    """The norm of a gradient on each slice, ``[positions]`` in fp64; exactly 0 where all its entries are.

    Args:
        gradient: ``[n, out, in]``; slices of n matrices at the same place are one slice (fused experts).
        positions: first rows (columns). rank: rows (columns) in a slice; all lie within the matrix.
    """
    squares = gradient.double().square().sum((0, 2) if axis == "row" else (0, 1))
    return squares.unfold(0, rank, 1)[torch.as_tensor(positions, device=squares.device)].sum(-1).sqrt()


def mean_gradients(model: nn.Module, layers: Sequence[Layer], batches: Iterable[Batch]) -> tuple[dict[str, Tensor], float]:
    """The gradient of the mean loss over all rows, by layer as ``[n, out, in]`` in fp32, and that loss.

    One backward a batch; batches count by their rows. In memory: the model, one gradient of the layers' weights in the weights'
    type, one in fp32. ``requires_grad`` and ``.grad`` of all parameters are put back.

    Args:
        model: in the mode it is to be measured in; returns an output with ``loss``.

    Raises:
        ValueError: no batch, or a loss that is not finite.
    """
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    sums = {layer.name: torch.zeros_like(layer.module.weight, dtype=torch.float32) for layer in layers}
    total, num_rows = 0.0, 0
    try:
        model.requires_grad_(False)
        for layer in layers:
            layer.module.weight.requires_grad_(True)
        for batch in batches:
            count = len(next(iter(batch.values())))
            loss = model(**batch).loss
            if not torch.isfinite(loss):
                raise ValueError(f"the loss of batch {num_rows // max(count, 1)} is {loss.item()}; expected a finite number")
            for parameter, _, _ in before:
                parameter.grad = None
            loss.backward()
            for layer in layers:
                if layer.module.weight.grad is not None:  # no row reached it (an expert)
                    sums[layer.name].add_(layer.module.weight.grad, alpha=count)
            total += float(loss.detach()) * count
            num_rows += count
    finally:
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient
    if not num_rows:
        raise ValueError("there is no batch to take a gradient of; expected at least one row")
    return {layer.name: as_matrices(layer, sums[layer.name].div_(num_rows)) for layer in layers}, total / num_rows
