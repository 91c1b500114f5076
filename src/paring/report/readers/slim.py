"""The report folder of ``paring slim --report``: what was tried at each keep, what was chosen, and how searches went."""

import math
from pathlib import Path

from paring.report.document import Axis, Block, Cell, Column, Document, Facts, Figure, Panel, Section, Series, Table
from paring.report.numbers import duration, ratio, size, text
from paring.report.readers.parts import SPLITS, counted, listed, made_with, settings
from paring.report.record import Record, ReportError, read_record

NUMBERS = "slim.json"
_NO_METRIC = "loss"


def marks(folder: Path) -> bool:
    return (folder / NUMBERS).is_file() and "keeps" in read_record(folder / NUMBERS)


def read(folder: Path) -> Document:
    gaps: list[str] = []
    record = read_record(folder / NUMBERS)
    keeps = sorted(record.records("keeps"), key=lambda one: one.number("keep"))
    if not keeps:
        raise ReportError(f"{folder / NUMBERS}: 'keeps' is empty; expected at least one keep that was tried")
    tuned = record.record("tuned")
    splits = [s for s in SPLITS if s in tuned]
    if not splits:
        gaps.append(
            "No rows were given and nothing was scored: what the task loses is not known. Rows: --calibration and --test."
        )
    elif "test" not in splits:
        gaps.append("No test rows were given: the scores are those of the rows that the search or the selection saw.")
    metric = metric_of(tuned, splits)

    sections = [Section("What was chosen", _chosen(record, keeps, splits, metric))]
    if figure := _against_keep(keeps, tuned, splits, metric):
        sections.append(Section("Score against keep", [figure]))
    sections.append(Section("What was tried", [_tried(one, splits, metric) for one in keeps]))
    if figure := _search(record, keeps, tuned):
        sections.append(Section("The search", [figure]))
    shown = ("method", "objective", "budget", "seed", "values")
    configuration: list[Block] = [Facts([(k, v) for k, v in record.plain() if k in shown])]
    if "settings" in record:
        configuration = settings(record.record("settings"))
    rows = record.record("rows")
    configuration.append(Facts([(f"{split} rows", text(rows.number(split), "count")) for split in rows.names]))
    sections += [Section("Configuration", configuration), made_with(record, gaps)]
    return Document("paring slim", folder.name, _lead(record, keeps), sections, _stats(record, keeps, splits, metric), gaps)


def metric_of(scores: Record, splits: list[str]) -> str:
    """What the task is judged by: its accuracy, or its loss where it has none."""
    return "accuracy" if splits and "accuracy" in scores.record(splits[0]) else _NO_METRIC


def _lead(record: Record, keeps: list[Record]) -> str:
    tried = keeps[0].records("tried")
    how = (
        f"{counted(len(tried), 'method')} tried"
        if len(tried) > 1
        else f"by {tried[0].text('label')}"
        if tried
        else "nothing was tried"
    )
    shares = listed([f"{one.number('keep'):g}" for one in keeps])
    return f"{record.text('delta')}, {size(record.number('bytes'))}, made small: {shares} of its entries kept, {how}."


def _stats(record: Record, keeps: list[Record], splits: list[str], metric: str) -> list[tuple[str, str]]:
    """Of the smallest keep: it is what the command is for."""
    least = keeps[0]
    found = [
        (f"{least.number('keep'):g}", "of the entries kept" if len(keeps) == 1 else "of the entries kept, the smallest keep")
    ]
    if splits:
        split = splits[-1]
        value, whole = (r.record(split).number(metric) for r in (least.record("scores"), record.record("tuned")))
        share = ratio(value, whole)
        more = f", {text(share, 'share')} of the fine-tune's" if metric == "accuracy" and share is not None else ""
        found.append((text(value, "score"), f"{split} {metric}{more}"))
    if "bytes" in least:
        times = ratio(record.number("bytes"), least.number("bytes"))
        found.append(
            (size(least.number("bytes")), f"as {record.text('values')}, {text(times, 'ratio')} times smaller than before")
        )
    seconds = sum(one.number("seconds") for k in keeps for one in k.records("tried"))
    found.append((duration(seconds), "for all that was tried"))
    return found


def _chosen(record: Record, keeps: list[Record], splits: list[str], metric: str) -> list[Block]:
    tuned = record.record("tuned")
    columns = [
        Column("keep", "general"),
        Column("method"),
        Column("bytes", "count", bar=True),
        Column("times smaller", "ratio"),
    ]
    for split in splits:
        columns.append(Column(f"{split} {metric}", "score"))
        if metric == "accuracy":
            columns.append(Column("of the fine-tune's", "share"))
    rows = []
    for one in keeps:
        row: list[Cell] = [
            one.number("keep"),
            one.text("chosen"),
            one.maybe("bytes"),
            ratio(record.number("bytes"), one.maybe("bytes")),
        ]
        rows.append([*row, *_scores(one, splits, metric, tuned)])
    foot: list[Cell] = [None, "the fine-tune", record.number("bytes"), 1.0]
    for split in splits:
        foot += [tuned.record(split).number(metric), *([1.0] if metric == "accuracy" else [])]
    return [Table("The delta that was written at each keep", columns, rows, foot=[foot])]


