"""What is done with the task vectors: pruned, if asked for; merged with equal or searched weights; the best of it fitted."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from paring.delta.taskvector import TaskVector
from paring.fuse.method import Method
from paring.fuse.plan import Plan
from paring.fusion.coefficients import Coefficients, shares
from paring.fusion.fitting import Fitted, fit
from paring.fusion.groups import layer_groups
from paring.fusion.held import hold
from paring.fusion.merging import Merging, Settings
from paring.fusion.objective import Goal as Together
from paring.fusion.objective import shares as of_tuned
from paring.fusion.objective import together
from paring.fusion.searched import Workers, search_weights
from paring.recipes.fusion.problem import SEARCHED, SELECTED, One, Problem
from paring.recipes.fusion.settings import FusionSettings
from paring.recipes.scoring import Goal, Objective, Scores
from paring.recipes.slim.progress import Lines
from paring.recipes.transfer.problem import likelihood, score_of
from paring.search.run import Result
from paring.slim.fitted import prune_fitted
from paring.slim.lesson import Lesson
from paring.slim.lost import as_stored
from paring.slim.nps import prune_nps
from paring.slim.pruners import prune

Say = Callable[[str], None]
GIVEN = "as configured"
PER_TASK, PER_LAYERS = "a weight for each task", "a weight for each task and group of layers"


@dataclass(frozen=True)
class Attempt:
    """A merge that was tried.

    Attributes:
        label: for a reader.
        names, x: its weights, as coefficients; None: those of the configuration.
        result: of the search that found them; of equal weights that of the first, whose starts they are; None: there was none.
        fitted: what the merged values were tuned to.
        scores: by split and task.
    """

    label: str
    names: Coefficients | None = None
    x: tuple[float, ...] = ()
    result: Result | None = None
    fitted: Fitted | None = None
    scores: Mapping[str, Mapping[str, Scores]] = field(default_factory=dict)

    def settings(self, how: Method, given: Settings) -> Settings:
        """The method's settings for each tensor."""
        return given if self.names is None else self.names.settings(self.x, how, given)


@dataclass(frozen=True)
class Pruned:
    """A pruned task vector, and it with the values that its file will hold."""

    vector: TaskVector
    stored: TaskVector


def pruned(about: Problem, settings: FusionSettings, method: str, say: Say) -> dict[str, Pruned]:
    """Each task vector pruned by itself."""
    lines = Lines("loss", len(about.tasks), settings.evaluations, say)
    found = {}
    for task in about.tasks:
        left = _pruned(task, settings, method, lines)
        found[task.name] = Pruned(left, as_stored(left, settings.values, 0)[0])
        count = sum(left.change(name).places.count for name in left.names)
        say(f"{task.name}: {method} keeps {count:,} entries")
    return found


@dataclass(frozen=True)
class Body:
    """Merges of some task vectors on the models of a problem.

    Attributes:
        merging: in place. given: the method's settings for each tensor, as the plan has them.
    """

    merging: Merging
    given: Settings
    about: Problem

    def scored(self, attempt: Attempt, *splits: str) -> Attempt:
        """The same with its scores on these splits."""
        with self.merging:
            self.merging.to(attempt.settings(self.merging.how, self.given))
            if attempt.fitted is not None:
                self.merging.put(attempt.fitted.values, attempt.fitted.heads)
            return replace(attempt, scores={**attempt.scores, **{split: self.about.scores(split) for split in splits}})


def body(plan: Plan, about: Problem, vectors: Mapping[str, TaskVector], keys: tuple[str, ...]) -> Body:
    """Merges by the plan's method; ``keys``: what the models are called in it."""
    config = plan.config
    jobs = {job.name: job.settings for job in plan.jobs if job.settings}
    given = jobs.__getitem__
    sizes = {job.name: job.info.shape.numel() for job in plan.jobs if job.settings}
    parts = hold(about.parts(vectors), about.names, sizes)
    models = [task.side.model for task in about.tasks]
    return Body(Merging(models, parts, config.method, given, keys=keys, seed=config.seed, scope=config.scope), given, about)


def searched(
    on: Body, configured: list[float] | None, settings: FusionSettings, problem: Mapping[str, Any], say: Say
) -> list[Attempt]:
    """The best equal weights, the best weights found, and, if asked for, those by layers; scored on calibration and validation
    rows. The simpler comes first.

    Args:
        configured: the weights to begin with, too. problem: what else the scores depend on, for the journals.
    """
    merging, about = on.merging, on.about
    how, parts = merging.how, merging.parts
    first = on.given(next(iter(parts.where)))
    with_lambda = shares(how, first) and any(p.name == "lambda" for p in how.parameters)
    names = Coefficients(parts.tasks, with_lambda=with_lambda)
    stages = [(PER_TASK, names, "weights")]
    if settings.layer_groups > 1:
        groups = layer_groups(parts.where, merging.names, settings.layer_groups)
        stages.append((PER_LAYERS, Coefficients(parts.tasks, groups, with_lambda), f"weights-of-{settings.layer_groups}"))
    lines, objective = Lines(settings.objective, len(stages), settings.evaluations, say), about.objective(settings)
    starts = names.starts(how, first, configured)
    attempts: list[Attempt] = []
    for label, coefficients, folder in stages:
        found = search_weights(
            merging,
            coefficients,
            objective,
            on.given,
            starts,
            settings.search_settings(),
            most=settings.most,
            folder=None if settings.search is None else Path(settings.search) / folder,
            problem=problem,
            report=lines.of(label),
            workers=_workers(about, settings),
        )
        if not attempts:
            scored = {name: score for name, score in found.result.start_scores.items() if score is not None}
            equal = min((name for name in scored if name.startswith("equal")), key=lambda name: scored[name], default=None)
            if equal is not None:
                attempts.append(Attempt(equal, names, tuple(starts[equal]), found.result))
        attempts.append(Attempt(label, coefficients, found.x, found.result))
        starts = {attempt.label: stages[-1][1].spread(attempt.x) for attempt in attempts}  # of the search by layers
    return [on.scored(attempt, SEARCHED, SELECTED) for attempt in attempts]


