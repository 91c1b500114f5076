"""New values for the entries that are kept, so that they stand in for those that are gone.

Pruning leaves values that were learnt beside all others. Here they alone are tuned, for a few steps, until base + kept answers
as base + everything does (``lesson``): positions and file size stay as they are. On rows that nobody has seen a good start
outlasts what few rows teach, so it is found first:

    1. the nearest of three multiples: as they are; times what restores the norm of the whole task vector; times its root
    2. a factor for each tensor, for a quarter of the steps
    3. every value by itself, for the others; the nearer the start, the slower: Adam takes steps of one size whatever the
       gradient's, and what they spoil by chance has to be less than what is missing still

Training a fixed sparse set of entries is SHiRA's (Bhardwaj et al. 2024, arXiv 2406.13175), distilling a compressed task vector,
its scales alone, BitDelta's (Liu et al. 2024, arXiv 2402.10193).
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from paring.delta.codec.quantise import LARGEST
from paring.delta.errors import DeltaError
from paring.delta.taskvector import TaskVector
from paring.slim.lesson import Batch, Lesson, check_tuning, endless, gradients
from paring.slim.student import Student, Values

_PLAIN = ("fp32", "bf16", "fp16")
_ATTEMPTS, _SLOWER = 3, 4  # each at a quarter of the rate before, until the distance is below that of the start
_FACTORS = 4  # one of so many steps is for factors
FACTOR_RATE = 0.05  # of their logarithms


@dataclass(frozen=True)
class Refit:
    """How to tune.

    Attributes:
        steps: of Adam, a batch each, a quarter of them for factors; rates fall to zero in a straight line.
        rate: that of values at first, as a share of the root mean square of the values kept (before they are scaled); times
            the root of the start's distance over the base's, where that is below 1.
        mix: share of tokens (pixels) taken from other rows of the batch, in [0, 1).
        seed: of the order of batches and of what is mixed.
        values, group: how the values will be stored (``save_delta``). Coarse ones (int8, int4, sign) are tuned as they will
            come back: the distance is that of the coded values, its gradient goes to the numbers that are coded (straight
            through; Bengio et al. 2013, arXiv 1308.3432), and so the scales are tuned, too.
    """

    steps: int = 360
    rate: float = 0.8
    mix: float = 0.15
    seed: int = 0
    values: str = "fp32"
    group: int = 0

    def __post_init__(self) -> None:
        check_tuning(self.steps, self.rate, self.mix)
        if self.values not in (*_PLAIN, *LARGEST):
            raise ValueError(f"values is {self.values!r}; expected one of {', '.join((*_PLAIN, *LARGEST))}")
        if isinstance(self.group, bool) or not isinstance(self.group, int) or self.group < 0:
            raise ValueError(f"group is {self.group!r}; expected a number of values, or 0 for all")


def refit(
    pruned: TaskVector,
    tuned: TaskVector,
    model: nn.Module,
    lesson: Lesson,
    how: Refit | None = None,
    report: Callable[[int, float], None] | None = None,
) -> TaskVector:
    """``pruned`` with other values at the same entries; with the same ones where none were found that come nearer.

    Args:
        pruned: as the pruners give it: differences in numbers at scattered positions.
        tuned: the whole task vector, what is to be imitated.
        model: their base, bitwise as before in the end. Another copy of it is made meanwhile.
        report: is told of every step: how many are done, and the distance before it.

    Raises:
        DeltaError: the model is another base, nothing is kept in a parameter, or the distance is no number.
    """
    how = how or Refit()
    teacher = copy.deepcopy(model).eval()
    student = Student(pruned, model, teacher, lesson, how.values, how.group)
    with tuned.apply(teacher), student.placing, gradients(student.parameters, student.take, model):
        before = student.distance(student.kept)
        if not math.isfinite(before):
            raise DeltaError(f"refit: the fine-tune is {before} away before the first step; do its outputs overflow?")
        found = nearest_multiple(student, restoring(pruned, tuned), before)
        found = _scaled(student, found, _batches(lesson, how), how.steps // _FACTORS, report)
        start = found.distance
        missing = _missing(start, student.distance({n: torch.zeros_like(v) for n, v in student.kept.items()}))
        for attempt in range(_ATTEMPTS):
            rate = how.rate * missing / _SLOWER**attempt
            tried = _tuned(student, found, rate, _batches(lesson, how), how.steps, report)
            if tried.distance < start:
                found = tried
                break
    facts = {
        "steps": how.steps,
        "rate": rate,
        "mix": how.mix,
        "hidden": lesson.hidden,
        "scale": found.scale,
        "start": start,
        "distance": [before, found.distance],
    }
    return TaskVector(
        {**pruned.changes, **student.changes(found.values)}, pruned.base, pruned.removed, {**pruned.facts, "refit": facts}
    )


@dataclass(frozen=True)
class Found:
    """Values, their distance to the fine-tune, and what the values kept were multiplied by before anything was tuned."""

    values: Values
    distance: float
    scale: float


def nearest_multiple(student: Student, most: float, before: float) -> Found:
    """Of three multiples of the values kept the nearest; ``most``: the largest of them."""
    found = Found(student.kept, before, 1.0)
    for scale in (math.sqrt(most), most):
        values = {n: v * scale for n, v in student.kept.items()}
        distance = student.distance(values)
        if distance < found.distance:
            found = Found(values, distance, scale)
    return found


def _scaled(
    student: Student, start: Found, batches: Iterator[Batch], steps: int, report: Callable[[int, float], None] | None
) -> Found:
    """``start`` times a factor for each tensor; as it was where none were found that come nearer."""
    logarithms = {n: torch.zeros((), device=v.device) for n, v in start.values.items()}
    adam = torch.optim.Adam(logarithms.values(), lr=FACTOR_RATE)

    def values() -> Values:
        return {n: v * logarithms[n].exp() for n, v in start.values.items()}

    for step in range(steps):
        adam.param_groups[0]["lr"] = FACTOR_RATE * (1 - step / steps)
        tried = values()
        distance, gradient = student.gradient(tried, next(batches))
        for name, log in logarithms.items():
            log.grad = (gradient[name] * tried[name]).sum() if name in gradient else None
        adam.step()
        if report is not None:
            report(step + 1, distance)
    found = values()
    distance = student.distance(found)
    return Found(found, distance, start.scale) if distance < start.distance else start


def _tuned(
    student: Student,
    start: Found,
    rate: float,
    batches: Iterator[Batch],
    steps: int,
    report: Callable[[int, float], None] | None,
) -> Found:
    """Other values, by the steps that factors have left of ``steps``; not finite where it went wrong."""
    values, first, done = {n: v.clone() for n, v in start.values.items()}, rate * student.rms(), steps // _FACTORS
    adam = torch.optim.Adam(values.values(), lr=first)
    for step in range(steps - done):
        adam.param_groups[0]["lr"] = first * (1 - step / (steps - done))
        distance, gradient = student.gradient(values, next(batches))
        for name, value in values.items():
            value.grad = gradient.get(name)
        adam.step()
        if report is not None:
            report(done + step + 1, distance)
    return Found(values, student.distance(values), start.scale)


def _missing(start: float, base: float) -> float:
    """How far the start is from the fine-tune, of the base's way there; distances are squares, rounded to below zero even."""
    return math.sqrt(min(1.0, max(0.0, start / base))) if math.isfinite(base) and base > 0 else 1.0


def _batches(lesson: Lesson, how: Refit) -> Iterator[Batch]:
    return endless(lesson, how.mix, torch.Generator().manual_seed(how.seed))


def restoring(pruned: TaskVector, tuned: TaskVector) -> float:
    """R: what the values kept are to be multiplied by to have the norm of all; 1 where there is no such number."""
    left = pruned.norm()
    found = tuned.norm() / left if left else 1.0
    return found if math.isfinite(found) and found > 0 else 1.0
