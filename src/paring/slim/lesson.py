"""What a pruned fine-tune can learn from the whole one: its answers, and what it computes on the way, on rows without labels.

The labels of 256 rows are 256 numbers; the whole model's logits and hidden states of the same rows are hundreds of thousands,
far more than the entries that are kept. So they say which entries matter (``saliency``) and what values they should have when
the others are gone (``refit``), and few rows suffice.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Key = TypeVar("Key")
Batch = Mapping[str, Tensor]
Outputs = Callable[[nn.Module, Batch], Sequence[Tensor]]

_NOT_MIXED = ("labels", "attention_mask", "token_type_ids", "position_ids")


def logits_and_hidden_states(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Outputs of a Hugging Face model."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    found = model(**inputs, output_hidden_states=True)
    return [found.logits, *(found.hidden_states or ())]


@dataclass(frozen=True, eq=False)
class Lesson:
    """Rows, and what is compared on them.

    Attributes:
        batches: inputs by name, rows along the first axis, on the model's device; labels are not looked at.
        outputs: a model's answer to a batch: logits first, then any features; classes and channels along the last axis.
            Where the batch has an ``attention_mask``, tokens it leaves out are not compared.
        hidden: the weight of the features beside the logits, at least 0.
    """

    batches: Sequence[Batch]
    outputs: Outputs = logits_and_hidden_states
    hidden: float = 0.3

    def __post_init__(self) -> None:
        if not self.batches:
            raise ValueError("a lesson without batches; expected at least one")
        if not self.hidden >= 0:
            raise ValueError(f"hidden is {self.hidden!r}; expected a weight, at least 0")

    def distance(self, model: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
        """KL(teacher || model) of the logits, plus ``hidden`` times the mean over features of |difference|^2 / variance."""
        with torch.no_grad():
            wanted = self.outputs(teacher, batch)
        mask = batch.get("attention_mask")
        found = self.outputs(model, batch)
        p, q = (_rows(logits.float(), mask) for logits in (wanted[0], found[0]))
        total = functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="batchmean", log_target=True)
        if self.hidden and len(wanted) > 1:
            pairs = [(_rows(a.float(), mask), _rows(b.float(), mask)) for a, b in zip(wanted[1:], found[1:], strict=True)]
            total = total + self.hidden * sum((b - a).square().mean() / a.var() for a, b in pairs) / len(pairs)
        return total


def mixed(batch: Batch, share: float, generator: torch.Generator) -> Batch:
    """The batch with a ``share`` of its tokens (pixels) taken from other rows of it, at the same place.

    So few rows make many inputs. The teacher answers these as well as any others, and less is learnt by heart.
    """
    rows = next(iter(batch.values())).shape[0]
    other = torch.randperm(rows, generator=generator)
    mask = batch.get("attention_mask")
    out = dict(batch)
    for name, tensor in batch.items():
        if name in _NOT_MIXED or tensor.ndim < 2:
            continue
        taken = (torch.rand(tensor.shape, generator=generator) < share).to(tensor.device)
        if mask is not None and tensor.shape == mask.shape:
            taken &= (mask != 0) & (mask[other] != 0)
        out[name] = torch.where(taken, tensor[other], tensor)
    return out


def endless(lesson: Lesson, mix: float, generator: torch.Generator) -> Iterator[Batch]:
    """Its batches without end, every one once a pass, in an order that is drawn; ``mix``: see ``mixed``."""
    while True:
        for index in torch.randperm(len(lesson.batches), generator=generator).tolist():
            batch = lesson.batches[index]
            yield mixed(batch, mix, generator) if mix else batch


def check_tuning(steps: int, rate: float, mix: float, head_rate: float = 0.0) -> None:
    """Settings of what is tuned by a lesson.

    Raises:
        ValueError: ``steps`` below 1, ``rate`` not above 0, ``mix`` outside of [0, 1), ``head_rate`` below 0.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}; expected a whole number, at least 1")
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate is {rate!r}; expected a number above 0")
    if not 0 <= mix < 1:
        raise ValueError(f"mix is {mix!r}; expected a share in [0, 1)")
    if not (math.isfinite(head_rate) and head_rate >= 0):
        raise ValueError(f"head_rate is {head_rate!r}; expected a number, at least 0")


def rms(tensors: Iterable[Tensor]) -> float:
    """The root mean square over all entries; 0: there are none."""
    squares, count = 0.0, 0
    for tensor in tensors:
        squares, count = squares + float(tensor.double().square().sum()), count + tensor.numel()
    return math.sqrt(squares / count) if count else 0.0


def parts(batch: Batch, rows: int) -> list[Batch]:
    """The batch in pieces of at most so many rows."""
    count = next(iter(batch.values())).shape[0]
    return [{name: t[start : start + rows] for name, t in batch.items()} for start in range(0, count, rows)]


@contextmanager
def gradients(parameters: Mapping[Key, nn.Parameter], take: Callable[[Key, Tensor], None], model: nn.Module) -> Iterator[None]:
    """While this is open, ``backward`` hands each parameter's gradient to ``take``, with its key, and frees it, one at a time.

    No other parameter of ``model`` needs a gradient meanwhile; flags, gradients and modes (evaluation, inside) are put back.
    """
    every = list(model.parameters())
    flags, kept = [p.requires_grad for p in every], [p.grad for p in every]
    modes = [(module, module.training) for module in model.modules()]
    handles = []

    def hook(key: Key) -> Callable[[Tensor], None]:
        def handed(parameter: Tensor) -> None:
            assert parameter.grad is not None
            take(key, parameter.grad)
            parameter.grad = None

        return handed

    try:
        model.eval()
        for p in every:
            p.requires_grad_(False)
            p.grad = None
        for key, p in parameters.items():
            p.requires_grad_(True)
            handles.append(p.register_post_accumulate_grad_hook(hook(key)))
        with torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for p, flag, grad in zip(every, flags, kept, strict=True):
            p.requires_grad_(flag)
            p.grad = grad
        for module, training in modes:
            module.training = training


def _rows(values: Tensor, mask: Tensor | None) -> Tensor:
    """Flat but for the last axis; of values for each token, those that the mask leaves in."""
    if mask is not None and values.ndim > 2 and values.shape[:2] == mask.shape:
        return values[mask != 0].flatten(0, -2)
    return values.flatten(0, -2)