def unsearched(on: Body, configured: list[float] | None, *, settled: bool) -> list[Attempt]:
    """The merge as the configuration has it, or, where that leaves weights open, with each of those that a search would begin
    with; scored as by a search.

    Args:
        settled: whether it is one merge.
    """
    if settled:
        attempts = [Attempt(GIVEN)]
    else:
        merging = on.merging
        how, parts, first = merging.how, merging.parts, on.given(next(iter(merging.parts.where)))
        with_lambda = shares(how, first) and any(p.name == "lambda" for p in how.parameters)
        names = Coefficients(parts.tasks, with_lambda=with_lambda)
        attempts = [Attempt(label, names, tuple(x)) for label, x in names.starts(how, first, configured).items()]
    return [on.scored(attempt, SEARCHED, SELECTED) for attempt in attempts]


def fitted(
    on: Body, begin: Attempt, vectors: Mapping[str, TaskVector] | None, settings: FusionSettings, say: Say
) -> list[Attempt]:
    """The merge ``begin`` tuned on the tasks' calibration rows, scored; nothing where no values came nearer.

    Args:
        vectors: the whole task vectors, where those that are merged are pruned.
    """
    about, how = on.about, settings.fitting()
    tuned = None if vectors is None else hold(about.parts(vectors), about.names)
    found = fit(
        on.merging,
        begin.settings(on.merging.how, on.given),
        {task.name: Lesson(list(task.side.scorings[SEARCHED].batches)) for task in about.tasks},
        how,
        tuned=tuned,
        report=Lines(settings.objective, 0, 0, say).of_steps(f"{begin.label}, fitted", how.steps),
    )
    before, after = found.distance
    if not found.rate:
        say(f"fitted: no values came nearer to the fine-tunes than those of the merge ({before:.4f} on calibration rows)")
        return []
    say(f"fitted: from {before:.4f} to {after:.4f} of distance to the fine-tunes, mean over tasks, on calibration rows")
    return [on.scored(replace(begin, label=f"{begin.label}, fitted", fitted=found, scores={}), SEARCHED, SELECTED)]


def choose(attempts: list[Attempt], about: Problem, settings: FusionSettings) -> Attempt:
    """The best on validation rows: by the tasks' metrics over the fine-tunes', mean or worst; of equal ones by likelihoods,
    then the simpler."""

    def rank(attempt: Attempt) -> tuple[float, float]:
        scores, tuned, goal = attempt.scores[SELECTED], about.tuned[SELECTED], settings.objective
        first, second = value(scores, tuned, "accuracy", goal), value(scores, tuned, "loss", goal)
        return (-first if first == first else math.inf, -second if second == second else math.inf)

    return min(attempts, key=rank)


def value(scores: Mapping[str, Scores], tuned: Mapping[str, Scores], by: Goal, goal: Together) -> float:
    """Scores of all tasks as one number, see ``paring.fusion.objective``."""
    number = likelihood if by == "loss" else score_of
    found, own = ({task: number(s) for task, s in of.items()} for of in (scores, tuned))
    return together(of_tuned(found, own), goal)


def _pruned(task: One, settings: FusionSettings, method: str, lines: Lines) -> TaskVector:
    """Of one task; its journal lies under its name."""
    calibration = task.side.scorings[SEARCHED]
    if method == "nps":
        return prune_nps(
            task.vector,
            task.side.model,
            Objective(calibration, "loss"),
            settings.keep,
            settings.nps(),
            settings.search_settings(),
            folder=None if settings.search is None else Path(settings.search) / "pruning" / task.name,
            problem={"calibration": calibration.digest},
            report=lines.of(f"{task.name}: nps, keep {settings.keep:g}"),
        ).vector.in_memory()
    if method == "fitted":
        lesson = Lesson(list(calibration.batches))
        step = lines.of_steps(f"{task.name}: fitted, keep {settings.keep:g}", settings.steps)
        return prune_fitted(task.vector, task.side.model, lesson, settings.keep, settings.refit(), report=step).in_memory()
    return prune(task.vector, method, settings.keep, seed=settings.seed).in_memory()


def _workers(about: Problem, settings: FusionSettings) -> Workers | None:
    if not settings.workers:
        return None
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Workers(
        about.make(settings),
        settings.workers,
        threads=max(1, torch.get_num_threads() // settings.workers),
        gpus_per_worker=min(1.0, num_gpus / settings.workers),
    )
