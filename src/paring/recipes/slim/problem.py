"""What a search is about: the base in memory, made ready for the delta, and the rows that it is scored on, as batches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paring.delta.files import load_delta
from paring.delta.taskvector import TaskVector
from paring.recipes.calibration import Files, load_splits, numbered
from paring.recipes.data import Data
from paring.recipes.inputs import prepare
from paring.recipes.quiet import quiet
from paring.recipes.scoring import Goal, Objective, Scores, Scoring, scoring
from paring.recipes.settings import TuneSettings
from paring.recipes.slim.settings import SlimSettings
from paring.recipes.tuned import config_of, load_tuned, outputs, settings_of
from paring.slim.lesson import Lesson, parts
from paring.slim.saliency import saliency

SPLITS = ("calibration", "validation", "test")
_LESSON_ROWS = {"image-classification": 32}  # in a batch of a refit; of texts 16, which did as well as 32 at half the cost


@dataclass(frozen=True)
class Problem:
    """See above.

    Attributes:
        vector: of the fine-tune.
        model: its base, in evaluation mode, on the device that is there.
        scorings: by split; calibration is always there.
        objective: of the calibration rows.
        digest: of these rows.
        tuning: how rows became inputs. config: of the tuned model.
        notes: sentences for the user.
    """

    vector: TaskVector
    model: nn.Module
    scorings: Mapping[str, Scoring]
    objective: Objective
    digest: str
    tuning: TuneSettings
    config: Mapping[str, Any]
    notes: tuple[str, ...]

    @cached_property
    def tuned(self) -> dict[str, Scores]:
        """The fine-tune's scores by split."""
        return self.scores(self.vector)

    @cached_property
    def lesson(self) -> Lesson:
        """The calibration rows as what a refit learns from."""
        rows = _LESSON_ROWS.get(self.tuning.task, 16)
        return Lesson([part for batch in self.scorings["calibration"].batches for part in parts(batch, rows)])

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """How much each entry matters, on the calibration rows; the same for every keep."""
        return saliency(self.vector, self.model, self.lesson)

    def scores(self, vector: TaskVector, splits: tuple[str, ...] = SPLITS) -> dict[str, Scores]:
        """Of base + ``vector`` by split, those of ``splits`` that there are; the base is bitwise as before."""
        with vector.apply(self.model):
            return {split: self.scorings[split].scores(self.model) for split in splits if split in self.scorings}

    @property
    def make(self) -> Callable[[], tuple[nn.Module, Objective]]:
        """Makes model and objective anew in another process; picklable."""
        goal: Goal = self.objective.goal
        return partial(_elsewhere, self.tuning, dict(self.config), self.scorings["calibration"].to("cpu"), goal)


def problem(delta: Path, base: str, files: Files, settings: SlimSettings) -> Problem:
    """Loads the model and reads the rows.

    The task vector is read beside the model in memory rather than the base's files: transformers gives some tensors other
    names there than on disk.

    Raises:
        DeltaError: the delta is damaged, or was made on another base.
        ValueError, OSError, ImportError: what the delta, the base or a file lacks; see ``paring.recipes.tuned`` and
            ``paring.recipes.calibration``.
    """
    config, tuning = described(load_delta(delta), delta, base, settings)
    if tuning.task == "causal-lm" and settings.objective == "accuracy":
        raise ValueError("objective is 'accuracy', and causal-lm has none; expected 'loss'")
    loaded = load_tuned(tuning, config)
    vector = load_delta(delta, base=loaded.model)
    labels = outputs(loaded.model) if tuning.task != "causal-lm" else ()
    with quiet():
        splits = load_splits(files, tuning, labels, settings.seed)
        rows = [numbered(split, labels) for split in (splits.calibration, splits.validation, splits.test)]
    inputs = prepare(tuning, Data(rows[0], rows[1], rows[2], labels, ()), loaded, SPLITS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded.model.to(device)
    scorings = {
        name: scoring(tuning.task, made, inputs.collate, settings.batch_size)
        for name, made in zip(SPLITS, (inputs.train, inputs.validation, inputs.test), strict=True)
        if made is not None
    }
    scorings["calibration"] = scorings["calibration"].to(device)  # made once, scored by every candidate
    return Problem(
        vector=vector,
        model=loaded.model,
        scorings=scorings,
        objective=Objective(scorings["calibration"], settings.objective),
        digest=splits.digest,
        tuning=tuning,
        config=config,
        notes=(*splits.notes, *inputs.notes),
    )


def described(vector: TaskVector, delta: Path, base: str, settings: SlimSettings) -> tuple[dict[str, Any], TuneSettings]:
    """The tuned model's configuration, and how rows become its inputs; see ``paring.recipes.tuned``."""
    config = config_of(vector, delta, settings.config, base)
    given = {name: getattr(settings, name) for name in ("task", "text_column", "label_column", "max_length")}
    return config, settings_of(vector, config, base, given)


def _elsewhere(tuning: TuneSettings, config: dict[str, Any], calibration: Scoring, goal: Goal) -> tuple[nn.Module, Objective]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_tuned(tuning, config).model.to(device), Objective(calibration.to(device), goal)