def _scores(one: Record, splits: list[str], metric: str, tuned: Record | None = None) -> list[Cell]:
    found: list[Cell] = []
    for split in splits:
        value = one.record("scores").record(split).number(metric) if split in one.record("scores") else None
        found.append(value)
        if tuned is not None and metric == "accuracy":
            found.append(ratio(value, tuned.record(split).number(metric)))
    return found


def _tried(one: Record, splits: list[str], metric: str) -> Table:
    tried = one.records("tried")
    seen = [s for s in splits if all(s in t.record("scores") for t in tried)]  # test rows score what was chosen alone
    columns = [Column("method"), Column("entries kept", "count"), Column("bytes", "count", bar=True)]
    for split in seen:
        columns += [
            Column(f"{split} {m}", "score", best="low" if m == "loss" else "high") for m in dict.fromkeys((metric, "loss"))
        ]
    columns += [Column("evaluations", "count"), Column("seconds", "seconds", bar=True)]
    rows = []
    for t in tried:
        row: list[Cell] = [t.text("label"), t.number("num_kept"), t.number("bytes")]
        row += [t.record("scores").record(s).number(m) for s in seen for m in dict.fromkeys((metric, "loss"))]
        rows.append([*row, t.maybe("num_evaluations"), t.number("seconds")])
    marked = frozenset(i for i, t in enumerate(tried) if t.text("label") == one.text("chosen"))
    mark = f"chosen on {seen[-1]} rows" if len(tried) > 1 and seen else "chosen"
    return Table(f"Keep {one.number('keep'):g}", columns, rows, marked=marked, mark=mark)


def _against_keep(keeps: list[Record], tuned: Record, splits: list[str], metric: str) -> Figure | None:
    """The metric of every method at every keep, on validation rows (without any: on calibration rows)."""
    seen = [s for s in ("validation", "calibration") if s in splits]
    if len(keeps) < 2 or not seen:
        return None
    split = seen[0]
    points: dict[str, list[tuple[float, float]]] = {}
    for one in keeps:
        for t in one.records("tried"):
            points.setdefault(t.text("label"), []).append((one.number("keep"), t.record("scores").record(split).number(metric)))
    series = [Series(label, found) for label, found in points.items()]
    series.append(Series("the fine-tune", [(keeps[0].number("keep"), tuned.record(split).number(metric))], "level"))
    within = (0, 1) if metric == "accuracy" else (0, None)
    x = Axis("keep: share of the entries", "general", log=True, ticks=tuple(one.number("keep") for one in keeps))
    return Figure(
        f"{split.capitalize()} {metric} of every method",
        [Panel("", x, Axis(f"{split} {metric}", "score", within=within), series)],
    )


def _search(record: Record, keeps: list[Record], tuned: Record) -> Figure | None:
    """Every evaluation, and the best so far."""
    goal = record.text("objective")
    if "calibration" not in tuned:
        return None
    panels = []
    for one in keeps:
        series = []
        for t in one.records("tried"):
            if "history" in t:
                # the search made 1 - accuracy small
                scores = [s if goal == "loss" else 1 - s for s in t.numbers("history")]
                series.append(Series(t.text("label"), list(enumerate(scores, 1)), "dots", held=False, faint=True))
                series.append(Series(t.text("label"), _best_so_far(scores, goal), "step"))
        if series:
            whole = tuned.record("calibration").number(goal)
            series.append(Series("the fine-tune", [(1, whole)], "level"))
            y = Axis(f"calibration {goal}", "score", within=(0, 1) if goal == "accuracy" else (0, None))
            panels.append(Panel(f"Keep {one.number('keep'):g}", Axis("evaluations", "count"), y, series))
    note = "A dot is an evaluation, a line the best so far. Evaluations far worse than any line lie outside."
    return Figure(f"Calibration {goal} against evaluations", panels, note, shared=False) if panels else None


def _best_so_far(scores: list[float], goal: str) -> list[tuple[float, float | None]]:
    best: float | None = None
    found: list[tuple[float, float | None]] = []
    for i, score in enumerate(scores, 1):
        if math.isfinite(score) and (best is None or (score < best if goal == "loss" else score > best)):
            best = score
        found.append((i, best))
    return found
