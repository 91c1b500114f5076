"""A merge whose values are tuned until each task's model answers as that task's fine-tune does, on rows without labels.

    D(theta) = mean over tasks t and batches x of  KL(f_t(x) || g_t(x)) + hidden * mean over layers |h - h_t|^2 / var(h_t)

theta: the entries of the body that tasks change; g_t: the body with the head of task t; f_t: the fine-tune (``slim.lesson``).
A merge without rows has to guess how task vectors get along; here they say it themselves. Adam goes down D from any merge, a
batch of every task a step, some tokens of it taken from other rows; the rate rises for a few steps, then falls to zero.

ProDistill (Xu et al. 2025, arXiv 2502.12706) merges task vectors layer by layer, so that activations match the fine-tunes' on
few rows. Here the merged values themselves are tuned, all layers at once and by their logits, too: what one layer gets wrong
another can put right. The price is a backward pass through the whole model.

In memory beside the merge in place: a second body for the fine-tunes, which each is written into in turn (a pass over the
weights, little beside a forward; T copies would be T bodies), the values it began with, two moments and a gradient.
"""

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paring.delta.errors import DeltaError
from paring.delta.sources import MemorySource
from paring.fusion.held import Parts
from paring.fusion.merging import Merging, Settings
from paring.slim.lesson import Lesson, check_tuning, endless, gradients

_ATTEMPTS, _SLOWER = 3, 4  # each at a quarter of the rate before, until the distance is below that of the start
_WARMING = 20  # steps


@dataclass(frozen=True)
class Fit:
    """How to tune.

    Attributes:
        steps: of Adam, a batch of every task each.
        rate: the highest, as a share of the root mean square of the task vectors over the entries that are tuned.
        mix: share of tokens (pixels) taken from other rows of the batch, in [0, 1).
        seed: of the order of batches and of what is mixed.
    """

    steps: int = 720
    rate: float = 0.12
    mix: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        check_tuning(self.steps, self.rate, self.mix)


@dataclass(frozen=True, eq=False)
class Fitted:
    """What was found.

    Attributes:
        values: of the body's tensors that were tuned, by name in the output, in the model's type: what was scored, bitwise.
        before, after: the distance to each fine-tune, of the merge it began with and of these values.
        rate: of the attempt that came nearer, see ``Fit``; 0: none did, and ``values`` are those of the merge.
    """

    values: Mapping[str, Tensor]
    before: Mapping[str, float]
    after: Mapping[str, float]
    rate: float

    @property
    def distance(self) -> tuple[float, float]:
        """Mean over tasks, before and after."""
        return _mean(self.before), _mean(self.after)


def fit(
    merging: Merging,
    settings: Settings,
    lessons: Mapping[str, Lesson],
    how: Fit | None = None,
    *,
    tuned: Parts | None = None,
    report: Callable[[int, float], None] | None = None,
) -> Fitted:
    """Tunes a merge; never farther from the fine-tunes, on these rows, than the merge was. Bitwise the same each time, for one
    number of threads.

    Args:
        merging: the models, the method, what goes into the merge; in the end the models are bitwise as they were.
        settings: of the method for each tensor, with which the merge is made that is tuned.
        lessons: rows of each task.
        tuned: the fine-tunes to imitate, where the merge is of others (of pruned ones); None: those that are merged.
        report: is told of every step: how many are done, and the mean distance of its batches before it.

    Raises:
        ValueError: the lessons are not those of the tasks. FuseError: as the method. DeltaError: no task changes a parameter,
            or a distance is no number.
    """
    how, parts = how or Fit(), tuned or merging.parts
    if set(lessons) != set(parts.tasks):
        raise ValueError(f"lessons are of {', '.join(lessons)}; expected rows of each task: {', '.join(parts.tasks)}")
    with merging, ExitStack() as stack:
        teachers = _Teachers(merging, parts)  # a copy of the base: before the merge is put in its place
        merging.to(settings)
        student = _Student(merging, teachers, lessons, how)
        for model in merging.models[1:]:  # their heads need no gradient, either
            stack.enter_context(gradients({}, student.take, model))
        stack.enter_context(gradients(student.parameters, student.take, merging.models[0]))
        before = student.distances()
        for task, distance in before.items():
            if not math.isfinite(distance):
                raise DeltaError(
                    f"fit: the distance to the fine-tune of {task!r} is {distance} before the first step; do its outputs, or "
                    "the merge's, overflow? Expected finite ones; take smaller weights, or a model that is whole"
                )
        scale = _rms(merging, parts, student.parameters)
        if not (math.isfinite(scale) and scale > 0):
            raise DeltaError(
                f"fit: the root mean square of the task vectors is {scale}; expected fine-tunes that differ from the base"
            )
        rate, after = how.rate, before
        for _ in range(_ATTEMPTS):
            student.tune(rate * scale, report)
            found = student.distances() if student.finite() else {"": math.nan}
            if _mean(found) < _mean(before):
                after = found
                break
            student.begin_again()
            rate /= _SLOWER
        return Fitted(student.values(), before, after, rate if after is not before else 0.0)


