"""What one tuning step takes: entries trained and added, bytes of gradients, optimizer state and what is kept for backward.

Bytes are exact counts of tensor storages, each once, however many views show it. What a process holds (RSS) would add the
allocator's caches, which are those of whatever ran before.

The counts of SliceFine's Table 1 (project page), for a layer ``W`` ``[d_l, d_(l-1)]`` = ``[out, in]``, are in ``PRINTED``;
those in ``COUNTED`` follow from what each method trains. The page has those of row and column slices the wrong way round.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paring.probe.methods import Tuning

Storages = dict[int, torch.UntypedStorage]  # by address; holding them keeps the addresses from being used again
Count = Callable[[int, int, int], int]  # (out, in, rank) -> entries trained in a layer

PRINTED: dict[str, tuple[str, Count]] = {
    "full": ("d_l d_(l-1)", lambda out, inp, r: out * inp),
    "lora": ("2 d r", lambda out, inp, r: 2 * out * r),
    "adalora": ("2 d r + r^2", lambda out, inp, r: 2 * out * r + r * r),
    "loha": ("4 d r", lambda out, inp, r: 4 * out * r),
    "row": ("r d_l", lambda out, inp, r: r * out),
    "column": ("r d_(l-1)", lambda out, inp, r: r * inp),
}
COUNTED: dict[str, tuple[str, Count]] = {
    "full": ("out in", lambda out, inp, r: out * inp),
    "lora": ("r (out + in)", lambda out, inp, r: r * (out + inp)),
    "adalora": ("r (out + in + 1)", lambda out, inp, r: r * (out + inp + 1)),  # a singular value each, not r^2
    "loha": ("2 r (out + in)", lambda out, inp, r: 2 * r * (out + inp)),
    "row": ("r in", lambda out, inp, r: r * inp),
    "column": ("r out", lambda out, inp, r: r * out),
}


@dataclass(frozen=True)
class Cost:
    """Of one method.

    Attributes:
        num_trainable: entries trained in the step.
        num_added: entries of the model's state dict beyond those of the pretrained model; copies of the head do not count.
        trained_bytes: of the parameters that the optimizer gets (for slices: their working copies).
        gradient_bytes, optimizer_bytes: after the step.
        activation_bytes: kept for backward by autograd, without the model's own parameters and buffers and the batch.
        loss: of the step.
    """

    num_trainable: int
    num_added: int
    trained_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    loss: float

    @property
    def total_bytes(self) -> int:
        """What the method holds at the end of a forward beyond the frozen model, with gradients and optimizer state."""
        return self.trained_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes


def step_cost(tuning: Tuning, batch: Mapping[str, Tensor], num_before: int) -> Cost:
    """Takes one step with AdamW, and counts.

    Args:
        tuning: before its first step.
        batch: with labels.
        num_before: entries of the pretrained model's state dict (``num_entries``).

    Raises:
        ValueError: the loss is not finite, or nothing has a gradient.
    """
    num_trainable, num_added = tuning.num_trainable, num_entries(tuning.model) - num_before
    optimizer = torch.optim.AdamW(tuning.parameters, lr=1e-4)
    saved = _Saved(tuning.model, batch)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        loss: Tensor = tuning.model(**batch).loss
    if not torch.isfinite(loss):
        raise ValueError(f"the loss is {loss.item()}")
    activation_bytes = total_bytes(saved.storages)
    del saved
    loss.backward()
    gradients = [p.grad for p in tuning.parameters if p.grad is not None]
    if not gradients:
        raise ValueError("nothing that it trains has a gradient")
    gradient_bytes = total_bytes(storages(gradients))
    optimizer.step()
    if tuning.session:
        tuning.session.step()
    state = [v for entry in optimizer.state.values() for v in entry.values() if isinstance(v, Tensor)]
    return Cost(
        num_trainable=num_trainable,
        num_added=num_added,
        trained_bytes=sum(p.numel() * p.element_size() for p in tuning.parameters),
        gradient_bytes=gradient_bytes,
        optimizer_bytes=total_bytes(storages(state)),
        activation_bytes=activation_bytes,
        loss=float(loss.detach()),
    )


def num_entries(model: nn.Module) -> int:
    """Entries of a model's state dict, tied tensors once; without the copies that PEFT makes of a head."""
    state: dict[str, Any] = model.state_dict()
    found = {}
    for name, tensor in state.items():
        if "modules_to_save." not in name and isinstance(tensor, Tensor):
            found[tensor.data_ptr() if tensor.numel() else name, tuple(tensor.shape)] = tensor.numel()
    return sum(found.values())


class _Saved:
    """Storages that autograd keeps alive; a parameter seen through a view (a transposed weight) is a parameter still.

    The batch's own tensors do not count: the caller holds them anyway.
    """

    def __init__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> None:
        self._own = storages([*model.parameters(), *model.buffers(), *batch.values()])
        self.storages: Storages = {}

    def pack(self, tensor: Tensor) -> Tensor:
        self.storages |= {k: v for k, v in storages([tensor]).items() if k not in self._own}
        return tensor


def storages(tensors: Iterable[Tensor]) -> Storages:
    out: Storages = {}
    for tensor in tensors:
        parts = [tensor._indices(), tensor._values()] if tensor.layout == torch.sparse_coo else [tensor]
        for part in parts:
            storage = part.untyped_storage()
            if storage.nbytes():
                out[storage.data_ptr()] = storage
    return out


def total_bytes(of: Storages) -> int:
    return sum(storage.nbytes() for storage in of.values())
