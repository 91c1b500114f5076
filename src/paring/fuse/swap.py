"""Base and one model, entry by entry: nearswap and arcee_fusion, as mergekit has them.

    nearswap       the model where it is within t of the base, ever less of it farther away: weight t / |tau|, at most 1
    arcee_fusion   the model where it matters: |tau| times its row's KL(softmax model || softmax base) is at least
                   median + 1.5 (q3 - q1) of that over the tensor

mergekit estimates the quartiles of a tensor of more than 10^6 entries from a random sample; ours are exact.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softmax

from paring.fuse.inputs import Inputs
from paring.fuse.method import REQUIRED, Method, Parameter


def nearswap(inputs: Inputs, out: Tensor) -> None:
    """See above."""
    t, flat = float(inputs.parameters["t"]), out.view(-1)  # type: ignore[arg-type]
    for start, end in inputs.ranges():
        base = inputs.base_piece(start, end)
        difference = inputs.difference(0, start, end, base=base)
        weight = difference.abs().clamp_(min=1e-6).reciprocal_().mul_(t).clamp_(max=1.0)
        flat[start:end] = base.add_(difference.mul_(weight))


def arcee_fusion(inputs: Inputs, out: Tensor) -> None:
    """See above; holds one fp32 number an entry."""
    width, flat = (inputs.shape[-1] if inputs.shape else 1), out.view(-1)

    def importance(start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        base = inputs.base_piece(start, end)
        model = inputs.weights(0, start, end)
        p, q = (softmax(x.view(-1, width), dim=-1).add_(1e-8) for x in (model, base))
        divergence = (p * (p / q).log_()).sum(-1, keepdim=True)
        difference = model.sub_(base)
        return base, difference, difference.abs().view(-1, width).mul_(divergence).view(-1)

    scores = torch.empty(inputs.numel, device=inputs.device)
    for start, end in inputs.ranges(width):
        scores[start:end] = importance(start, end)[2]
    least = _threshold(scores)
    for start, end in inputs.ranges(width):
        base, difference, score = importance(start, end)
        flat[start:end] = base.add_(difference.mul_(score.sub_(least).ge_(0)))


def _threshold(scores: Tensor) -> float:
    """median + 1.5 (q3 - q1); ``scores`` are put into another order."""
    ranks = [int(q * (scores.numel() - 1)) for q in (0.25, 0.5, 0.75)]
    if scores.device.type == "cpu":
        values = scores.numpy()
        values.partition(sorted(set(ranks)))
    else:
        values = scores.sort().values.cpu().numpy()
    q1, median, q3 = (np.float32(values[r]) for r in ranks)
    return float(median + np.float32(1.5) * (q3 - q1))


METHODS = (
    Method(
        "nearswap",
        "alchemonaut 2024, mergekit",
        "the model where it is near the base",
        nearswap,
        (Parameter("t", REQUIRED, "how near, in units of the weights", low=0, open_low=True),),
        max_models=1,
    ),
    Method(
        "arcee_fusion",
        "Arcee 2024, mergekit",
        "the model where its change matters most",
        arcee_fusion,
        max_models=1,
        work_bytes=lambda shape, parameters, per_model: 4 * shape.numel(),
    ),
)
