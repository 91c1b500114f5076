"""Training and scoring an image classifier on examples that fit in memory."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.tasks.digits.data import Examples

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class History:
    """What ``fit`` saw.

    Attributes:
        curve: (optimizer steps taken, what ``watch`` returned), from step 0 to the last.
        seconds: time spent training, without watching.
    """

    curve: tuple[tuple[int, float], ...]
    seconds: float


def fit(
    model: nn.Module,
    parameters: Iterable[nn.Parameter],
    examples: Examples,
    *,
    steps: int,
    rate: float,
    seed: int,
    batch_size: int = 32,
    warmup_steps: int = 20,
    weight_decay: float = 0.0,
    augment: Augment | None = None,
    after_step: Callable[[], None] | None = None,
    watch: Callable[[], float] | None = None,
    watch_every: int = 25,
) -> History:
    """AdamW on the cross entropy; the learning rate rises to ``rate`` and falls linearly to zero.

    Args:
        model: ``model(pixel_values=images).logits`` is ``[batch, labels]``.
        parameters: what the optimizer gets. Whatever else requires a gradient keeps the one it gathers.
        examples: what it is trained on, in a new order every pass.
        steps: optimizer steps; at least 1.
        rate: the highest learning rate.
        seed: of the order of the examples, and of ``augment``.
        augment: ``(images [b, 1, 8, 8], generator) -> images``, on every batch.
        after_step: called after every optimizer step, before the gradients are cleared.
        watch: called before the first step, every ``watch_every`` steps, and after the last.

    Raises:
        ValueError: no steps.
    """
    if steps < 1:
        raise ValueError(f"fit: steps is {steps}; expected at least 1")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay, fused=True)
    curve = [] if watch is None else [(0, watch())]
    seconds = 0.0
    batches = _batches(len(examples), batch_size, generator)
    for step in range(steps):
        start = time.perf_counter()
        rows = next(batches)
        images = examples.images[rows]
        if augment is not None:
            images = augment(images, generator)
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / warmup_steps, (steps - step) / steps)
        F.cross_entropy(model(pixel_values=images).logits, examples.labels[rows]).backward()
        optimizer.step()
        if after_step is not None:
            after_step()
        optimizer.zero_grad()
        seconds += time.perf_counter() - start
        if watch is not None and ((step + 1) % watch_every == 0 or step + 1 == steps):
            curve.append((step + 1, watch()))
    return History(tuple(curve), seconds)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 256) -> float:
    """The share of images whose highest logit is their label's, 0 to 1, in evaluation mode; the mode is put back.

    Args:
        images: ``[n, 1, 8, 8]``, n at least 1.
        labels: int64 ``[n]``.
    """
    if not len(labels) or len(images) != len(labels):
        raise ValueError(f"accuracy: {len(images)} images, {len(labels)} labels; expected as many, at least one")
    training = model.training
    model.eval()
    try:
        pairs = zip(images.split(batch_size), labels.split(batch_size), strict=True)
        right = sum(int((model(pixel_values=x).logits.argmax(-1) == y).sum()) for x, y in pairs)
    finally:
        model.train(training)
    return right / len(labels)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread while it lasts. A second one brings a model this small little and, beside other work, makes it wait;
    and the same seed gives the same weights on any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers, ``[size]`` each, without end: every row once a pass, the last few of a pass left out."""
    size = min(size, count)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count - count % size].split(size)
