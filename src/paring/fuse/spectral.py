"""Merging matrices by their singular vectors: TSV-M and Iso-C. Tensors that are no matrices: base + lambda * mean of w_i tau_i.

    tsv   of each tau_i [m, n] the r / N largest singular values (r = min(m, n), N tasks) and their vectors, side by side:
          U [m, r], s, V [r, n]; U and V are replaced by the nearest matrices with orthonormal columns (rows), so that tasks no
          longer interfere; tau = U_perp diag(s) V_perp                             (Gargiulo et al. 2024, arXiv 2412.00081)
    iso   sum_i tau_i = U diag(s) V; tau = mean(s) U V: no direction is louder than another
                                                                              (Marczak et al. 2025, arXiv 2502.04959, Iso-C)

Iso-C: directions whose singular value is zero to rounding are left out, of the mean too: their vectors are arbitrary.
Memory: about four fp32 matrices; the others hold none.
"""

import torch
from torch import Tensor

from paring.fuse.inputs import FuseError, Inputs
from paring.fuse.linear import SHARE, scaled_by
from paring.fuse.method import Method


def matrix(inputs: Inputs, i: int, weight: float) -> Tensor:
    """w_i tau_i whole, fp32."""
    out = torch.empty(inputs.shape, device=inputs.device)
    flat = out.view(-1)
    for start, end in inputs.ranges():
        flat[start:end] = inputs.difference(i, start, end).mul_(weight)
    return out


def is_matrix(inputs: Inputs) -> bool:
    return len(inputs.shape) == 2 and min(inputs.shape) > 1


def mean(inputs: Inputs, out: Tensor) -> None:
    """For what is no matrix."""
    weights = inputs.values("weight")
    factor = float(inputs.parameters["lambda"]) / len(weights)  # type: ignore[arg-type]
    flat = out.view(-1)
    for start, end in inputs.ranges():
        base = inputs.base_piece(start, end)
        merged = base.clone()
        for i, weight in enumerate(weights):
            merged.add_(inputs.difference(i, start, end, base=base), alpha=weight * factor)
        flat[start:end] = merged


def written(inputs: Inputs, out: Tensor, tau: Tensor) -> None:
    """Base + lambda * tau."""
    factor = float(inputs.parameters["lambda"])  # type: ignore[arg-type]
    flat, difference = out.view(-1), tau.reshape(-1)
    for start, end in inputs.ranges():
        flat[start:end] = inputs.base_piece(start, end).add_(difference[start:end], alpha=factor)


def tsv(inputs: Inputs, out: Tensor) -> None:
    """See above; of few dimensions and many tasks (r < N) each task keeps one."""
    if not is_matrix(inputs):
        return mean(inputs, out)
    weights = inputs.values("weight")
    keep = max(1, min(inputs.shape) // len(weights))
    lefts, values, rights = [], [], []
    for i, weight in enumerate(weights):
        u, s, v = decomposed(inputs, matrix(inputs, i, weight))
        lefts.append(u[:, :keep].clone())
        values.append(s[:keep].clone())
        rights.append(v[:keep].clone())
        del u, s, v
    left, right = (orthonormal(inputs, torch.cat(of, dim)) for of, dim in ((lefts, 1), (rights, 0)))
    written(inputs, out, (left * torch.cat(values)) @ right)
    return None


def iso(inputs: Inputs, out: Tensor) -> None:
    """See above."""
    if not is_matrix(inputs):
        return mean(inputs, out)
    weights = inputs.values("weight")
    total = matrix(inputs, 0, weights[0])
    for i in range(1, len(weights)):
        total.add_(matrix(inputs, i, weights[i]))
    u, s, v = decomposed(inputs, total)
    rank = int((s > s[0] * max(inputs.shape) * torch.finfo(torch.float32).eps).sum())
    tau = (u[:, :rank] * s[:rank].mean()) @ v[:rank] if rank else torch.zeros_like(total)
    written(inputs, out, tau)
    return None


def decomposed(inputs: Inputs, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, singular values in descending order, V (transposed)."""
    try:
        u, s, v = torch.linalg.svd(values, full_matrices=False)
    except torch.linalg.LinAlgError as error:
        raise FuseError(
            f"'{inputs.name}' {list(inputs.shape)}: no singular value decomposition ({error}); "
            "expected finite differences of a usual size: scale the models' weights, or merge this tensor by task_arithmetic"
        ) from error
    return u, s, v


def orthonormal(inputs: Inputs, vectors: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (or rows, whichever are fewer): the polar factor."""
    u, _, v = decomposed(inputs, vectors)
    return u @ v


METHODS = (
    Method(
        "tsv",
        "Gargiulo et al. 2024, arXiv 2412.00081",
        "each task's largest singular vectors, made orthogonal",
        tsv,
        (SHARE, scaled_by(1.0)),
    ),
    Method(
        "iso",
        "Marczak et al. 2025, arXiv 2502.04959",
        "sum with all singular values made equal (Iso-C)",
        iso,
        (SHARE, scaled_by(1.0)),
    ),
)
