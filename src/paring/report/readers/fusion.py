"""A merge with rows of all tasks: what was tried, what each task has of it, the weights found, the fit."""

from collections.abc import Sequence
from pathlib import Path

from paring.report.document import Cell, Column, Section, Table
from paring.report.readers.parts import SPLITS, settings
from paring.report.record import Record, ReportError, read_record

SEARCH = "paring-fuse-search.json"
_SHARES = ("mean", "worst")


def sections(folder: Path) -> tuple[list[Section], list[tuple[str, str]]]:
    """Sections about the search, and how much each task has of its fine-tune: (value, what it is). Nothing without a search.

    Raises:
        ReportError: its record is not what a search writes.
    """
    if not (folder / SEARCH).is_file():
        return [], []
    record = read_record(folder / SEARCH)
    tried = record.records("tried")
    chosen = next((a for a in tried if a.text("label") == record.text("chosen")), None)
    if chosen is None:
        raise ReportError(f"{folder / SEARCH}: chosen is {record.text('chosen')!r}, which is not among what was tried")
    tables = [_scores(record, tried, split) for split in SPLITS if split in record.record("tuned")]
    parts = [*([_weights(chosen)] if "weights" in chosen else []), *_fit(chosen)]
    found = [
        Section("The search", tables),
        *([Section("The weights it found", parts)] if parts else []),
        Section("Settings of the search", settings(record.record("settings"))),
    ]
    split = [s for s in SPLITS if s in chosen.record("shares")][-1]
    shares = chosen.record("shares").record(split)
    stats = [(f"{shares.number(goal):.4f}", f"of the fine-tunes' {split} scores, {goal} over tasks") for goal in _SHARES]
    return found, stats


def _scores(record: Record, tried: Sequence[Record], split: str) -> Table:
    """A row an attempt that was scored on these rows; a column a task, and those together."""
    tuned = record.record("tuned").record(split)
    metrics = {task: "accuracy" if "accuracy" in scores else "loss" for task, scores in tuned.items()}
    columns = [Column("attempt")]
    columns += [Column(f"{t} {m}", "score", best="low" if m == "loss" else "high") for t, m in metrics.items()]
    columns += [Column(f"{goal} share", "score", best="high") for goal in _SHARES] + [Column("evaluations", "count")]
    rows: list[list[Cell]] = []
    seen = [a for a in tried if split in a.record("scores")]
    for a in seen:
        scores, shares = a.record("scores").record(split), a.record("shares").record(split)
        row: list[Cell] = [a.text("label"), *(scores.record(t).number(m) for t, m in metrics.items())]
        rows.append([*row, *(shares.number(goal) for goal in _SHARES), _evaluations(a)])
    foot: list[Cell] = ["each its own fine-tune", *(tuned.record(t).number(m) for t, m in metrics.items()), 1.0, 1.0, None]
    marked = frozenset(i for i, a in enumerate(seen) if a.text("label") == record.text("chosen"))
    note = "Shares: scores over those of the fine-tunes."
    return Table(f"Scores on {split} rows", columns, rows, [foot], marked=marked, mark="chosen", note=note)


def _evaluations(attempt: Record) -> Cell:
    return attempt.record("search").number("num_evaluations") if "search" in attempt else None


def _fit(chosen: Record) -> list[Table]:
    """How far the fine-tunes were before and after merged values were tuned; nothing where they were not."""
    if "fit" not in chosen:
        return []
    of = chosen.record("fit")
    before, after = of.record("before"), of.record("after")
    columns = [Column("task"), Column("before", "score", best="low"), Column("after", "score", best="low")]
    rows: list[list[Cell]] = [[task, before.number(task), after.number(task)] for task in before.names]
    heads = of.number("head_entries") if "head_entries" in of else 0  # none were tuned before there was such a number
    more = f", and {heads:,.0f} of the tasks' heads," if heads else ""
    note = f"{of.number('entries'):,.0f} entries{more} tuned on calibration rows for {of.number('steps'):.0f} steps."
    return [Table("Distance to the fine-tunes, before and after the fit", columns, rows, note=note)]


def _weights(chosen: Record) -> Table:
    weights = dict(chosen.record("weights").items())
    groups = list(dict.fromkeys(group for of in weights.values() for group in of.names))
    columns = [Column("task"), *(Column(group, "general") for group in groups)]
    rows = [[task, *(of.maybe(group) for group in groups)] for task, of in weights.items()]
    factor = chosen.number("lambda") if "lambda" in chosen else None
    return Table("Weights, by task and group of layers", columns, rows, note="" if factor is None else f"Lambda: {factor:.4g}.")
