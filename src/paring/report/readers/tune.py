"""The folder of ``paring tune``: its settings, how it learnt, what it reached, and the delta."""

import math
import re
from pathlib import Path

from paring.report.document import Axis, Block, Column, Document, Facts, Figure, Panel, Section, Series, Table
from paring.report.numbers import duration, ratio, size, text
from paring.report.readers.parts import layers, listed, made_with, name_of, settings, times_smaller
from paring.report.record import Record, read_record

SETTINGS, RESULTS, DELTA = "paring-tune.json", "results.json", "model.delta.safetensors"
_LABELS = 20  # that are named
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})")


def marks(folder: Path) -> bool:
    return (folder / SETTINGS).is_file()


def read(folder: Path) -> Document:
    """Also of a run that was interrupted: then what its last checkpoint knows."""
    gaps: list[str] = []
    given = read_record(folder / SETTINGS)
    lead = _lead(given)
    configuration = Section("Configuration", settings(given))
    if not (folder / RESULTS).is_file():
        gaps.append(
            f"There is no {RESULTS}: the run was interrupted, or goes on still. "
            "Go on with: paring tune --resume --out FOLDER. Scores, times and the delta are missing."
        )
        history = _of_checkpoint(folder, gaps)
        learning = Section("How it learnt", _learning(history, None, gaps))
        return Document("paring tune", folder.name, lead, [learning, configuration], gaps=gaps)

    results = read_record(folder / RESULTS)
    metric = results.text("metric")
    scores = results.record("scores")
    split = "test" if "test" in scores else "validation"
    stats = [(text(scores.number(split), "score"), f"{split} {metric}")]
    stats.append(
        (
            size(results.number("delta_bytes")),
            f"delta, {times_smaller(results.number('model_bytes'), results.number('delta_bytes'))}",
        )
    )
    share = ratio(results.number("num_trainable"), results.number("num_weights"))
    stats.append((text(share, "share"), "of the entries trained at a time"))
    stats.append((duration(results.number("seconds")), f"for {text(results.number('num_steps'), 'count')} steps"))
    sections = [
        Section("Result", [_scores(results, metric), _costs(results)]),
        Section("How it learnt", _learning(results.records("history"), metric, gaps)),
    ]
    if (folder / DELTA).exists():
        sections.append(Section("The delta", layers(folder / DELTA, gaps)))
    else:
        gaps.append(f"The delta, {DELTA}, is not in the folder: what each layer holds cannot be shown.")
    return Document("paring tune", folder.name, lead, [*sections, configuration, made_with(results, gaps)], stats, gaps)


def _lead(given: Record) -> str:
    how = "the recommended slices"
    if "rank" in given:
        moves = f"that move every {given.number('move_steps'):.0f} steps" if "move_steps" in given else "that stay in place"
        how = f"{'/'.join(given.texts('modes'))} slices of rank {given.number('rank'):.0f} {moves}"
    steps = (
        f", {given.number('max_steps'):,.0f} steps of {given.number('batch_size'):,.0f} rows" if "max_steps" in given else ""
    )
    return f"{name_of(given.text('model'))}, tuned on {name_of(given.text('data'))} ({given.text('task')}): {how}{steps}."


def _scores(results: Record, metric: str) -> Table:
    rows = results.record("rows")
    scores = results.record("scores")
    body: list[tuple[str | float | None, ...]] = []
    for split in rows.names:
        value = scores.maybe(split)
        body.append((split, rows.number(split), value))
    labels = results.texts("labels")
    more = [f"{len(labels) - _LABELS:,} more"] if len(labels) > _LABELS else []
    note = f"The labels: {listed([*labels[:_LABELS], *more])}." if labels else ""
    if metric == "loss":
        perplexities = [f"{split} {math.exp(min(scores.number(split), 700.0)):.2f}" for split in scores.names]
        note += f" Perplexity: {listed(perplexities)}."
    return Table(
        "Rows and scores by split", (Column("split"), Column("rows", "count"), Column(metric, "score")), body, note=note.strip()
    )


def _costs(results: Record) -> Facts:
    return Facts(
        [
            (
                "entries trained at a time",
                f"{text(results.number('num_trainable'), 'count')} of {text(results.number('num_weights'), 'count')}",
            ),
            ("bytes of the delta", text(results.number("delta_bytes"), "count")),
            ("bytes of the model", text(results.number("model_bytes"), "count")),
            ("training took", duration(results.number("seconds"))),
        ]
    )


def _of_checkpoint(folder: Path, gaps: list[str]) -> list[Record]:
    """What the last checkpoint knows of the way so far."""
    found = [p for p in (folder / "checkpoints").glob("checkpoint-*") if _CHECKPOINT.fullmatch(p.name)]
    for last in sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True):
        if (last / "trainer_state.json").is_file():
            state = read_record(last / "trainer_state.json")
            gaps.append(
                f"What is shown below is known by the last checkpoint, after step {text(state.number('global_step'), 'count')}."
            )
            return state.records("log_history")
    gaps.append("There is no checkpoint yet either.")
    return []


def _learning(history: list[Record], metric: str | None, gaps: list[str]) -> list[Block]:
    """Loss and metric by step; the first of each, since the evaluations after training have the last step's number, too."""
    train = _first(history, "loss")
    losses = _first(history, "eval_loss")
    others = sorted(
        {k for entry in history for k in entry.names if k.startswith("eval_")} & {"eval_accuracy", f"eval_{metric}"}
    )
    names = [key.removeprefix("eval_") for key in others if key != "eval_loss"]
    if not train and not losses:
        gaps.append("No evaluation is recorded: how the run learnt cannot be shown.")
        return ["Nothing is recorded."]
    steps, nats = Axis("optimizer steps", "count"), Axis("loss, nats", "general", within=(0, None))
    panels = [Panel("Loss", steps, nats, [Series("training", train), Series("validation", losses)])]
    by_name = {name: _first(history, f"eval_{name}") for name in names}
    for name, points in by_name.items():
        panels.append(Panel(name.capitalize(), steps, Axis(name, "score", within=(0, 1)), [Series("validation", points)]))
    rates = _first(history, "learning_rate")
    columns = [Column("step", "count"), Column("training loss", "general"), Column("validation loss", "general")]
    columns += [Column(f"validation {name}", "score", best="high") for name in names] + [Column("learning rate", "general")]
    series = [dict(train), dict(losses), *(dict(points) for points in by_name.values()), dict(rates)]
    rows = [(step, *(one.get(step) for one in series)) for step in sorted(set().union(*series))]
    note = "The training loss is the mean since the point before."
    return [Figure("Loss and score on the way", panels, note), Table("Every evaluation", columns, rows, folded=True)]


def _first(history: list[Record], key: str) -> list[tuple[float, float]]:
    found: dict[float, float] = {}
    for entry in history:
        if key in entry.names and "step" in entry:
            found.setdefault(entry.number("step"), entry.number(key))
    return [(step, value) for step, value in found.items() if math.isfinite(step)]
