"""A model's loss and accuracy on rows that were made into batches once."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from paring.recipes.settings import Task

Batch = dict[str, Tensor]
Goal = Literal["loss", "accuracy"]
_IGNORED = -100  # of a label: not scored


@dataclass(frozen=True)
class Scores:
    """Means over rows (of causal-lm: over tokens).

    Attributes:
        loss: cross-entropy in nats; NaN where the model's outputs are not finite.
        accuracy: share whose highest logit is their label's, 0 to 1; None for causal-lm, which is reported by its loss.
    """

    loss: float
    accuracy: float | None

    @property
    def metric(self) -> tuple[str, float]:
        """What ``paring tune`` reports, and its name."""
        return ("loss", self.loss) if self.accuracy is None else ("accuracy", self.accuracy)

    @property
    def rank(self) -> tuple[float, float]:
        """The lower, the better: by the metric, then by the loss; a NaN is worse than any number."""
        loss = math.inf if math.isnan(self.loss) else self.loss
        return (loss if self.accuracy is None else -self.accuracy if loss < math.inf else 0.0, loss)

    def as_dict(self) -> dict[str, float | None]:
        """Plain values; what is not finite is None."""
        loss = self.loss if math.isfinite(self.loss) else None
        return {"loss": loss} if self.accuracy is None else {"loss": loss, "accuracy": self.accuracy}


@dataclass(frozen=True, eq=False)
class Scoring:
    """Rows of one split as batches.

    Attributes:
        task: what the labels are: classes, or the tokens themselves.
        batches: as the model takes them, with ``labels``; a list of them, or what makes them anew each time.
        num_rows: of the split.
    """

    task: Task
    batches: Iterable[Batch]
    num_rows: int

    @cached_property
    def digest(self) -> str:
        """Of the batches as the model takes them (other tokens, a text cut elsewhere, other labels): 32 hexadecimal digits."""
        whole = blake2b(self.task.encode(), digest_size=16)
        for batch in self.batches:
            for name in sorted(batch):
                tensor = batch[name].detach().cpu().contiguous()
                whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return whole.hexdigest()

    def to(self, device: torch.device | str) -> "Scoring":
        """The same with all batches in memory, on a device: for rows that are scored again and again."""
        return replace(self, batches=[_moved(batch, device) for batch in self.batches])

    @torch.no_grad()
    def scores(self, model: nn.Module) -> Scores:
        """Of a model in evaluation mode."""
        loss = count = right = 0.0
        device = next(model.parameters()).device
        for batch in self.batches:
            inputs = _moved(batch, device)
            labels = inputs.pop("labels")
            logits = model(**inputs).logits.float()
            if self.task == "causal-lm":
                logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            loss += float(functional.cross_entropy(logits, labels, reduction="sum", ignore_index=_IGNORED))
            count += int((labels != _IGNORED).sum())
            right += int((logits.argmax(-1) == labels).sum())
        mean = loss / count if math.isfinite(loss) else math.nan
        if self.task == "causal-lm":
            return Scores(mean, None)
        return Scores(mean, right / count)


@dataclass(frozen=True, eq=False)
class Objective:
    """What a search makes small: the mean loss, or 1 - accuracy; NaN where the outputs are not finite. Picklable."""

    scoring: Scoring
    goal: Goal

    def __call__(self, model: nn.Module) -> float:
        scores = self.scoring.scores(model)
        return scores.loss if self.goal == "loss" or math.isnan(scores.loss) else 1 - scores.accuracy  # type: ignore[operator]


@dataclass(frozen=True, eq=False)
class _Made:
    """Batches made anew whenever they are asked for: those of images take more room than their rows."""

    rows: Sequence[dict[str, Any]]
    collate: Callable[[list[dict[str, Any]]], Batch]
    size: int

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.rows), self.size):
            stop = min(start + self.size, len(self.rows))
            yield self.collate([self.rows[row] for row in range(start, stop)])


def scoring(task: Task, rows: Any, collate: Callable[[list[dict[str, Any]]], Batch], batch_size: int) -> Scoring:
    """Rows as batches; texts of about one length together, so that little is padding.

    Raises:
        ValueError: of causal-lm, when no row has two tokens: there is nothing to predict.
    """
    if "input_ids" in rows[0]:
        rows = sorted(rows, key=lambda row: len(row["input_ids"]))
    if task == "causal-lm" and len(rows[-1]["input_ids"]) < 2:
        raise ValueError("no text has two tokens, so there is none to predict; expected longer texts")
    return Scoring(task, _Made(rows, collate, batch_size), len(rows))


def _moved(batch: Batch, device: torch.device | str) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}
