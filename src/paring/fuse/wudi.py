"""WUDI: a merged difference that interferes least with each task's (Cheng et al. 2025, arXiv 2503.08099).

For a matrix [out, in] the rows of tau_i span, nearly, the inputs that layer has seen in task i. So tau is sought with

    least  sum_i ||(tau - tau_i) tau_i^T||_F^2 / ||tau_i||_F^2

from sum_i tau_i, by Adam as in the paper (300 steps, rate 1e-5); ``steps: 0`` gives the exact minimum of least norm instead.
The gradient is 2 (tau A - B), with G_i = tau_i^T tau_i / ||tau_i||^2, A = sum_i G_i [in, in] and B = sum_i tau_i G_i [out, in],
so that a step is one product however many tasks there are. Tensors that are no matrices: the mean.
Memory: ``work_bytes``; [in, in] may be far larger than the matrix.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from paring.fuse.inputs import Inputs
from paring.fuse.linear import SHARE, scaled_by
from paring.fuse.method import Method, Parameter, Settings
from paring.fuse.spectral import is_matrix, matrix, mean, written

_BETAS, _EPS = (0.9, 0.999), 1e-8


def wudi(inputs: Inputs, out: Tensor) -> None:
    """See above."""
    if not is_matrix(inputs):
        return mean(inputs, out)
    rows, columns = inputs.shape
    a = torch.zeros(columns, columns, device=inputs.device)
    b, tau = torch.zeros(rows, columns, device=inputs.device), torch.zeros(rows, columns, device=inputs.device)
    for i, weight in enumerate(inputs.values("weight")):
        own = matrix(inputs, i, weight)
        tau.add_(own)
        norm = float(own.double().square().sum())
        if norm:
            gram = (own.T @ own).div_(norm)
            a.add_(gram)
            b.addmm_(own, gram)
    steps = int(inputs.parameters["steps"])  # type: ignore[arg-type]
    rate = float(inputs.parameters["learning_rate"])  # type: ignore[arg-type]
    written(inputs, out, descended(tau, a, b, steps, rate) if steps else minimum(a, b))
    return None


def minimum(a: Tensor, b: Tensor) -> Tensor:
    """B A^+, without the directions of A that are rounding errors of its fp32 products."""
    small = a.shape[0] * torch.finfo(torch.float32).eps
    return (b.double() @ torch.linalg.pinv(a.double(), rtol=small, hermitian=True)).float()


def descended(tau: Tensor, a: Tensor, b: Tensor, steps: int, rate: float) -> Tensor:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980) on the quadratic; ``tau`` is overwritten."""
    first, second = torch.zeros_like(tau), torch.zeros_like(tau)
    for step in range(1, steps + 1):
        gradient = torch.addmm(b, tau, a, beta=-2, alpha=2)
        first.lerp_(gradient, 1 - _BETAS[0])
        second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        below = second.div(1 - _BETAS[1] ** step).sqrt_().add_(_EPS)
        tau.addcdiv_(first, below, value=-rate / (1 - _BETAS[0] ** step))
    return tau


def work_bytes(shape: torch.Size, parameters: Settings, per_model: Sequence[Settings]) -> int:
    """So many fp32 matrices [out, in] and [in, in]."""
    if len(shape) != 2 or min(shape) < 2:
        return 0
    whole, square = (9.0, 3.3) if parameters["steps"] else (5.0, 12.0)
    return int(4 * (whole * shape.numel() + square * shape[1] ** 2))


METHODS = (
    Method(
        "wudi",
        "Cheng et al. 2025, arXiv 2503.08099",
        "least interference with each task's own inputs",
        wudi,
        (
            SHARE,
            Parameter("steps", 300, "of Adam; 0: the exact minimum", kind=int, low=0),
            Parameter("learning_rate", 1e-5, "of Adam", low=0, open_low=True),
            scaled_by(1.0),
        ),
        work_bytes=work_bytes,
    ),
)
