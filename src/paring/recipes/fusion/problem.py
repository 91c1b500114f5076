"""What a search of weights is about: the base in memory for every task, on one body, and the rows that tasks are scored on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paring.delta.align import align, located
from paring.delta.base import base_of
from paring.delta.diff import diff
from paring.delta.files import load_delta
from paring.delta.names import split_part
from paring.delta.sources import MemorySource
from paring.delta.taskvector import TaskVector
from paring.fuse.config import Config, Reference
from paring.fuse.models import Weights as Checkpoint
from paring.fuse.models import kind_of
from paring.fuse.plan import Plan
from paring.fusion.held import Task
from paring.fusion.objective import Score
from paring.fusion.searched import Objective
from paring.neighbours.peft_import import import_peft
from paring.recipes.calibration import load_splits
from paring.recipes.fusion.settings import FusionSettings, TaskOptions
from paring.recipes.holdout import hold_out
from paring.recipes.models import Loaded
from paring.recipes.quiet import quiet
from paring.recipes.scoring import Goal, Scores, Scoring
from paring.recipes.settings import TuneSettings
from paring.recipes.transfer.originals import share_body, with_own_head
from paring.recipes.transfer.problem import Side, labels_of, likelihood, score_of, side_of
from paring.recipes.transfer.rows import TaskRows, refuse_shared_rows
from paring.recipes.tuned import config_of, load_tuned, settings_of

SEARCHED, SELECTED, REPORTED = "calibration", "validation", "test"


@dataclass(frozen=True, eq=False)
class TaskScore:
    """A task's score on its calibration rows; picklable."""

    scoring: Scoring
    by: Goal

    def __call__(self, model: nn.Module) -> float:
        scores = self.scoring.scores(model)
        return likelihood(scores) if self.by == "loss" else score_of(scores)


@dataclass(frozen=True)
class One:
    """A task: what its model is made of, its rows, its fine-tune.

    Attributes:
        side: the model, on the body that all share, and its rows as batches.
        vector: of the fine-tune, whole. own: names of the model's tensors that are the task's alone.
    """

    name: str
    side: Side
    vector: TaskVector
    tuning: TuneSettings
    config: Mapping[str, Any]
    own: frozenset[str]


@dataclass(frozen=True)
class Problem:
    """See above.

    Attributes:
        tasks: in the configuration's order.
        tuned: the fine-tunes' scores, by split and task.
        names: tensors of the output -> of the first task's model. moved: those (of the model) that a task changes.
        notes: sentences for the user.
    """

    tasks: tuple[One, ...]
    tuned: Mapping[str, Mapping[str, Scores]]
    names: Mapping[str, str]
    moved: frozenset[str]
    notes: tuple[str, ...]

    @property
    def has_test(self) -> bool:
        return all(REPORTED in task.side.scorings for task in self.tasks)

    def parts(self, vectors: Mapping[str, TaskVector]) -> dict[str, Task]:
        """What ``paring.fusion`` takes, of these task vectors."""
        return {task.name: Task(task.side.model, vectors[task.name]) for task in self.tasks}

    def objective(self, settings: FusionSettings) -> Objective:
        scores: dict[str, Score] = {t.name: TaskScore(t.side.scorings[SEARCHED], settings.by) for t in self.tasks}
        found = self.tuned[SEARCHED]
        own = {t: likelihood(s) if settings.by == "loss" else score_of(s) for t, s in found.items()}
        return Objective(scores, own, settings.objective)

    def scores(self, split: str) -> dict[str, Scores]:
        """Of what is on the models now, by task."""
        return {task.name: task.side.scores(split) for task in self.tasks}

    def make(self, settings: FusionSettings) -> Callable[[], tuple[Sequence[nn.Module], Objective]]:
        """Makes models and objective anew in another process; picklable."""
        objective = self.objective(settings)
        rows = {t.name: replace(t.side.scorings[SEARCHED].to("cpu")) for t in self.tasks}
        made = [(t.tuning, dict(t.config), t.own) for t in self.tasks]
        return partial(_elsewhere, made, self.moved, rows, settings.by, objective.own, settings.objective)


