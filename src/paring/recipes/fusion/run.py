"""``paring fuse`` with calibration rows, from a configuration to the merged model."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from paring.delta.taskvector import TaskVector
from paring.fuse.apart import refuse_onto_input
from paring.fuse.config import Config, read_config
from paring.fuse.engine import Report, fuse
from paring.fuse.models import Weights as Checkpoint
from paring.fuse.models import open_models
from paring.fuse.plan import Plan, make_plan
from paring.fusion.groups import ALL
from paring.recipes.fusion.bank import banked
from paring.recipes.fusion.methods import Attempt, Body, Pruned, Say, body, choose, fitted, pruned, searched, unsearched
from paring.recipes.fusion.named import NPS, Weights, configured, settled, tasks_of, with_weights
from paring.recipes.fusion.problem import REPORTED, SEARCHED, SELECTED, Problem, problem
from paring.recipes.fusion.report import record, tables, written
from paring.recipes.fusion.settings import FusionSettings, TaskOptions
from paring.recipes.fusion.written import clear, finish, refuse_there, under_way
from paring.recipes.slim.output import SUFFIX, check_new
from paring.recipes.slim.run import print_line
from paring.report import PAGE
from paring.slim.identity import digest


def fuse_searched(
    config: str | Path | Config,
    out: str | Path,
    settings: FusionSettings,
    *,
    tasks: Mapping[str, TaskOptions],
    allow: Collection[str] = (),
    device: str = "cpu",
    threads: int | None = None,
    shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
    report: Report = lambda done, total: None,
    say: Say = print_line,
) -> dict[str, Any]:
    """Merges models on rows of every task: weights are searched, values fitted, or both.

    Args:
        config: as for ``paring.fuse.engine.fuse``; its weights, if it has any, are a point that the search begins with,
            or those of the merge that is fitted.
        out: a new folder: the merged model, its heads, what was searched.
        tasks: rows of each model's task, by the model's name without where it lies.
        allow, device, threads, shard_bytes, overwrite, report: as ``fuse``. Tensors that the base lacks become heads.
        say: takes lines for the user.

    Returns:
        The record: the fine-tunes' scores, and of each attempt weights, scores, shares of the fine-tunes' scores.

    Raises:
        ConfigError, FuseError, DeltaError, ValueError, OSError, ImportError: configuration, models, settings or rows are not
            what they should be. Nothing is written then.
    """
    named, out = out, Path(out).resolve()
    config = config if isinstance(config, Config) else read_config(config)
    references = tasks_of(config, searched=settings.searches)
    fixed = not settings.searches and settled(config)
    begin = None if fixed else configured(config)
    method = settings.prune or (NPS if config.method.name == NPS else None)
    bank = Path(settings.pruned or f"{named}.pruned") if method else None
    _check(config, references, tasks, settings, method)
    refuse_there(out, overwrite)
    if bank is not None:
        check_new(bank, "--pruned", overwrite, (*(f"{name}{SUFFIX}" for name in references), PAGE))
    open_models(config)  # errors with the lines of the user's file, which the next configuration has no more
    equal = Weights({} if fixed else {name: [1.0] for name in references}, ALL)
    plan = make_plan(with_weights(config, equal), {*allow, "extra"})
    refuse_onto_input(out, plan.models.items())
    if bank is not None:
        refuse_onto_input(bank, plan.models.items())
    _refuse_other_dtype(plan)
    about = problem(plan, references, tasks, settings)
    for note in about.notes:
        say(f"paring: {note}")
    left = {} if method is None else _pruned(about, settings, method, say)
    vectors = {task.name: left[task.name].stored if left else task.vector for task in about.tasks}
    on = body(plan, about, vectors, _keys(plan, about, bank))
    identity = _identity(plan, about, vectors, settings)
    attempts = _tried(on, about, settings, say, begin=begin, fixed=fixed, identity=identity, pruned=bool(left))
    chosen = choose(attempts, about, settings)
    if about.has_test:
        attempts = [on.scored(a, REPORTED) if a is chosen else a for a in attempts]
        chosen = next(a for a in attempts if REPORTED in a.scores)
    found = record(about, attempts, chosen, method, settings)
    lines = tables(found, chosen)
    for line in ["", *lines]:
        say(line)

    models = {} if bank is None else {task.name: str(bank / f"{task.name}{SUFFIX}") for task in about.tasks}
    final = with_weights(config, _weights(chosen, models), _remark(about, settings, chosen))
    merged = under_way(out)
    clear(merged)
    kept = nullcontext() if bank is None else banked(bank, left, about, settings, method or "")
    try:
        with kept:
            values = chosen.fitted.values if chosen.fitted else None
            engine = {"device": device, "threads": threads, "shard_bytes": shard_bytes}
            fuse(final, merged, allow={*allow, "extra"}, report=report, fitted=values, **engine)  # type: ignore[arg-type]
            base = plan.models[plan.main]
            assert isinstance(base, Checkpoint)
            scores = {t.name: {split: of[t.name].metric[1] for split, of in chosen.scores.items()} for t in about.tasks}
            tuned = chosen.fitted.heads if chosen.fitted else {}
            heads = finish(merged, out, about.tasks, base.source, found, lines, scores, overwrite, vectors, tuned)
    except BaseException:
        clear(merged)
        raise
    for line in written(out, chosen, heads, bank):
        say(line)
    return found


def _pruned(about: Problem, settings: FusionSettings, method: str, say: Say) -> dict[str, Pruned]:
    with _going_on(settings, say):
        return pruned(about, settings, method, say)


def _tried(
    on: Body,
    about: Problem,
    settings: FusionSettings,
    say: Say,
    *,
    begin: list[float] | None,
    fixed: bool,
    identity: dict[str, Any],
    pruned: bool,
) -> list[Attempt]:
    """Merges to choose among: with weights that are searched, or with those that were given; and one of them fitted."""
    with _going_on(settings, say):
        attempts = searched(on, begin, settings, identity, say) if settings.searches else unsearched(on, begin, settled=fixed)
        if settings.fit:
            whole = {task.name: task.vector for task in about.tasks} if pruned else None
            attempts += fitted(on, choose(attempts, about, settings), whole, settings, say)
        return attempts


@contextmanager
def _going_on(settings: FusionSettings, say: Say) -> Iterator[None]:
    """Says on Ctrl-C what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        if settings.search is not None:
            say(f"paring: stopped; the same command goes on with the evaluations in {settings.search}")
        raise


