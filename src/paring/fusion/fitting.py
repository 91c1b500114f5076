"""A merge whose values are tuned until each task's model answers as that task's fine-tune does, on rows without labels.

    D(theta) = mean over tasks t and batches x of  KL(f_t(x) || g_t(x)) + hidden * mean over layers |h - h_t|^2 / var(h_t)

theta: the entries of the body that tasks change, and each task's own head; g_t: the body with the head of task t; f_t: the
fine-tune (``slim.lesson``). A merge without rows has to guess how task vectors get along; here they say it themselves. Adam
goes down D from any merge, a batch of every task a step, some tokens of it taken from other rows; the rate rises for a few
steps, then falls to zero. Heads are tuned, too: each was made for the body of its own fine-tune, and reads none else as well.

ProDistill (Xu et al. 2025, arXiv 2502.12706) merges task vectors layer by layer, so that activations match the fine-tunes' on
few rows. Here the merged values themselves are tuned, all layers at once and by their logits, too: what one layer gets wrong
another can put right. The price is a backward pass through the whole model.

In memory beside the merge in place: a second body for the fine-tunes, which each is written into in turn (a pass over the
weights, little beside a forward; T copies would be T bodies), the values it began with, two moments and a gradient.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from paring.delta.errors import DeltaError
from paring.fusion.held import Parts
from paring.fusion.imitation import BODY, Student, Teachers, root_mean_square
from paring.fusion.merging import Merging, Settings
from paring.slim.lesson import Lesson, check_tuning

_ATTEMPTS, _SLOWER = 3, 4  # each at a quarter of the rates before, until the distance is below that of the start


@dataclass(frozen=True)
class Fit:
    """How to tune.

    Attributes:
        steps: of Adam, a batch of every task each.
        rate: the highest, above 0, as a share of the root mean square of the task vectors over the entries that are tuned.
        mix: share of tokens (pixels) taken from other rows of the batch, in [0, 1).
        seed: of the order of batches and of what is mixed.
        head_rate: that of the parameters of a task's own head, tensors which the base does not have, as a share of the root
            mean square of their entries; 0: heads stay as they are.

    Raises:
        ValueError: naming the setting, what it is, what was expected.
    """

    steps: int = 720
    rate: float = 0.12
    mix: float = 0.15
    seed: int = 0
    head_rate: float = 0.1

    def __post_init__(self) -> None:
        check_tuning(self.steps, self.rate, self.mix, self.head_rate)


@dataclass(frozen=True, eq=False)
class Fitted:
    """What was found.

    Attributes:
        values: of the body's tensors that were tuned, by name in the output, in the model's type: what was scored, bitwise.
        before, after: the distance to each fine-tune, of the merge it began with and of these values.
        rate: of the attempt that came nearer, see ``Fit``; 0: none did, and ``values`` are those of the merge.
        heads: of the tensors of each task's head that were tuned, by task and name in its model.
        head_rate: as ``rate``; 0, too, where no task has a head of its own.
    """

    values: Mapping[str, Tensor]
    before: Mapping[str, float]
    after: Mapping[str, float]
    rate: float
    heads: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    head_rate: float = 0.0

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
    """Tunes a merge, and the tasks' own heads; never farther from the fine-tunes, on these rows, than the merge was. Bitwise
    the same each time, for one number of threads.

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
    with merging:
        teachers = Teachers(merging, parts)  # a copy of the base: before the merge is put in its place
        merging.to(settings)
        student = Student(merging, teachers, lessons, heads=how.head_rate > 0)
        with student.open():
            before = student.distances()
            _refuse_infinite(before)
            highest = {BODY: how.rate * _scale(merging, parts, student)}
            highest |= {task: how.head_rate * student.rms_of_head(task) for task in parts.tasks}
            share, after = 1.0, before
            for _ in range(_ATTEMPTS):
                rates = {of: share * rate for of, rate in highest.items()}
                student.tune(rates, how.steps, how.mix, how.seed, report)
                found = student.distances() if student.finite() else {"": math.nan}
                if _mean(found) < _mean(before):
                    after = found
                    break
                student.begin_again()
                share /= _SLOWER
            heads = {task: of for task in parts.tasks if (of := student.values(task))}
            if after is before:
                share = 0.0
            return Fitted(student.values(), before, after, share * how.rate, heads, share * how.head_rate if heads else 0.0)


def _refuse_infinite(distances: Mapping[str, float]) -> None:
    for task, distance in distances.items():
        if not math.isfinite(distance):
            raise DeltaError(
                f"fit: the distance to the fine-tune of {task!r} is {distance} before the first step; do its outputs, or "
                "the merge's, overflow? Expected finite ones; take smaller weights, or a model that is whole"
            )


def _scale(merging: Merging, parts: Parts, student: Student) -> float:
    scale = root_mean_square(merging, parts, student.names())
    if not (math.isfinite(scale) and scale > 0):
        raise DeltaError(
            f"fit: the root mean square of the task vectors is {scale}; expected fine-tunes that differ from the base"
        )
    return scale


def _mean(distances: Mapping[str, float]) -> float:
    return sum(distances.values()) / len(distances)
