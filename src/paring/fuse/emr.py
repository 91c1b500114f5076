"""EMR: elect, mask, rescale (Huang et al. 2024, arXiv 2405.17461): one shared vector, and a mask and a number for each task.

    sign      of sum_i tau_i, positive where that is zero
    tau       = sign * the largest |tau_i| of that sign                      (elect)
    m_i       = [tau_i tau > 0]                                              (mask)
    lambda_i  = sum |tau_i| / sum m_i |tau|, over all tensors of the model   (rescale)

Task i is served by theta_pre + lambda_i m_i tau. What the registry's function writes is theta_pre + tau, the model without
masks; ``parts`` gives what makes a task's own model of it, and ``as_bank`` writes that. The paper leaves heads to their tasks:
new ones always are, others by ``own``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paring.fuse.inputs import Inputs
from paring.fuse.method import Method, Parameter


@dataclass(frozen=True)
class Part:
    """What one task adds to the shared vector, of one tensor.

    Attributes:
        bits: m_i, a bit an entry: bit i % 8 (from the lowest) of byte i // 8 is entry i's; uint8, [ceil(numel / 8)].
        own, shared: sum |tau_i| and sum m_i |tau|: summed over all tensors their quotient is the task's scale.
    """

    bits: Tensor
    own: float
    shared: float

    def mask(self, shape: torch.Size) -> Tensor:
        """m_i, bool."""
        unpacked = np.unpackbits(self.bits.numpy(), count=shape.numel(), bitorder="little")
        return torch.from_numpy(unpacked).bool().view(shape)


def scale(parts: Sequence[Part]) -> float:
    """lambda_i, of one task's parts of all tensors; 0 where it changes nothing."""
    below = sum(part.shared for part in parts)
    return sum(part.own for part in parts) / below if below else 0.0


def parts(inputs: Inputs, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Part]]:
    """tau (fp32, of the models' shape), and each model's part, in the models' order; both on the CPU.

    Args:
        dtype: tau is rounded to it, so that masks and scales are those of what is stored.
    """
    vector, n = torch.empty(inputs.numel), len(inputs.models)
    bits = [torch.empty((inputs.numel + 7) // 8, dtype=torch.uint8) for _ in range(n)]
    own, kept = [0.0] * n, [0.0] * n
    for start, end in inputs.ranges(8):
        together = _elected(inputs, start, end).to(dtype).float()
        vector[start:end] = together
        magnitudes, sign = together.abs(), together.sign()
        base = inputs.base_piece(start, end)
        for i in range(n):
            tau = inputs.difference(i, start, end, base=base)
            own[i] += float(tau.abs().sum())
            mask = tau.sign_().mul_(sign) > 0  # signs, since a product may underflow
            kept[i] += float((magnitudes * mask).sum())
            bits[i][start // 8 : (end + 7) // 8] = torch.from_numpy(np.packbits(mask.cpu().numpy(), bitorder="little"))
    return vector.view(inputs.shape), [Part(b, o, s) for b, o, s in zip(bits, own, kept, strict=True)]


def emr(inputs: Inputs, out: Tensor) -> None:
    """theta_pre + tau; theta_pre alone of what is each task's own."""
    flat = out.view(-1)
    for start, end in inputs.ranges():
        base = inputs.base_piece(start, end)
        flat[start:end] = base if inputs.parameters["own"] else base.add_(_elected(inputs, start, end))


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
        (Parameter("own", False, "whether each task keeps its own values of a tensor", kind=bool),),
        per_task_state=True,
    ),
)
