"""Spectral balance (SliceFine, Lemma 2.1): do groups of rows of a pretrained matrix carry alike spectra?

``W`` is ``[out, in]``, cut into k disjoint groups of consecutive rows ``W_g`` (sizes differ by one row at most). The lemma is
about the eigenvalues of ``W_g W_gᵀ``: their mean is nearly the same for all g, and they decay alike. Column groups are row
groups of ``Wᵀ``.

    energy ratio    max_g / min_g of the mean eigenvalue, that is, of ‖W_g‖² per row
    profile ratio   max over i of max_g / min_g of λ_i / mean λ, over the leading i that hold 90 % of every group's energy
    place           i of m eigenvalues as a number from 0 (the largest) to 1

Two controls stand beside it. *Gaussian*: independent entries of W's root mean square; balanced by chance alone. *Permuted
spectrum blocks*: the same singular values as W, but W's spectrum, in descending order, is cut into k consecutive blocks, and
each block becomes the whole spectrum of one group, in random order: the rows of ``W' = P S Vᵀ`` (P permutes blocks of rows) are
W's right singular vectors times its singular values. It has W's spectrum and no balance, so the measure must find it
unbalanced. The eigenvalues of ``W'_g W'_gᵀ`` are the squared singular values of its block; W' itself is never made.

All arithmetic is fp64; of the size of W there are only W and, for the second control, its Gram matrix.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from paring.probe.kind import Row

PLACES = tuple(i / 16 for i in range(17))
ENERGY = 0.9  # of a group's energy, in the leading eigenvalues whose decay is compared
_PIECE = 1 << 22  # entries converted at a time


def group_bounds(extent: int, num_groups: int) -> list[tuple[int, int]]:
    """``num_groups`` runs of consecutive rows, (first, end), whose sizes differ by one at most, the longer ones first.

    Raises:
        ValueError: there are fewer rows than groups, or less than two groups.
    """
    if num_groups < 2 or num_groups > extent:
        raise ValueError(f"groups is {num_groups}; expected 2 to {extent}, the matrix's extent")
    size, longer = divmod(extent, num_groups)
    ends = [size * (g + 1) + min(g + 1, longer) for g in range(num_groups)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def group_eigenvalues(matrix: Tensor, num_groups: int) -> list[Tensor]:
    """The eigenvalues of ``W_g W_gᵀ`` of every row group, each ``[rows]`` in fp64, descending, not negative.

    Args:
        matrix: ``[out, in]``, any floating type and strides.
        num_groups: k, from 2 to ``out``.
    """
    return [_eigenvalues(matrix[first:end]) for first, end in group_bounds(matrix.shape[0], num_groups)]


def gaussian_like(matrix: Tensor, seed: int) -> Tensor:
    """``[out, in]``, fp32: independent normal entries of the same root mean square."""
    generator = torch.Generator().manual_seed(seed)
    root = math.sqrt(_square(matrix) / matrix.numel())
    return torch.empty(matrix.shape).normal_(generator=generator).mul_(root)


def spectrum(matrix: Tensor) -> Tensor:
    """The squared singular values, ``[min(out, in)]`` in fp64, descending."""
    thin = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    return _eigenvalues(thin)


def permuted_blocks(squares: Tensor, extent: int, num_groups: int, seed: int) -> list[Tensor]:
    """The group eigenvalues of the control with permuted spectrum blocks, as ``group_eigenvalues`` gives them.

    Args:
        squares: the spectrum, descending, at most ``extent`` values; the rows beyond them are zero and every group has its
            share of these.
        extent: rows of the matrix.
    """
    sizes = [end - first for first, end in group_bounds(extent, num_groups)]
    filled = [len(part) for part in squares[:extent].tensor_split(num_groups)]  # of each group; never above its size
    order = torch.randperm(num_groups, generator=torch.Generator().manual_seed(seed)).tolist()  # block -> group
    blocks = dict(zip(order, squares[:extent].split([filled[g] for g in order]), strict=True))
    return [torch.cat([blocks[g], squares.new_zeros(sizes[g] - filled[g])]) for g in range(num_groups)]


def balance(groups: Sequence[Tensor]) -> Row:
    """How alike groups are: ``energy_ratio`` and ``profile_ratio`` (at least 1; infinite where a group is zero),
    ``effective_ranks_ratio``, and the groups' number."""
    means = [float(g.mean()) for g in groups]
    ranks = [effective_rank(g) / len(g) for g in groups]
    return {
        "num_groups": len(groups),
        "energy_ratio": _ratio(means),
        "profile_ratio": _profile_ratio(groups),
        "effective_rank_ratio": _ratio(ranks),
    }


def effective_rank(eigenvalues: Tensor) -> float:
    """exp of the entropy of the eigenvalues' shares (Roy and Vetterli, 2007): 1 to their number; 0 where all are zero."""
    total = float(eigenvalues.sum())
    if total <= 0:
        return 0.0
    shares = eigenvalues[eigenvalues > 0] / total
    return math.exp(-float((shares * shares.log()).sum()))


def profiles(groups: Sequence[Tensor]) -> list[Row]:
    """The decay: at each of ``PLACES`` the least, mean and largest λ / mean λ over the groups that are not zero."""
    scaled = [g / g.mean() for g in groups if float(g.mean()) > 0]
    rows: list[Row] = []
    for place in PLACES if scaled else ():
        at = [float(g[round(place * (len(g) - 1))]) for g in scaled]
        rows.append({"place": place, "least": min(at), "mean": math.fsum(at) / len(at), "most": max(at)})
    return rows


def _eigenvalues(rows: Tensor) -> Tensor:
    gram = _gram(rows) if rows.shape[0] <= rows.shape[1] else _gram(rows.t())
    found = torch.linalg.eigvalsh(gram).flip(0).clamp_(min=0)
    return torch.cat([found, found.new_zeros(rows.shape[0] - len(found))]) if len(found) < rows.shape[0] else found


def _gram(rows: Tensor) -> Tensor:
    """``rows rowsᵀ`` in fp64, a piece of columns at a time."""
    width = max(_PIECE // rows.shape[0], 1)
    gram = torch.zeros(rows.shape[0], rows.shape[0], dtype=torch.float64)
    for piece in rows.split(width, dim=1):
        exact = piece.double()
        gram.addmm_(exact, exact.t())
    return gram


def _square(matrix: Tensor) -> float:
    rows = max(_PIECE // matrix.shape[1], 1)
    return math.fsum(float(piece.double().square().sum()) for piece in matrix.split(rows))


def _ratio(values: Sequence[float]) -> float:
    low, high = min(values), max(values)
    return high / low if low > 0 else math.inf


def _profile_ratio(groups: Sequence[Tensor]) -> float:
    if any(float(g.mean()) <= 0 for g in groups):
        return math.inf
    scaled = [g / g.mean() for g in groups]
    leading = max(int((g.cumsum(0) < ENERGY * g.sum()).sum()) + 1 for g in groups)
    leading = min(leading, *(len(g) for g in groups))
    at = torch.stack([g[:leading] for g in scaled])
    low, high = at.min(0).values, at.max(0).values
    return float((high / low).max()) if float(low.min()) > 0 else math.inf
