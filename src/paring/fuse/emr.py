"""EMR: elect, mask, rescale (Huang et al. 2024, arXiv 2405.17461): one shared vector, and a mask and a number for each task.

    sign      of sum_i tau_i, positive where that is zero
    tau       = sign * the largest |tau_i| of that sign                      (elect)
    m_i       = [tau_i tau > 0]                                              (mask)
    lambda_i  = sum |tau_i| / sum m_i |tau|, over all tensors of the model   (rescale)

Task i is served by theta_pre + lambda_i m_i tau. What the registry's function writes is theta_pre + tau, the model without
masks; ``parts`` gives what makes a task's own model of it, to be kept as a bank.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from paring.fuse.inputs import Inputs
from paring.fuse.method import Method


@dataclass(frozen=True)
class Part:
    """What one task adds to the shared vector, of one tensor.

    Attributes:
        mask: entries of the shared vector that are the task's, [shape], bool.
        own, shared: sum |tau_i| and sum m_i |tau|: summed over all tensors their quotient is the task's scale.
    """

    mask: Tensor
    own: float
    shared: float


def scale(parts: list[Part]) -> float:
    """lambda_i, of one task's parts of all tensors; 0 where it changes nothing."""
    below = sum(part.shared for part in parts)
    return sum(part.own for part in parts) / below if below else 0.0


def shared(inputs: Inputs) -> Tensor:
    """tau: fp32, of the models' shape."""
    out = torch.empty(inputs.shape, device=inputs.device)
    flat = out.view(-1)
    for start, end in inputs.ranges():
        flat[start:end] = _elected(inputs, start, end)
    return out


def parts(inputs: Inputs) -> tuple[Tensor, list[Part]]:
    """tau, and each model's part, in the models' order."""
    vector, n = torch.empty(inputs.shape, device=inputs.device), len(inputs.models)
    flat = vector.view(-1)
    masks = [torch.empty(inputs.shape, dtype=torch.bool, device=inputs.device) for _ in range(n)]
    own, kept = [0.0] * n, [0.0] * n
    for start, end in inputs.ranges():
        together = _elected(inputs, start, end)
        flat[start:end] = together
        base = inputs.base_piece(start, end)
        for i in range(n):
            tau = inputs.difference(i, start, end, base=base)
            own[i] += float(tau.abs().sum())
            mask = tau.sign_().mul_(together.sign()) > 0  # signs, since a product may underflow
            masks[i].view(-1)[start:end] = mask
            kept[i] += float(together.abs().mul_(mask).sum())
    return vector, [Part(m, o, s) for m, o, s in zip(masks, own, kept, strict=True)]


def emr(inputs: Inputs, out: Tensor) -> None:
    """theta_pre + tau."""
    flat = out.view(-1)
    for start, end in inputs.ranges():
        flat[start:end] = _elected(inputs, start, end).add_(inputs.base_piece(start, end))


def _elected(inputs: Inputs, start: int, end: int) -> Tensor:
    base = inputs.base_piece(start, end)
    taus = [inputs.difference(i, start, end, base=base) for i in range(len(inputs.models))]
    sign = taus[0].clone()
    for tau in taus[1:]:
        sign.add_(tau)
    sign.ge_(0).mul_(2).sub_(1)
    most = torch.zeros_like(sign)
    for tau in taus:
        torch.maximum(most, tau.mul_(sign), out=most)
    return most.mul_(sign)


METHODS = (
    Method(
        "emr",
        "Huang et al. 2024, arXiv 2405.17461",
        "largest differences of the elected sign; with a mask and a scale for each task",
        emr,
        per_task_state=True,
    ),
)
