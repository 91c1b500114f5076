"""The room of the kinds that train: one training, the same for all of them, and what it scores.

A training is a fresh model, slices as a ``SliceConfig`` has them and the task's head beside them, AdamW without weight decay,
and a rate that rises over a tenth of the steps and then falls linearly to zero. Its seed draws a new head, the order of the
rows and dropout. Train rows are trained on; validation and test rows are scored once, when it is over.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from paring.probe.batches import KEPT_BYTES, SCORED, Rows, bytes_of
from paring.probe.bench import Bench
from paring.probe.checks import as_tuples, at_least, distinct, refuse
from paring.probe.kind import Row
from paring.recipes.scoring import Scores, Scoring
from paring.recipes.scoring import scoring as as_batches
from paring.tune import schedules
from paring.tune.config import SliceConfig
from paring.tune.session import sliced

_WARMUP = 0.1  # of the steps
_HIGHEST = 4.0  # times the recommended rate, of narrow slices


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What all kinds that train take.

    Attributes:
        steps: optimizer steps of a training.
        batch_size: rows in a step.
        rates: highest learning rates, each tried; for what is compared the one counts that did best on validation rows.
            None: the recommended one times the kind's ``factors``; each of several ranks has its own (``Room.rates_of``).
        seeds: of a new head, the order of the rows and dropout; at least two for an interval.
        threads: of PyTorch, while a cell is measured.

    Raises:
        ValueError: naming the setting, what it is, what was expected.
    """

    factors: ClassVar[tuple[float, ...]] = (1.0,)
    steps: int = 200
    batch_size: int = 32
    rates: tuple[float, ...] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    threads: int = 1

    def __post_init__(self) -> None:
        as_tuples(self, "rates", "seeds")
        for name in ("steps", "batch_size", "threads"):
            at_least(self, name, 1)
        distinct(self, "seeds", int)
        if self.rates is not None:
            distinct(self, "rates", float)
            if min(self.rates) <= 0 or not math.isfinite(max(self.rates)):
                refuse("rates", self.rates, "learning rates above 0")


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        validation, test: of the model at its end; test None where there is no such split.
        train_loss: mean over the last tenth of the steps.
        num_trainable: entries trained at a time, the head among them.
        diverged: the loss was not finite; training ended there, and no row counts as answered.
    """

    validation: Scores
    test: Scores | None
    train_loss: float
    num_trainable: int
    diverged: bool

    def as_row(self) -> Row:
        """The columns ``COLUMNS``."""
        return {
            "validation": self.validation.accuracy,
            "test": None if self.test is None else self.test.accuracy,
            "validation_loss": self.validation.loss,
            "test_loss": None if self.test is None else self.test.loss,
            "train_loss": self.train_loss,
            "num_trainable": self.num_trainable,
            "diverged": self.diverged,
        }


COLUMNS = {
    "seed": "of a new head, the order of the rows and dropout",
    "rate": "highest learning rate",
    "validation": "accuracy on validation rows, 0 to 1",
    "test": "accuracy on test rows, 0 to 1; empty: there are none",
    "validation_loss": "mean cross-entropy on validation rows, nats",
    "test_loss": "mean cross-entropy on test rows, nats",
    "train_loss": "mean cross-entropy over the last tenth of the steps, nats",
    "num_trainable": "entries trained at a time, the head among them",
    "diverged": "the loss was not finite: training ended, and no row counts as answered",
}


class Room:
    """A model and rows, made ready for many trainings.

    Attributes:
        matrices: of the target layers, by name.
        rates: as given, or recommended; of slices of the recommended rank.
        given: what every training depends on beside its cell.
        facts: of model and data, for the record. notes: for the user.

    Raises:
        ValueError: the rows have no classes, or as ``Bench``.
    """

    def __init__(self, bench: Bench, settings: TrainingSettings) -> None:
        if bench.subject.task == "causal-lm":
            refuse("task", "causal-lm", "text-classification or image-classification: accuracies are of rows with classes")
        self.bench, self._settings = bench, settings
        loaded = bench.model(settings.seeds[0])
        selection = bench.select(loaded.model)
        self.matrices = {layer.name: layer.matrix for layer in selection.layers}
        self._inputs = bench.inputs(loaded)
        self._recommended = SliceConfig.recommended(loaded.model, settings.steps)
        self.rates = self._rates(1.0)
        self._train = Rows(self._inputs.train, self._inputs.collate)
        self._scored: dict[str, Scoring] = {}
        self.given = {k: getattr(settings, k) for k in ("steps", "batch_size", "threads")}
        self.facts = {
            "num_layers": len(self.matrices),
            "num_classes": len(bench.data.labels),
            "num_train_rows": len(self._inputs.train),
            "num_validation_rows": len(self._inputs.validation),
            "num_test_rows": 0 if self._inputs.test is None else len(self._inputs.test),
        }
        self.notes = selection.notes

    def config(self, **settings: Any) -> SliceConfig:
        """Slices in the target layers; ``rank`` and whatever else.

        Raises:
            ValueError: a layer cannot hold them.
        """
        subject = self.bench.subject
        config = SliceConfig(**{"targets": subject.targets, "exclude": subject.exclude, "move_steps": None} | settings)
        schedules.check(config, self.matrices)
        return config

    def rates_of(self, rank: int) -> tuple[float, ...]:
        """As given; else the recommended ones, the lower the wider the slice: Adam moves each entry by the rate, and what a
        layer puts out is a sum over the slice's entries."""
        return self._rates(min(_HIGHEST, self._recommended.config.rank / rank))

    def _rates(self, times: float) -> tuple[float, ...]:
        middle = times * self._recommended.learning_rate
        return self._settings.rates or tuple(float(f"{middle * factor:.3g}") for factor in self._settings.factors)

    def narrowest(self, axis: str) -> tuple[int, str]:
        """The fewest rows (columns) of a target layer, and its name."""
        return min((matrix.extent(axis), name) for name, matrix in self.matrices.items())  # type: ignore[arg-type]

    def train(self, config: SliceConfig, rate: float, seed: int) -> Trained:
        """Trains slices of a fresh model, and the head."""
        with threads(self._settings.threads), torch.random.fork_rng():
            model = self.bench.model(seed).model
            with sliced(model, config, verbose=False) as session:
                fitted = self.fit(model, session.parameters(), rate, seed, session.step)
                return self.scored(model, fitted, session.num_trainable)

    def fit(
        self, model: nn.Module, parameters: list[nn.Parameter], rate: float, seed: int, after_step: Callable[[], None]
    ) -> tuple[float, bool]:
        """Trains ``parameters`` of a model: (loss over the last tenth of the steps, whether it diverged)."""
        torch.manual_seed(seed)
        model.train()
        steps = self._settings.steps
        warmup = max(1, round(_WARMUP * steps))
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, fused=True)
        batches = self._train.endless(self._settings.batch_size, seed)
        losses: list[float] = []
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * min((step + 1) / warmup, (steps - step) / steps)
            loss = model(**next(batches)).loss
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                break
            loss.backward()
            optimizer.step()
            after_step()
            optimizer.zero_grad()
        last = losses[-max(1, steps // 10) :]
        model.eval()
        return math.fsum(last) / len(last), not math.isfinite(losses[-1])

    def scored(self, model: nn.Module, fitted: tuple[float, bool], num_trainable: int) -> Trained:
        """A model as ``fit`` left it."""
        loss, diverged = fitted
        validation, test = self._score(model, "validation", diverged), self._score(model, "test", diverged)
        assert validation is not None
        return Trained(validation, test, loss, num_trainable, diverged)

    def _score(self, model: nn.Module, split: str, diverged: bool) -> Scores | None:
        rows = getattr(self._inputs, split)
        if rows is None:
            return None
        if diverged:
            return Scores(math.nan, 0.0)
        if split not in self._scored:
            found = as_batches(self.bench.subject.tuning().task, rows, self._inputs.collate, SCORED)
            small = bytes_of(self._inputs.collate([rows[0]])) * len(rows) <= KEPT_BYTES
            self._scored[split] = found.to("cpu") if small else found
        return self._scored[split].scores(model)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads while it lasts: a second one brings a small model little, and the same number gives the same weights."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
