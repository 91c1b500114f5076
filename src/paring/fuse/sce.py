"""SCE: select, calculate, erase (Wan et al. 2024, arXiv 2408.07990, section 3.3), as mergekit has it.

select      the entries whose variance over the models is largest: select_topk of those where it is not zero
calculate   a model's weight is the mean of its squared differences there, over the sum of all models'; equal where that
            sum is below 1e-6 (which it is for most fine-tunes of small steps)
erase       models whose difference has not the sign of the sum
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paring.fuse.inputs import Cuts, Inputs
from paring.fuse.linear import INT8_MASK
from paring.fuse.method import Method, Parameter, Ranking
from paring.fuse.scope import local_cuts


def by_variance(inputs: Inputs, found: Cuts) -> list[Ranking]:
    """Where the largest variances end; nothing is ranked where all are selected."""
    topk = float(inputs.parameters["select_topk"])  # type: ignore[arg-type]
    if topk >= 1:
        return []

    def read(start: int, end: int, step: int) -> Tensor:
        return _variance(_differences(inputs, start, end, step))

    return [Ranking(read, lambda n, nonzero: [int(nonzero * topk)], of_nonzero=True)]


def sce(inputs: Inputs, out: Tensor) -> None:
    """See above."""
    cuts, n, flat = local_cuts(inputs, (by_variance,)), len(inputs.models), out.view(-1)
    bits: dict[int, npt.NDArray[np.uint8]] = {}  # what is selected, a bit an entry: variances are not computed once more

    def selected(start: int, end: int) -> list[Tensor]:
        differences = _differences(inputs, start, end)
        if not cuts:
            return differences
        if start in bits:
            mask = torch.from_numpy(np.unpackbits(bits[start], count=end - start)).to(inputs.device, torch.float32)
        else:
            mask = cuts[0][0].keep(_variance(differences), start).sign_()
            bits[start] = np.packbits(mask.cpu().numpy() != 0)
        return [d.mul_(mask) for d in differences]

    squares = [0.0] * n
    for start, end in inputs.ranges():
        for i, d in enumerate(selected(start, end)):
            squares[i] += float(torch.dot(d, d))
    means = [s / max(1, inputs.numel) for s in squares]
    weights = [m / sum(means) for m in means] if sum(means) >= 1e-6 else [1 / n] * n
    for start, end in inputs.ranges():
        terms = selected(start, end)
        sign = terms[0].clone()
        for term in terms[1:]:
            sign.add_(term)
        sign.ge_(0).mul_(2).sub_(1)
        total, share = torch.zeros_like(sign), torch.zeros_like(sign)
        for term, weight in zip(terms, weights, strict=True):
            total.add_(term.mul_(sign).clamp_min_(0), alpha=weight)
            share.add_(term.sign_(), alpha=weight)
        flat[start:end] = total.mul_(sign).div_(share.clamp_min_(1e-6)).add_(inputs.base_piece(start, end))


def _differences(inputs: Inputs, start: int, end: int, step: int = 1) -> list[Tensor]:
    base = inputs.base_piece(start, end, step)
    return [inputs.difference(i, start, end, step, base=base) for i in range(len(inputs.models))]


def _variance(differences: list[Tensor]) -> Tensor:
    """Of each entry over the models, divided by their number."""
    n = len(differences)
    mean = differences[0].clone()
    for d in differences[1:]:
        mean.add_(d)
    mean.div_(n)
    total = torch.zeros_like(mean)
    for d in differences:
        away = d - mean
        total.addcmul_(away, away)
    return total.div_(n)


METHODS = (
    Method(
        "sce",
        "Wan et al. 2024, arXiv 2408.07990",
        "entries of largest variance, weighted by energy, of the elected sign",
        sce,
        (
            Parameter("select_topk", 1.0, "share of the entries that differ between models", low=0, high=1, open_low=True),
            INT8_MASK,
        ),
        stages=(by_variance,),
    ),
)
