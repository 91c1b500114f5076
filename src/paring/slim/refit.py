"""New values for the entries that are kept, so that they stand in for those that are gone.

Pruning leaves values that were learnt beside all others. Here they alone are tuned, for a few steps, until base + kept answers
as base + everything does (``lesson``): positions and file size stay as they are. They begin as they are, or times what restores
the norm of the whole task vector, or times its root: whichever comes nearest, for on rows that nobody has seen a good start
outlasts what few rows teach. Training a fixed sparse set of entries is
SHiRA's (Bhardwaj et al. 2024, arXiv 2406.13175), distilling a compressed task vector BitDelta's (Liu et al. 2024, arXiv
2402.10193).
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from paring.delta.change import wide
from paring.delta.codec.quantise import LARGEST, dequantise, quantise
from paring.delta.errors import DeltaError
from paring.delta.places import Scattered
from paring.delta.taskvector import Lazy, TaskVector, ready
from paring.slim.lesson import Lesson, check_tuning, endless, gradients
from paring.slim.placing import Entries, Placing

_PLAIN = ("fp32", "bf16", "fp16")
_ATTEMPTS, _SLOWER = 3, 4  # each at a quarter of the rate before, until the distance is below that of the start


@dataclass(frozen=True)
class Refit:
    """How to tune.

    Attributes:
        steps: of Adam, a batch each; the rate falls to zero in a straight line.
        rate: the first step's, as a share of the root mean square of the values kept (before they are scaled).
        mix: share of tokens (pixels) taken from other rows of the batch, in [0, 1).
        seed: of the order of batches and of what is mixed.
        values, group: how the values will be stored (``save_delta``). Coarse ones (int8, int4, sign) are tuned as they will
            come back: the distance is that of the coded values, its gradient goes to the numbers that are coded (straight
            through; Bengio et al. 2013, arXiv 1308.3432), and so the scales are tuned, too.
    """

    steps: int = 360
    rate: float = 0.5
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
    student = _Student(pruned, model, how)
    teacher = copy.deepcopy(model).eval()
    with tuned.apply(teacher), student.placing, gradients(student.parameters, student.take, model):
        before = student.mean_distance(teacher, lesson, student.kept)
        scale, start, least = _start(student, teacher, lesson, _restoring(pruned, tuned), before)
        for attempt in range(_ATTEMPTS):
            rate = how.rate / _SLOWER**attempt
            values = student.tune(start, teacher, lesson, rate, report)
            after = student.mean_distance(teacher, lesson, values)
            if after < least:
                break
        else:
            values, after = start, least
    facts = {
        "steps": how.steps,
        "rate": rate,
        "mix": how.mix,
        "hidden": lesson.hidden,
        "scale": scale,
        "distance": [before, after],
    }
    return TaskVector(
        {**pruned.changes, **student.changes(values)}, pruned.base, pruned.removed, {**pruned.facts, "refit": facts}
    )


def _restoring(pruned: TaskVector, tuned: TaskVector) -> float:
    """What the values kept are to be multiplied by to have the norm of all; 1 where there is no such number."""
    left = pruned.norm()
    found = tuned.norm() / left if left else 1.0
    return found if math.isfinite(found) and found > 0 else 1.0


def _start(
    student: "_Student", teacher: nn.Module, lesson: Lesson, most: float, before: float
) -> tuple[float, dict[str, Tensor], float]:
    """Of three multiples of the values kept the nearest: by how much, the values, their distance."""
    found = (1.0, student.kept, before)
    for scale in (math.sqrt(most), most):
        values = {n: v * scale for n, v in student.kept.items()}
        distance = student.mean_distance(teacher, lesson, values)
        if distance < found[2]:
            found = (scale, values, distance)
    return found


class _Student:
    """The entries that are kept, and the model in which others are tried in their place."""

    def __init__(self, pruned: TaskVector, model: nn.Module, how: Refit) -> None:
        self.model, self._pruned, self._how = model, pruned, how
        self.placing = Placing(model, pruned)
        changes = {n: c for n in pruned.names if isinstance((c := pruned.change(n)).places, Scattered)}
        self.parameters = self.placing.parameters(changes)
        if not self.parameters:
            raise DeltaError("no entry that is kept lies in a parameter of the model, so there is none to refit")
        on = next(model.parameters()).device
        at = {n: c.places.flat(c.shape).to(on) for n, c in changes.items()}
        numbers = {n: c.difference(f"'{n}'").to(on, torch.float32) for n, c in changes.items()}
        self._at = {n: at[n] for n in self.parameters}
        self.kept = {n: numbers[n] for n in self.parameters}
        self._fixed = [(n, at[n], numbers[n]) for n in changes if n not in self.parameters]
        self._tuned: dict[str, Tensor] = {}

    def take(self, name: str, gradient: Tensor) -> None:
        """Of a parameter's gradient, what belongs to its entries that are kept."""
        if name in self._tuned:
            self._tuned[name].grad = gradient.reshape(-1)[self._at[name]].float()

    def tune(
        self,
        start: dict[str, Tensor],
        teacher: nn.Module,
        lesson: Lesson,
        rate: float,
        report: Callable[[int, float], None] | None,
    ) -> dict[str, Tensor]:
        """Other values, after as many steps from ``start`` as were asked for; not finite where it went wrong."""
        how = self._how
        self._tuned = {n: v.clone() for n, v in start.items()}
        first = rate * _rms(self.kept)
        adam = torch.optim.Adam(self._tuned.values(), lr=first)
        batches = endless(lesson, how.mix, torch.Generator().manual_seed(how.seed))
        for step, batch in zip(range(how.steps), batches, strict=False):
            adam.param_groups[0]["lr"] = first * (1 - step / how.steps)
            adam.zero_grad()
            with self.placing.candidate(self._entries(self._tuned)):
                distance = lesson.distance(self.model, teacher, batch)
                distance.backward()
            adam.step()
            if report is not None:
                report(step + 1, float(distance.detach()))
        tuned, self._tuned = self._tuned, {}
        return tuned

    @torch.no_grad()
    def mean_distance(self, teacher: nn.Module, lesson: Lesson, values: dict[str, Tensor]) -> float:
        """Over the lesson's batches as they are.

        Raises:
            DeltaError: of the values that were kept it is not a number.
        """
        with self.placing.candidate(self._entries(values)):
            distances = [float(lesson.distance(self.model, teacher, batch)) for batch in lesson.batches]
        mean = sum(distances) / len(distances)
        if values is self.kept and not math.isfinite(mean):
            raise DeltaError(f"refit: the distance to the fine-tune is {mean} before the first step; do its outputs overflow?")
        return mean

    def changes(self, values: dict[str, Tensor]) -> dict[str, Lazy]:
        """The task vector's tensors that have other values now."""
        found = {name: (self._pruned.change(name), value.detach().cpu()) for name, value in values.items()}
        return {name: ready(replace(change, values=v.to(wide(change.dtype)))) for name, (change, v) in found.items()}

    def _entries(self, values: dict[str, Tensor]) -> list[Entries]:
        return [*self._fixed, *((n, self._at[n], _as_stored(v, self._how)) for n, v in values.items())]


def _as_stored(values: Tensor, how: Refit) -> Tensor:
    """What comes back of values that are coded coarsely; others as they are, and what cannot be coded."""
    plain = values.detach()
    if how.values in _PLAIN or not bool(plain.isfinite().all()):
        return plain
    raw, scales = quantise(plain.cpu(), how.values, how.group)
    return dequantise(raw, how.values, plain.numel(), how.group, scales, "a refit").to(plain.device)


def _rms(values: dict[str, Tensor]) -> float:
    count = sum(v.numel() for v in values.values())
    return math.sqrt(sum(float(v.double().square().sum()) for v in values.values()) / count)
