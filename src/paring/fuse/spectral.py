"""Merging matrices by their singular vectors: TSV-M and Iso-C. Tensors that are no matrices: base + lambda * mean of w_i tau_i.

    tsv   of each tau_i [m, n] the r / N largest singular values (r = min(m, n), N tasks) and their vectors, side by side:
          U [m, r], s, V [r, n]; U and V are replaced by the nearest matrices with orthonormal columns (rows), so that tasks no
          longer interfere; tau = U_perp diag(s) V_perp                             (Gargiulo et al. 2024, arXiv 2412.00081)
    iso   sum_i tau_i = U diag(s) V; tau = mean(s) U V: no direction is louder than another
                                                                              (Marczak et al. 2025, arXiv 2502.04959, Iso-C)

Directions whose singular value is zero to rounding are left out, of Iso-C's mean too: their vectors are arbitrary.
Memory: ``matrices``; methods that go entry by entry hold none.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from paring.fuse.inputs import FuseError, Inputs
from paring.fuse.linear import SHARE, add_weighted, scaled_by
from paring.fuse.method import Method, Settings


def matrix(inputs: Inputs, i: int, weight: float) -> Tensor:
    """w_i tau_i whole, fp32."""
    out = torch.empty(inputs.shape, device=inputs.device)
    flat = out.view(-1)
    for start, end in inputs.ranges():
        flat[start:end] = inputs.difference(i, start, end).mul_(weight)
    return out


def is_matrix(inputs: Inputs) -> bool:
    return len(inputs.shape) == 2 and min(inputs.shape) > 1


def matrices(whole: float, square: float) -> Callable[[torch.Size, Settings, Sequence[Settings]], int]:
    """How much a method holds of a matrix: so many in fp32, and so many squares of its smaller side."""

    def work_bytes(shape: torch.Size, parameters: Settings, per_model: Sequence[Settings]) -> int:
        if len(shape) != 2 or min(shape) < 2:
            return 0
        return int(4 * (whole * shape.numel() + square * min(shape) ** 2))

    return work_bytes


def mean(inputs: Inputs, out: Tensor) -> None:
    """For what is no matrix."""
    add_weighted(inputs, out, float(inputs.parameters["lambda"]) / len(inputs.values("weight")))  # type: ignore[arg-type]


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
        u, s, v = decomposed(inputs, matrix(inputs, i, weight), keep)
        lefts.append(u)
        values.append(s)
        rights.append(v)
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
    u, s, v = decomposed(inputs, total, min(inputs.shape))
    written(inputs, out, (u * s.mean()) @ v if s.numel() else torch.zeros_like(total))
    return None


def decomposed(inputs: Inputs, values: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """U, singular values in descending order, V (transposed): the ``keep`` largest, or those that are not zero to rounding.

    By the eigenvectors of the smaller of A A^T and A^T A, in fp64: its squares hold what fp32's singular values do, in less
    than half the time of a singular value decomposition.
    """
    wide = values.shape[0] <= values.shape[1]
    a = (values if wide else values.T).double()
    try:
        squares, u = torch.linalg.eigh(a @ a.T)
    except torch.linalg.LinAlgError as error:
        raise FuseError(
            f"'{inputs.name}' {list(inputs.shape)}: no singular value decomposition ({error}); "
            "expected finite differences of a usual size: scale the models' weights, or merge this tensor by task_arithmetic"
        ) from error
    s, u = squares.flip(0).clamp(min=0).sqrt(), u.flip(1)
    rank = int((s > s[0] * max(values.shape) * torch.finfo(torch.float32).eps).sum()) if s.numel() else 0
    s, u = s[: min(keep, rank)], u[:, : min(keep, rank)]
    v = (u.T @ a).div_(s[:, None])
    u, s, v = u.float(), s.float(), v.float()
    return (u, s, v) if wide else (v.T, s, u.T)


def orthonormal(inputs: Inputs, vectors: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (or rows, whichever are fewer): the polar factor.

    Directions that several tasks have in common count once.
    """
    if not vectors.numel():
        return vectors
    u, _, v = decomposed(inputs, vectors, min(vectors.shape))
    return u @ v


METHODS = (
    Method(
        "tsv",
        "Gargiulo et al. 2024, arXiv 2412.00081",
        "each task's largest singular vectors, made orthogonal",
        tsv,
        (SHARE, scaled_by(1.0)),
        work_bytes=matrices(9, 9.5),
    ),
    Method(
        "iso",
        "Marczak et al. 2025, arXiv 2502.04959",
        "sum with all singular values made equal (Iso-C)",
        iso,
        (SHARE, scaled_by(1.0)),
        work_bytes=matrices(7, 6),
    ),
)
