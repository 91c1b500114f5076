"""What the path is scored on: the base in memory, made ready for the tuned task and for the original ones, and all rows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paring.delta.align import located
from paring.delta.files import load_delta
from paring.delta.names import split_part
from paring.delta.sources import MemorySource
from paring.delta.taskvector import TaskVector
from paring.recipes.calibration import numbered
from paring.recipes.data import Data
from paring.recipes.inputs import prepare
from paring.recipes.models import Loaded
from paring.recipes.quiet import quiet
from paring.recipes.scoring import Goal, Scores, Scoring, scoring
from paring.recipes.settings import TuneSettings
from paring.recipes.transfer.originals import Original, load_original, share_body, with_own_head
from paring.recipes.transfer.rows import SPLITS, TaskFiles, TaskRows, read_task, refuse_shared_rows
from paring.recipes.transfer.settings import TransferSettings
from paring.recipes.tuned import config_of, load_tuned, outputs, settings_of
from paring.transfer.path import along
from paring.transfer.scores import Point, h_score, mean

TUNED = "tuned"


@dataclass(frozen=True)
class Side:
    """One task: a model in evaluation mode, and batches by split, in memory."""

    name: str
    model: nn.Module
    scorings: Mapping[str, Scoring]
    digest: str

    def scores(self, split: str) -> Scores:
        return self.scorings[split].scores(self.model)


@dataclass(frozen=True)
class Place:
    """What was scored at one lambda, on the rows of one split."""

    lam: float
    tuned: Scores
    originals: tuple[Scores, ...]

    @property
    def point(self) -> Point:
        """By accuracies, where there are any; of equal H the likelier is the better."""
        likely = [likelihood(s) for s in (self.tuned, *self.originals)]
        tie = 0.0 if any(map(math.isnan, likely)) else h_score(likely[0], mean(likely[1:]))
        return Point(self.lam, score_of(self.tuned), tuple(score_of(s) for s in self.originals), tie)


@dataclass(frozen=True)
class Problem:
    """See above.

    Attributes:
        vector: of the fine-tune.
        tuned: its task; the model is the base, on the device that is there.
        originals: the other tasks, whose models share the body.
        notes: sentences for the user.
    """

    vector: TaskVector
    tuned: Side
    originals: tuple[Side, ...]
    notes: tuple[str, ...]

    def trace(self, vector: TaskVector, lambdas: Sequence[float], split: str) -> list[Place]:
        """The scores of base + lambda * ``vector`` at each lambda; the base is bitwise as before."""
        with along(self.tuned.model, vector) as path:
            return [self._at(path.to(lam), lam, split) for lam in lambdas]

    def _at(self, _: nn.Module, lam: float, split: str) -> Place:
        return Place(lam, self.tuned.scores(split), tuple(side.scores(split) for side in self.originals))

    def both(self, goal: Goal) -> "Both":
        """What a search of all tasks makes small."""
        return Both((self.tuned, *self.originals), goal)

    @property
    def has_test(self) -> bool:
        return all("test" in side.scorings for side in (self.tuned, *self.originals))


@dataclass(frozen=True, eq=False)
class Both:
    """1 - H on the calibration rows, by likelihoods (goal "loss") or accuracies; NaN where outputs are not finite."""

    sides: Sequence[Side]
    goal: Goal

    def __call__(self, _: nn.Module) -> float:
        found = [side.scores("calibration") for side in self.sides]
        tuned, *originals = [likelihood(s) if self.goal == "loss" else score_of(s) for s in found]
        return 1 - h_score(tuned, mean(originals))


def score_of(scores: Scores) -> float:
    """The accuracy, or of a task without one the likelihood; 0 to 1, NaN where the outputs are not finite."""
    likely = likelihood(scores)
    return likely if scores.accuracy is None or math.isnan(likely) else scores.accuracy


def problem(base: str, delta: Path, files: TaskFiles, originals: Mapping[str, Original], settings: TransferSettings) -> Problem:
    """Loads the models and reads the rows.

    Raises:
        DeltaError: the delta is damaged, or was made on another base.
        ValueError, OSError, ImportError: what the delta, the base or a file lacks, or rows that stand in two splits.
    """
    plain = load_delta(delta)
    config = config_of(plain, delta, settings.config, base)
    given = {name: getattr(settings, name) for name in ("task", "text_column", "label_column", "max_length")}
    tuning = settings_of(plain, config, base, given)
    loaded = load_tuned(tuning, config)
    vector = load_delta(delta, base=loaded.model)
    others = {name: load_original(name, original, base, plain) for name, original in originals.items()}
    if settings.objective == "accuracy" and "causal-lm" in (tuning.task, *(theirs.task for _, theirs in others.values())):
        raise ValueError("objective is 'accuracy', and causal-lm has none; expected 'loss'")

    notes: list[str] = []
    with quiet():
        rows = {"": read_task(files, tuning, labels_of(loaded, tuning), "--{}", notes)}
        for name, (model, theirs) in others.items():
            option = "--original-{} " + name
            rows[name] = read_task(originals[name].files, theirs, labels_of(model, theirs), option, notes)
        refuse_shared_rows(list(rows.values()))
        tuned = side_of(TUNED, loaded, tuning, rows[""], settings.batch_size, notes)
        sides = [
            side_of(name, model, theirs, rows[name], settings.batch_size, notes) for name, (model, theirs) in others.items()
        ]

    found = vector.base.check(MemorySource(loaded.model))
    vector = with_own_head(vector, loaded.model) if settings.own_head else vector
    own, moved = ({split_part(located(n, found))[0] for n in names} for names in (vector.new, vector.names))
    for side in sides:
        share_body(side.model, loaded.model, own, moved, f"the original task {side.name!r}")
    return Problem(vector, tuned, tuple(sides), tuple(notes))


def side_of(name: str, loaded: Loaded, tuning: TuneSettings, rows: TaskRows, batch_size: int, notes: list[str]) -> Side:
    """One task, its rows as batches in memory; what there is to say of them goes to ``notes``."""
    labels = labels_of(loaded, tuning)
    train, validation, test = (numbered(rows.splits.get(split), labels) for split in SPLITS)
    of = tuple(f"{name} {split}" for split in SPLITS)
    inputs = prepare(tuning, Data(train, validation, test, labels, ()), loaded, (of[0], of[1], of[2]))
    notes += inputs.notes
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded.model.to(device)
    made = {
        split: scoring(tuning.task, some, inputs.collate, batch_size).to(device)  # scored again and again
        for split, some in zip(SPLITS, (inputs.train, inputs.validation, inputs.test), strict=True)
        if some is not None
    }
    return Side(name, loaded.model, made, rows.digest)


def labels_of(loaded: Loaded, tuning: TuneSettings) -> tuple[str, ...]:
    """Names of the model's outputs; none where the task has no labels."""
    model: Any = loaded.model
    return outputs(model) if tuning.task != "causal-lm" else ()


def likelihood(scores: Scores) -> float:
    """exp(-loss): 0 to 1; NaN where the outputs are not finite."""
    return math.exp(-scores.loss)
