"""What is pruned: fine-tunes out of the zoo, made when they are not there, and the rows of their tasks."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import paring
from paring import DeltaError
from paring.delta.taskvector import TaskVector
from paring.slim.lesson import Lesson
from quality import tasks
from quality.plan import runner
from quality.runs import run

NUM_CALIBRATION = 256
LESSON_ROWS = {"digits": 32, "docstrings": 16}  # in a batch, as `paring slim` takes them
HEAD = "classifier."


@dataclass(frozen=True)
class FineTune:
    """A base, what a fine-tune adds to it, and its rows.

    Attributes:
        model: the base, in evaluation mode. vector: with all tensors in memory; a new head travels along.
        lesson: the calibration rows, at whose labels it does not look.
        loss: of a model on the calibration rows.
    """

    suite: str
    task: str
    model: nn.Module
    vector: TaskVector
    lesson: Lesson
    loss: Callable[[nn.Module], float]

    def errors(self, of: nn.Module) -> float:
        """The share of calibration rows that a model gets wrong."""
        right, total = tasks.num_right(of, map(dict, self.lesson.batches))
        return (total - right) / total

    def accuracy(self, vector: TaskVector, split: tasks.Scored) -> float:
        with vector.apply(self.model):
            return tasks.accuracy(self.model, self.suite, self.task, split)


@dataclass(frozen=True)
class CalibrationLoss:
    """Mean cross-entropy of a model on the calibration rows."""

    batches: tuple[tasks.Batch, ...]

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        total, count = 0.0, 0
        for batch in self.batches:
            logits = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
            total += float(functional.cross_entropy(logits, batch["labels"], reduction="sum"))
            count += len(batch["labels"])
        return total / count


def calibration(suite: str, task: str) -> list[tasks.Batch]:
    """The rows as batches; texts of about one length together."""
    rows = tasks._rows(suite, task, "calibration")[:NUM_CALIBRATION]
    if suite == "docstrings":
        rows = sorted(rows, key=lambda row: len(row["input_ids"]))
    size = LESSON_ROWS[suite]
    return [tasks._collate(rows[i : i + size]) for i in range(0, len(rows), size)]


def fine_tune(suite: str, task: str, method: str, seed: int, zoo: Path, results: Path) -> FineTune:
    """From the zoo; what is missing there, or in a format of an earlier version, is tuned anew."""
    model = tasks.fresh_model(suite, task, seed).eval()
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = tuned_tensors(suite, task, method, seed, zoo, results, model, fresh)
    new = suite == "docstrings"  # the pretrained MiniLM has no head, the ViT has one for the same ten digits
    base = {name: tensor for name, tensor in fresh.items() if not (new and name.startswith(HEAD))}
    vector = paring.diff(base, {**fresh, **tuned}).in_memory()
    batches = calibration(suite, task)
    return FineTune(suite, task, model, vector, Lesson(batches), CalibrationLoss(tuple(batches)))


def tuned_tensors(
    suite: str,
    task: str,
    method: str,
    seed: int,
    zoo: Path,
    results: Path,
    model: nn.Module,
    fresh: dict[str, Tensor],
    rate_of: str = "",
    rate: float | None = None,
) -> dict[str, Tensor]:
    """Tensors that were tuned, by name.

    Args:
        rate_of: the method whose rate is taken, where it has none of its own. rate: the rate itself.
    """
    tuning = runner(suite, results, 1, zoo)
    cell = tuning.cell(task, method, rate or tuning.rate(rate_of or method), seed)
    path = zoo / f"{suite}-{task}-{method}-{seed}-{cell.key}.safetensors"
    for attempt in range(2):
        try:
            if method == "full":
                return load_file(path)
            return paring.load_delta(path, base=model).applied_to(fresh)
        except (FileNotFoundError, SafetensorError, DeltaError):
            if attempt:
                raise
            run(cell, zoo)
    raise AssertionError