def problem(
    plan: Plan, tasks: Mapping[str, Reference], options: Mapping[str, TaskOptions], settings: FusionSettings
) -> Problem:
    """Loads models and rows; scores the fine-tunes.

    Args:
        plan: of the merge, with any weights.

    Raises:
        DeltaError: a delta is damaged, or of another base. ValueError, OSError, ImportError: what a model, the base or a file
            lacks, or rows that stand in two splits, be it of two tasks.
    """
    base, notes = _base(plan.config), list[str]()
    opened = [_opened(name, reference, base, options[name], settings) for name, reference in tasks.items()]
    with quiet():
        every = {
            name: _rows(name, loaded, tuning, options[name], settings, notes)
            for name, (loaded, _, tuning, _) in zip(tasks, opened, strict=True)
        }
        rows = hold_out_alike(every, settings.held_out, settings.seed, notes)
        refuse_shared_rows(rows)
        sides = [
            side_of(name, loaded, tuning, row, settings.batch_size, notes)
            for name, (loaded, _, tuning, _), row in zip(tasks, opened, rows, strict=True)
        ]
    own = [_new_names(side.model, vector) for side, (_, vector, _, _) in zip(sides, opened, strict=True)]
    moved = frozenset[str]().union(*(_moved_names(s.model, vector) for s, (_, vector, _, _) in zip(sides, opened, strict=True)))
    for i in range(1, len(sides)):
        _share(sides[i].model, sides[0].model, own[0] | own[i], moved, sides[i].name)
    made = tuple(
        One(side.name, side, vector, tuning, config, own[i])
        for i, (side, (_, vector, tuning, config)) in enumerate(zip(sides, opened, strict=True))
    )
    tuned: dict[str, dict[str, Scores]] = {}
    for one in made:
        with one.vector.apply(one.side.model):
            for split in one.side.scorings:
                tuned.setdefault(split, {})[one.name] = one.side.scores(split)
    _refuse_nothing_right(tuned)
    notes += _labels_note(made)
    return Problem(made, tuned, _names(plan, made[0].side.model, moved), moved, tuple(notes))


def _opened(
    name: str, reference: Reference, base: str, options: TaskOptions, settings: FusionSettings
) -> tuple[Loaded, TaskVector, TuneSettings, dict[str, Any]]:
    """A model of the configuration: the base made ready for its task, and what its fine-tune changes."""
    kind, where = kind_of(reference.adapter or reference.model)
    if reference.adapter and reference.model != base:
        raise ValueError(f"{reference} stands on a base of its own; a search needs all models on base_model, {base}")
    path = Path(where).expanduser()
    if kind == "delta":
        plain = load_delta(path)
    elif kind == "adapter":
        plain = import_peft(path, base)
    else:
        plain = diff(base, str(path) if path.exists() else where)
    try:
        config = config_of(plain, path, options.config, base)
        tuning = settings_of(plain, config, base, options.of_rows())
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from None
    loaded = load_tuned(tuning, config)
    vector = load_delta(path, base=loaded.model) if kind == "delta" else plain
    if settings.own_heads:
        vector = with_own_head(vector, loaded.model)
    return loaded, vector, tuning, config


def _rows(
    name: str, loaded: Loaded, tuning: TuneSettings, options: TaskOptions, settings: FusionSettings, notes: list[str]
) -> TaskRows:
    try:
        found = load_splits(options.files, tuning, labels_of(loaded, tuning), settings.seed)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{name!r}: {error}") from None
    notes += [f"{name}: {note}" for note in found.notes]
    splits = {SEARCHED: found.calibration, SELECTED: found.validation, REPORTED: found.test}
    there = {split: rows for split, rows in splits.items() if rows is not None}
    return TaskRows(there, {split: f"--{split} {name}" for split in there})


