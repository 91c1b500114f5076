"""What is merged: the fine-tunes of all tasks of a suite on one body, each with its own head, and their rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

import paring
from paring.delta.taskvector import TaskVector
from paring.fusion.held import Task
from paring.slim.lesson import Lesson
from quality import tasks
from slimming.finetunes import HEAD, CalibrationLoss, calibration, tuned_tensors

CHOICE = {"digits": 1, "docstrings": 4}  # settings are chosen on one of so many batches of validation rows
# Rates are chosen on "module" (tune_quality.py); full fine-tunes of "raises" stay at the most frequent label there.
RATES = {("docstrings", "raises", "full"): 2e-4}
TASKS = {"digits": tasks.SUITES["digits"].tasks, "docstrings": (*tasks.SUITES["docstrings"].tasks, "raises")}


@dataclass(frozen=True)
class Problem:
    """Models that share the base's body, and what a fine-tune of each adds to it; its head travels with it.

    Attributes:
        own: accuracy of the fine-tunes, by split and task.
        losses: of a model on a task's calibration rows. lessons: these rows, without labels.
    """

    suite: str
    seed: int
    models: Mapping[str, nn.Module]
    vectors: Mapping[str, TaskVector]
    own: Mapping[str, Mapping[str, float]]
    losses: Mapping[str, CalibrationLoss]
    lessons: Mapping[str, Lesson]

    def parts(self, vectors: Mapping[str, TaskVector] | None = None) -> dict[str, Task]:
        """What ``paring.fusion`` takes, of these task vectors, or of the whole ones."""
        return {task: Task(model, (vectors or self.vectors)[task]) for task, model in self.models.items()}

    def accuracies(self, split: tasks.Scored) -> dict[str, float]:
        """Of what is on the models now, by task."""
        every = self.every(split)
        return {task: tasks.accuracy(model, self.suite, task, split, every) for task, model in self.models.items()}

    def every(self, split: str) -> int:
        """One batch of so many is scored."""
        return CHOICE[self.suite] if split == "validation" else 1

    def calibrated(self) -> dict[str, Callable[[nn.Module], float]]:
        """Of each task's calibration rows the accuracy, which `paring fuse` searches by unless told otherwise."""
        return {task: _Accuracy(loss.batches) for task, loss in self.losses.items()}


@dataclass(frozen=True)
class _Accuracy:
    batches: tuple[tasks.Batch, ...]

    def __call__(self, model: nn.Module) -> float:
        right, total = tasks.num_right(model, self.batches)
        return right / total


def problem(suite: str, seed: int, zoo: Path, results: Path) -> Problem:
    """Loads, or tunes what is not in the zoo; all on one thread."""
    names = TASKS[suite]
    models = {task: tasks.fresh_model(suite, task, seed).eval() for task in names}
    share_body(models)
    vectors, own = {}, {split: dict[str, float]() for split in ("validation", "test")}
    for task, model in models.items():
        vectors[task] = task_vector(suite, task, "full", seed, zoo, results, model)
        with vectors[task].apply(model):
            for split in own:
                every = CHOICE[suite] if split == "validation" else 1
                own[split][task] = tasks.accuracy(model, suite, task, split, every)  # type: ignore[arg-type]
    batches = {task: calibration(suite, task) for task in names}
    losses = {task: CalibrationLoss(tuple(found)) for task, found in batches.items()}
    return Problem(suite, seed, models, vectors, own, losses, {task: Lesson(found) for task, found in batches.items()})


def task_vector(
    suite: str, task: str, method: str, seed: int, zoo: Path, results: Path, model: nn.Module, rate_of: str = ""
) -> TaskVector:
    """What a fine-tune adds to the base, which is on ``model``; its head counts as new."""
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rate = RATES.get((suite, task, method))
    tuned = tuned_tensors(suite, task, method, seed, zoo, results, model, fresh, rate_of, rate)
    base = {name: tensor for name, tensor in fresh.items() if not name.startswith(HEAD)}
    return paring.diff(base, {**fresh, **tuned}).in_memory()


def share_body(models: Mapping[str, nn.Module]) -> None:
    """One body in memory for all; heads stay."""
    first, *others = models.values()
    prefix = str(first.base_model_prefix)
    for model in others:
        setattr(model, prefix, getattr(first, prefix))
