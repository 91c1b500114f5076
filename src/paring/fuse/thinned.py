"""Sums of thinned differences: theta_pre + lambda sum_i w_i thin(tau_i), as they are or of the elected sign alone.

Election (TIES, Yadav et al. 2023, arXiv 2306.01708, steps 2 and 3): an entry's sign is that of sum_i w_i thin(tau_i), positive
where that is zero; models that differ in it are left out of the sum, and, with normalize, of the weights that it is divided by.

With y_i = max(0, sign thin(tau_i)) the sum is sign * sum_i w_i y_i, over sum_i w_i [y_i > 0]: in floats, without a mask; of a
weight below zero y_i = max(0, -sign thin(tau_i)), and its size counts.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paring.fuse.inputs import Inputs
from paring.fuse.method import Settings, Stage
from paring.fuse.scope import local_cuts
from paring.fuse.thin import Thin, Thinner, everything, masked

_SMALL = 1e-7  # sums below are not divided by
_ZERO = 1e-30  # nothing takes part: the sum is zero, too
_CANCELLED = 1e-6  # of the weights


def merge(inputs: Inputs, out: Tensor, thinner: Thinner, stages: Sequence[Stage], *, elect: bool, row: int = 1) -> None:
    """See above.

    Args:
        inputs: with weight, normalize, lambda, and rescale.
        stages: what ``thinner`` needs.
        row: entries that ``thinner`` must see together.
    """
    cuts = local_cuts(inputs, stages)
    weights = inputs.values("weight")
    thins: list[Thin] = []
    factors: list[float] = []
    for i in range(len(weights)):
        thin, factor = thinner(inputs, i, cuts), 1.0
        if inputs.parameters["rescale"] and thin is not everything:
            thin, factor = rescaled(inputs, i, thin, row)
        thins.append(thin)
        factors.append(weights[i] * factor)
    total = sum(weights) if inputs.parameters["normalize"] and not elect else 1.0
    scale = float(inputs.parameters["lambda"]) / total  # type: ignore[arg-type]
    divide = bool(inputs.parameters["normalize"])
    flat = inputs.flat(out)
    for start, end in inputs.ranges(row):
        base = inputs.base_piece(start, end)
        kept = [thin(inputs.difference(i, start, end, base=base), start) for i, thin in enumerate(thins)]
        if elect:
            merged = elected(kept, factors, weights if divide else None)
            flat[start:end] = base.add_(merged, alpha=scale)
        else:
            for k, factor in zip(kept, factors, strict=True):
                base.add_(k, alpha=factor * scale)
            flat[start:end] = base


def work_bytes(shape: torch.Size, parameters: Settings, per_model: Sequence[Settings]) -> int:
    """Of what is scaled back to its norm is held which entries were kept."""
    thinned = sum(float(one["density"]) < 1 for one in per_model)  # type: ignore[arg-type]
    return thinned * shape.numel() // 8 if parameters["rescale"] else 0


def elected(terms: Sequence[Tensor], factors: Sequence[float], weights: Sequence[float] | None) -> Tensor:
    """Of pieces (overwritten) times factors, the sum of those that have the elected sign, over their weights if these are
    given."""
    sign = terms[0] * factors[0]
    for term, factor in zip(terms[1:], factors[1:], strict=True):
        sign.add_(term, alpha=factor)
    sign.ge_(0).mul_(2).sub_(1)
    total = torch.zeros_like(sign)
    share = torch.zeros_like(sign)
    for i, (term, factor) in enumerate(zip(terms, factors, strict=True)):
        term.mul_(sign)
        if factor < 0:
            term.neg_()
        total.add_(term.clamp_min_(0), alpha=abs(factor))
        if weights is not None:
            share.add_(term.sign_(), alpha=weights[i])
    if weights is None:
        return total.mul_(sign)
    if min(weights) > 0:
        share.clamp_min_(_ZERO)
    else:
        # As mergekit does where the weights of those that agree cancel; they may but for what rounding leaves.
        share.masked_fill_(share.abs() < _CANCELLED * sum(map(abs, weights)), 1.0)
    return total.mul_(sign).div_(share)


def rescaled(inputs: Inputs, i: int, thin: Thin, row: int) -> tuple[Thin, float]:
    """A thinning that is known to the end (a bit an entry is kept), and what restores the L1 norm."""
    before, after = 0.0, 0.0
    bits: dict[int, npt.NDArray[np.uint8]] = {}
    for start, end in inputs.ranges(row):
        magnitudes = inputs.difference(i, start, end).abs_()
        before += float(magnitudes.sum())
        kept = thin(magnitudes, start)
        after += float(kept.sum())
        bits[start] = np.packbits(kept.cpu().numpy() != 0)

    def again(piece: Tensor, start: int) -> Tensor:
        return masked(piece, np.unpackbits(bits[start], count=piece.numel()).view(np.bool_))

    return again, before / after if min(before, after) >= _SMALL else 1.0
