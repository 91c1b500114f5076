"""What a fit works on: the fine-tunes that are imitated, on a body of their own, and the merge whose values are tuned."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from paring.delta.errors import DeltaError
from paring.delta.sources import MemorySource
from paring.fusion.held import Parts
from paring.fusion.merging import Merging
from paring.slim.lesson import Lesson, endless, gradients, rms

_WARMING = 20  # steps
BODY = ""  # beside the tasks' names
Key = tuple[str, str]  # of a parameter: (BODY, name in the output), or (task, name in its model) of its head


class Teachers:
    """The fine-tunes, one at a time, on one body beside that of the models; each with its own head."""

    def __init__(self, merging: Merging, parts: Parts) -> None:
        self._models = copy.deepcopy(merging.models)  # at once, so that they share a body as these do
        for model in self._models:
            model.eval()
        for model, new in zip(self._models, parts.heads, strict=True):  # of pruned fine-tunes they may have been refitted
            for there, (places, values) in new.items():
                places.scatter_(MemorySource(model).tensor(there), values)
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


class Student:
    """The merge on the models, and its entries that are tuned.

    Args:
        heads: whether those of the tasks are tuned, too.

    Raises:
        DeltaError: no task changes a parameter of the body.
    """

    def __init__(self, merging: Merging, teachers: Teachers, lessons: Mapping[str, Lesson], *, heads: bool) -> None:
        self._models = dict(zip(merging.parts.tasks, merging.models, strict=True))
        named = _parameters(merging.models[0])
        found = {(BODY, name): named.get(merging.parts.where[name]) for name in merging.parts.held}
        if not any(_tunable(p) for p in found.values()):
            raise DeltaError("fit: no task changes a parameter of the body, so there is none to tune")
        if heads:
            for (task, model), new in zip(self._models.items(), merging.parts.heads, strict=True):
                own = _parameters(model)
                found |= {(task, name): own.get(name) for name in new}
        self._named = {key: p for key, p in found.items() if p is not None and _tunable(p)}
        first = {id(p): key for key, p in reversed(self._named.items())}  # of one that has two names
        self._parameters = {key: p for key, p in self._named.items() if first[id(p)] == key}
        self._teachers, self._lessons = teachers, lessons
        self._start = {key: p.detach().clone() for key, p in self._parameters.items()}
        self._wide: dict[Key, Tensor] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        """While it is, ``tune`` may be called; the models' flags and gradients are as they were afterwards."""
        with ExitStack() as stack:
            first, *others = self._models
            for task in (*others, first):  # what the first asks of the body is not taken back by the others
                asked = (BODY, first) if task == first else (task,)
                parameters = {key: p for key, p in self._parameters.items() if key[0] in asked}
                stack.enter_context(gradients(parameters, self._take, self._models[task]))
            yield

    def _take(self, key: Key, gradient: Tensor) -> None:
        """Sums up a parameter's gradients, those of all tasks, in fp32."""
        if key in self._wide:
            value, found = self._wide[key], gradient.float()
            value.grad = found if value.grad is None else value.grad.add_(found)

    def tune(
        self, rates: Mapping[str, float], steps: int, mix: float, seed: int, report: Callable[[int, float], None] | None
    ) -> None:
        """So many steps of Adam, from what is on the models; ``rates``: Adam's highest, of the body and of each task's head."""
        generator = torch.Generator().manual_seed(seed)
        # In fp32; of fp32 parameters the same memory, of others a copy that is rounded into them.
        self._wide = {key: p.detach().float() for key, p in self._parameters.items()}
        groups = {of: [v for key, v in self._wide.items() if key[0] == of] for of in dict.fromkeys(k[0] for k in self._wide)}
        adam = torch.optim.Adam([{"params": values, "lr": rates[of]} for of, values in groups.items()])
        rows = {task: endless(lesson, mix, generator) for task, lesson in self._lessons.items()}
        for step in range(steps):
            for of, group in zip(groups, adam.param_groups, strict=True):
                group["lr"] = rates[of] * min((step + 1) / _WARMING, 1 - step / steps)
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
        return all(bool(p.detach().isfinite().all()) for p in self._parameters.values())

    @torch.no_grad()
    def begin_again(self) -> None:
        for key, p in self._parameters.items():
            p.copy_(self._start[key])

    def names(self) -> list[str]:
        """Of the body's tensors that are tuned, in the output."""
        return [name for of, name in self._parameters if of == BODY]

    def rms_of_head(self, task: str) -> float:
        """The root mean square of a task's head over its entries that are tuned; 0: there are none."""
        return rms(p.detach() for (of, _), p in self._parameters.items() if of == task)

    def values(self, of: str = BODY) -> dict[str, Tensor]:
        """Those of the body, by name in the output; or of a task's head, by name in its model."""
        return {name: p.detach().clone() for (whose, name), p in self._named.items() if whose == of}

    @torch.no_grad()
    def _round(self) -> None:
        for key, p in self._parameters.items():
            if self._wide[key].dtype != p.dtype:
                p.copy_(self._wide[key])


def root_mean_square(merging: Merging, parts: Parts, names: list[str]) -> float:
    """Of the task vectors, over all entries of these tensors."""
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


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def _tunable(p: nn.Parameter | None) -> bool:
    return p is not None and p.is_floating_point()