def hold_out_alike(tasks: Mapping[str, TaskRows], share: float, seed: int, notes: list[str]) -> list[TaskRows]:
    """Of tasks without validation rows a share of the calibration rows in their place: a row that one task holds out is held
    out by every other that has it.

    Raises:
        ValueError: too few rows.
    """
    without = {name: rows.splits[SEARCHED] for name, rows in tasks.items() if SELECTED not in rows.splits}
    held: set[bytes] = set()
    for name, rows in without.items():
        try:
            _, chosen = hold_out(rows.keys, rows.labels or [""] * len(rows), share, seed)
        except ValueError:
            raise ValueError(
                f"--calibration {name}: {len(rows)} row(s) are too few to choose on some and search on the others; give more, "
                f"or --validation {name}=FILE"
            ) from None
        held |= {rows.keys[i] for i in chosen}
    made = []
    for name, task in tasks.items():
        if name not in without:
            made.append(task)
            continue
        rows = without[name]
        out = [i for i, key in enumerate(rows.keys) if key in held]
        stay = [i for i, key in enumerate(rows.keys) if key not in held]
        if not stay:
            raise ValueError(f"--calibration {name}: other tasks hold out all of its rows; give --validation of each task")
        splits = {**task.splits, SEARCHED: rows.select(stay), SELECTED: rows.select(out)}
        made.append(TaskRows(splits, {**task.options, SELECTED: f"the held-out share of --calibration {name}"}))
        notes.append(
            f"{name}: no --validation: {len(out)} of {len(rows)} calibration rows are held out to choose on (seed {seed})"
        )
    return made


def _new_names(model: nn.Module, vector: TaskVector) -> frozenset[str]:
    found = vector.base.check(MemorySource(model))
    return frozenset(split_part(located(n, found))[0] for n in vector.new)


def _moved_names(model: nn.Module, vector: TaskVector) -> frozenset[str]:
    found = vector.base.check(MemorySource(model))
    return frozenset(split_part(located(n, found))[0] for n in vector.names)


def _share(model: nn.Module, body: nn.Module, own: frozenset[str], moved: frozenset[str], name: str) -> None:
    share_body(model, body, own, moved - own, f"the task {name!r}")


def _names(plan: Plan, model: nn.Module, moved: frozenset[str]) -> dict[str, str]:
    """The output's tensors of floating point, and what they are called in the model."""
    jobs = [job.name for job in plan.jobs if job.settings]
    source = MemorySource(model)
    found = align(jobs, {*source.names(), *source.tied()})
    if not moved <= set(found.values()):  # transformers has renamed some as it loaded them
        base = plan.models[plan.main]
        assert isinstance(base, Checkpoint)
        found = base_of(base.source).places_in(source)
    tied = source.tied()
    return {job: tied.get(found[job], found[job]) for job in jobs if job in found}


def _refuse_nothing_right(tuned: Mapping[str, Mapping[str, Scores]]) -> None:
    """That merges can be measured by the fine-tunes' own scores: said before anything is searched."""
    for split, of in tuned.items():
        for name, scores in of.items():
            if not (likelihood(scores) > 0 and score_of(scores) > 0):
                what, got = scores.metric
                raise ValueError(
                    f"--{split} {name}: the fine-tune of {name!r} has {what} {got:g} on these rows, of which no share can be "
                    "taken; expected rows that it gets right in part"
                )


def _labels_note(tasks: Sequence[One]) -> list[str]:
    """That heads are merged whose outputs mean different things."""
    labels = {t.name: tuple((t.config.get("id2label") or {}).values()) for t in tasks}
    if any(t.own for t in tasks) or len(set(labels.values())) == 1 or any(t.tuning.task == "causal-lm" for t in tasks):
        return []
    return ["the tasks' heads name different labels and are merged into one; --own-heads keeps each task's own"]


def _base(config: Config) -> str:
    assert config.base is not None
    path = Path(config.base.model).expanduser()
    return str(path) if path.exists() else config.base.model


def _elsewhere(
    made: Sequence[tuple[TuneSettings, dict[str, Any], frozenset[str]]],
    moved: frozenset[str],
    rows: Mapping[str, Scoring],
    by: Goal,
    own: Mapping[str, float],
    goal: Any,
) -> tuple[list[nn.Module], Objective]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = [load_tuned(tuning, config).model.to(device) for tuning, config, _ in made]
    for model, (_, _, heads) in zip(models[1:], made[1:], strict=True):
        _share(model, models[0], made[0][2] | heads, moved, "in a worker")
    scores: dict[str, Score] = {task: TaskScore(scoring.to(device), by) for task, scoring in rows.items()}
    return models, Objective(scores, own, goal)
