"""Model stock: how far the mean of fine-tunes should be from the base, by the angle between them (Jang et al. 2024, arXiv
2403.19522, equation 7).

    t = N cos / (1 + (N - 1) cos),  cos: the mean cosine between the N differences;  theta = theta_pre + t * mean_i tau_i

Of each tensor, as mergekit does, or of each row of its last dimension (``filter_wise``).
"""

import torch
from torch import Tensor

from paring.fuse.inputs import Inputs
from paring.fuse.method import Method, Parameter


def model_stock(inputs: Inputs, out: Tensor) -> None:
    """See above. Differences whose norms multiply to less than 1e-6 count as nearly orthogonal, as in mergekit."""
    n, flat = len(inputs.models), out.view(-1)
    by_row = bool(inputs.parameters["filter_wise"]) and len(inputs.shape) > 1 and inputs.numel > 0
    width = inputs.shape[-1] if by_row else 1
    products = torch.zeros(1, n, n, dtype=torch.float64, device=inputs.device)

    def differences(start: int, end: int) -> Tensor:
        base = inputs.base_piece(start, end)
        rows = torch.stack([inputs.difference(i, start, end, base=base) for i in range(n)])
        return rows.view(n, -1, width).transpose(0, 1) if by_row else rows[None]  # [rows, n, width]

    if not by_row:
        for start, end in inputs.ranges():
            d = differences(start, end).double()
            products += d @ d.transpose(1, 2)
    for start, end in inputs.ranges(width):
        d = differences(start, end)
        t = _ratio((d.double() @ d.double().transpose(1, 2)) if by_row else products)
        mean = d.sum(1) * (t / n).float()[:, None]
        flat[start:end] = mean.view(-1).add_(inputs.base_piece(start, end))


def _ratio(products: Tensor) -> Tensor:
    """t of each row, given the inner products of its differences, [rows, n, n]."""
    n = products.shape[1]
    norms = products.diagonal(dim1=1, dim2=2).sqrt()
    cosines = (products / (norms[:, :, None] * norms[:, None, :]).clamp(min=1e-6)).clamp(-1, 1)
    a, b = torch.triu_indices(n, n, 1, device=products.device)
    cos = cosines[:, a, b].mean(1)
    below = 1 + (n - 1) * cos
    singular = below.abs() < 1e-6  # differences that cancel out: the base
    return (n * cos / below.masked_fill(singular, 1.0)).masked_fill(singular, 0.0)


METHODS = (
    Method(
        "model_stock",
        "Jang et al. 2024, arXiv 2403.19522",
        "mean of fine-tunes, drawn to the base by the angle between them",
        model_stock,
        (Parameter("filter_wise", False, "by row instead of by tensor", kind=bool),),
        min_models=2,
    ),
)