def _check(
    config: Config, names: Collection[str], tasks: Mapping[str, TaskOptions], settings: FusionSettings, method: str | None
) -> None:
    """What can be said before anything is opened."""
    for name in tasks:
        if name not in names:
            raise ValueError(
                f"rows are given for {name!r}, and no model is called that; there are {', '.join(map(repr, names))}"
            )
    for name in names:
        if name not in tasks:
            raise ValueError(f"no rows of {name!r}: a search needs those of every task; give --calibration {name}=FILE")
    tested = [name for name in names if tasks[name].files.test is not None]
    if tested and (untested := [name for name in names if name not in tested]):
        raise ValueError(
            f"--test is given for {', '.join(map(repr, tested))} and not for {', '.join(map(repr, untested))}; expected test "
            "rows of every task, or of none: a merge is reported on all of them"
        )
    if settings.pruned is not None and method is None:
        raise ValueError("--pruned is for pruned task vectors, and nothing is pruned; give --prune METHOD, or leave it out")


def _refuse_other_dtype(plan: Plan) -> None:
    """That what is written is what was scored: of the base's types."""
    base = plan.models[plan.main]
    for job in plan.jobs:
        if job.base is None and job.settings is None:
            continue
        if job.name in base.infos and job.info.dtype != base.infos[job.name].dtype:
            was = f"{base.infos[job.name].dtype}, and {job.info.dtype} in the output"
            key = "out_dtype" if plan.config.out_dtype else "dtype"
            raise plan.config.error(key, f"'{job.name}' is {was}; merges are scored in the base's type: leave {key} out")


def _keys(plan: Plan, about: Problem, bank: Path | None) -> tuple[str, ...]:
    """What the models are called in the final merge, for methods that draw."""
    if bank is not None:
        return tuple(f"{task.name}{SUFFIX}" for task in about.tasks)
    return next(job.keys for job in plan.jobs if job.settings)


def _identity(plan: Plan, about: Problem, vectors: Mapping[str, TaskVector], settings: FusionSettings) -> dict[str, Any]:
    """What scores depend on beside the weights, by which a journal is known again."""
    return {
        "configuration": plan.config.text,
        "calibration": {task.name: task.side.scorings[SEARCHED].digest for task in about.tasks},
        "deltas": {name: digest(vector) for name, vector in vectors.items()},
        "base": next(iter(vectors.values())).base.total,
        "settings": {k: getattr(settings, k) for k in ("objective", "by", "own_heads")},
    }


def _weights(chosen: Attempt, models: Mapping[str, str]) -> Weights:
    if chosen.names is None:
        return Weights({}, ALL, None, models)
    of = {task: list(of.values()) for task, of in chosen.names.weights(chosen.x).items()}
    return Weights(of, chosen.names.groups, chosen.names.factor(chosen.x), models)


def _remark(about: Problem, settings: FusionSettings, chosen: Attempt) -> str:
    scored = {t.name: t.side.scorings[SELECTED].num_rows for t in about.tasks}
    rows = ", ".join(f"{name} ({count})" for name, count in scored.items())
    if settings.searches:
        made = "Weights found by paring fuse on calibration rows"
    else:
        made = "A merge by paring fuse on calibration rows"
    said = (
        f"{made}: {chosen.label}, by the {settings.objective} of the tasks' scores\n"
        f"({settings.by}) over their fine-tunes', seed {settings.seed}; chosen on validation rows of {rows}"
    )
    if chosen.fitted is not None:
        said += (
            "\nThis makes the merge that was fitted. Fitted values follow from the rows, too: they are in the weights and the "
            "heads alone"
        )
    return said
