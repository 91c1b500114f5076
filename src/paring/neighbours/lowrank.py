"""The nearest matrix of a given rank: tau ~ B A, B [rows, k], A [k, columns], k <= rank (Eckart and Young 1936).

With the k leading left singular vectors U of tau, B = U and A = U^T tau; what is kept of the energy ||tau||^2 is ||A||^2, and
nothing nearer has that rank. U comes from the eigenvectors of tau tau^T in fp64: cheaper than a whole SVD, and the only
error this can make is in directions below 1e-8 of the largest, 1e-16 of the energy. Before that, what is thin is made thin:
rows and columns of zeros (a slice) go, and where the product with a few random vectors spans tau entirely (Halko, Martinsson
and Tropp 2011, arXiv 0909.4061), tau is of low rank already and only that span is looked at.

Directions that together hold less than 1e-13 of the energy are the rounding of fp32 numbers (2^-24 squared is 4e-15), and are
taken for zero throughout.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from paring.delta.factors import LowRank

_SPARE, _NOISE = 8, 1e-13


class Factors(NamedTuple):
    """``B @ A`` is nearest to a matrix; ``kept`` of its energy ``total`` (sums of squares, fp64)."""

    B: Tensor
    A: Tensor
    kept: float
    total: float

    @property
    def lost(self) -> float:
        """The share of the energy that is lost, in [0, 1]; 0 of a matrix of zeros."""
        return max(0.0, 1.0 - self.kept / self.total) if self.total else 0.0


def own(low: LowRank) -> Factors:
    """The factors that a difference is known by, the scale in B, in fp32: nothing is lost."""
    B, A = low.B.double() * low.scale, low.A.double()
    energy = float(((B.T @ B) * (A @ A.T)).sum())
    return Factors(B.float(), A.float(), energy, energy)


def nearest(matrix: Tensor, rank: int) -> Factors:
    """The factors of the nearest matrix of ``rank`` or less, both of one scale, in fp32.

    Args:
        matrix: [rows, columns], finite.

    Returns:
        Factors of as many columns (of B) as the matrix has rank, at most ``rank``; none for a matrix of zeros.
    """
    rows, columns = matrix.any(1).nonzero().view(-1), matrix.any(0).nonzero().view(-1)
    tau = matrix[rows][:, columns].double()
    if tau.shape[0] <= tau.shape[1]:
        U, projected = _leading(tau, rank)
    else:
        U, projected = _leading(tau.T, rank)
    sigma = projected.norm(dim=1)
    left_over = sigma.square().flip(0).cumsum(0).flip(0)  # energy from each direction on
    good = left_over > _NOISE * tau.square().sum()
    root = sigma[good].sqrt()
    left, right = U[:, good] * root, projected[good] / root[:, None]
    b, a = (left, right) if tau.shape[0] <= tau.shape[1] else (right.T, left.T)
    B, A = torch.zeros(matrix.shape[0], len(root)), torch.zeros(len(root), matrix.shape[1])
    B[rows], A[:, columns] = b.float(), a.float()
    return Factors(B, A, float(sigma[good].square().sum()), float(tau.square().sum()))


def _leading(tau: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The leading left singular vectors U [rows, k] of ``tau`` [rows, columns], rows <= columns, and U^T tau [k, columns]."""
    num_probes = rank + _SPARE
    if 4 * num_probes < tau.shape[0]:
        probes = torch.randn(tau.shape[1], num_probes, dtype=tau.dtype, generator=torch.Generator().manual_seed(0))
        Q = torch.linalg.qr(tau @ probes).Q
        inside = Q.T @ tau
        if math.isclose(float(inside.square().sum()), float(tau.square().sum()), rel_tol=_NOISE):
            U, projected = _leading(inside, rank)
            return Q @ U, projected
    U = torch.linalg.eigh(tau @ tau.T).eigenvectors.flip(1)[:, :rank]
    return U, U.T @ tau
