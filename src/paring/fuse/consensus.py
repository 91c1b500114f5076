"""Consensus merging: what at least k tasks need of the multi-task vector (TALL masks; Wang et al. 2024, arXiv 2405.07813).

    tau   = sum_i w_i tau_i                                    the multi-task vector
    m_i   = |tau_i| >= mask_lambda |tau - tau_i|               where task i needs it (TALL mask)
    theta = theta_pre + lambda tau * [sum_i m_i >= agree]      neither what one task alone needs, nor what none does

The paper chooses lambda on validation data, and mask_lambda for each task among 0.2 to 0.6; agree is 2. With fewer models than
``agree``, all of them.
"""

import torch
from torch import Tensor

from paring.fuse.inputs import Inputs
from paring.fuse.linear import SHARE, scaled_by
from paring.fuse.method import Method, Parameter


def consensus(inputs: Inputs, out: Tensor) -> None:
    """See above."""
    n, flat = len(inputs.models), out.view(-1)
    weights, needs = inputs.values("weight"), inputs.values("mask_lambda")
    least = min(n, int(inputs.parameters["agree"]))  # type: ignore[arg-type]
    factor = float(inputs.parameters["lambda"])  # type: ignore[arg-type]
    for start, end in inputs.ranges():
        base = inputs.base_piece(start, end)
        taus = [inputs.difference(i, start, end, base=base) for i in range(n)]
        total = taus[0] * weights[0]
        for tau, weight in zip(taus[1:], weights[1:], strict=True):
            total.add_(tau, alpha=weight)
        count = torch.zeros_like(total)
        for tau, need in zip(taus, needs, strict=True):
            away = (total - tau).abs_().mul_(need)
            count.add_(tau.abs_().sub_(away).ge_(0))
        flat[start:end] = base.add_(total.mul_(count.ge_(least)), alpha=factor)


METHODS = (
    Method(
        "consensus",
        "Wang et al. 2024, arXiv 2405.07813",
        "entries of the sum that several tasks need",
        consensus,
        (
            SHARE,
            Parameter(
                "mask_lambda", 0.4, "how near the sum must be to a task's difference to be needed", per_model=True, low=0
            ),
            Parameter("agree", 2, "tasks that must need an entry", kind=int, low=1),
            scaled_by(0.3),
        ),
    ),
)