class _Teachers:
    """The fine-tunes, one at a time, on one body beside that of the models; each with its own head."""

    def __init__(self, merging: Merging, parts: Parts) -> None:
        self._models = copy.deepcopy(merging.models)  # at once, so that they share a body as these do
        for model in self._models:
            model.eval()
        source = MemorySource(self._models[0])
        self._tensors = {name: source.tensor(parts.where[name]) for name in parts.held}
        device = {name: tensor.device for name, tensor in self._tensors.items()}
        self._held = {n: tuple(None if h is None else h.to(device[n]) for h in of) for n, of in parts.held.items()}
        self._base = {n: merging.base(n) for n in parts.held}
        self._tasks, self._on = parts.tasks, ""

    @torch.no_grad()
    def of(self, task: str) -> nn.Module:
        """The fine-tune of a task, until the next is asked for."""
        if task != self._on:
            index = self._tasks.index(task)
            for name, tensor in self._tensors.items():
                held, base = self._held[name][index], self._base[name]
                tensor.copy_(base if held is None else held.weights(base))
            self._on = task
        return self._models[self._tasks.index(task)]


class _Student:
    """The merge on the models, and its entries that are tuned."""

    def __init__(self, merging: Merging, teachers: _Teachers, lessons: Mapping[str, Lesson], how: Fit) -> None:
        named = dict(merging.models[0].named_parameters(remove_duplicate=False))
        found = {name: named.get(merging.parts.where[name]) for name in merging.parts.held}
        self.parameters = {name: p for name, p in found.items() if p is not None and p.is_floating_point()}
        if not self.parameters:
            raise DeltaError("fit: no task changes a parameter of the body, so there is none to tune")
        self._teachers, self._lessons, self._how = teachers, lessons, how
        self._models = dict(zip(merging.parts.tasks, merging.models, strict=True))
        self._start = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._wide: dict[str, Tensor] = {}

    def take(self, name: str, gradient: Tensor) -> None:
        """Sums up a parameter's gradients, those of all tasks, in fp32."""
        if name in self._wide:
            value, found = self._wide[name], gradient.float()
            value.grad = found if value.grad is None else value.grad.add_(found)

    def tune(self, highest: float, report: Callable[[int, float], None] | None) -> None:
        """As many steps as were asked for, from what is on the models."""
        steps, generator = self._how.steps, torch.Generator().manual_seed(self._how.seed)
        # In fp32; of fp32 parameters the same memory, of others a copy that is rounded into them.
        self._wide = {name: p.detach().float() for name, p in self.parameters.items()}
        adam = torch.optim.Adam(self._wide.values(), lr=highest)
        rows = {task: endless(lesson, self._how.mix, generator) for task, lesson in self._lessons.items()}
        for step in range(steps):
            adam.param_groups[0]["lr"] = highest * min((step + 1) / _WARMING, 1 - step / steps)
            adam.zero_grad()
            total = 0.0
            for task, model in self._models.items():
                distance = self._lessons[task].distance(model, self._teachers.of(task), next(rows[task]))
                (distance / len(self._models)).backward()
                total += float(distance.detach())
            adam.step()
            self._round()
            if report is not None:
                report(step + 1, total / len(self._models))
        self._wide = {}

    @torch.no_grad()
    def distances(self) -> dict[str, float]:
        """By task, the mean over its batches as they are."""
        found = {}
        for task, model in self._models.items():
            lesson, teacher = self._lessons[task], self._teachers.of(task)
            found[task] = sum(float(lesson.distance(model, teacher, b)) for b in lesson.batches) / len(lesson.batches)
        return found

    def finite(self) -> bool:
        """Also of what no row asks for."""
        return all(bool(p.detach().isfinite().all()) for p in self.parameters.values())

    @torch.no_grad()
    def begin_again(self) -> None:
        for name, p in self.parameters.items():
            p.copy_(self._start[name])

    def values(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def _round(self) -> None:
        for name, p in self.parameters.items():
            if self._wide[name].dtype != p.dtype:
                p.copy_(self._wide[name])


def _rms(merging: Merging, parts: Parts, names: Mapping[str, object]) -> float:
    """The root mean square of the task vectors over all entries of these tensors."""
    squares, count = 0.0, 0
    for name in names:
        base = merging.base(name)
        count += base.numel() * len(parts.tasks)
        for held in parts.held.get(name, ()):
            if held is None:
                continue
            values = held.values.double()
            if not held.difference:
                values = values - held.places.gather(base).to(values)
            squares += float(values.square().sum())
    return math.sqrt(squares / count)


def _mean(distances: Mapping[str, float]) -> float:
    return sum(distances.values()) / len(distances)
