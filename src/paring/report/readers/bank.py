"""Folders of deltas of one base: a bank of ``paring slim --bank``, with its record, and any other."""

from pathlib import Path

from paring.report.document import Block, Cell, Column, Document, Facts, Section, Table
from paring.report.numbers import ratio, size, text
from paring.report.readers.parts import SPLITS, counted, deltas, listed, made_with, settings
from paring.report.readers.slim import NUMBERS, metric_of
from paring.report.record import Record, ReportError, read_record

_SUFFIX = ".delta.safetensors"


def marks(folder: Path) -> bool:
    return (folder / NUMBERS).is_file() and "tasks" in read_record(folder / NUMBERS)


def holds_deltas(folder: Path) -> bool:
    """A folder of deltas that has no record."""
    from paring.bank.found import find_deltas  # loads PyTorch

    return bool(find_deltas(folder))


def read(folder: Path) -> Document:
    from paring.bank.found import find_deltas

    gaps: list[str] = []
    record = read_record(folder / NUMBERS)
    tasks = dict(record.record("tasks").items())
    if not tasks:
        raise ReportError(f"{folder / NUMBERS}: 'tasks' is empty; expected at least one")
    there = find_deltas(folder)
    gone = [name for name in tasks if name not in there]
    if gone:
        gaps.append(f"Of {listed(gone)} the delta file is not in the folder.")
    unscored = [name for name, task in tasks.items() if not task.record("scores").names]
    if unscored:
        gaps.append(f"No rows were given for {listed(unscored)}: what they lose is not known.")

    slim = sum(t.number("slim_bytes") for t in tasks.values()) + record.number("base_bytes")
    whole = sum(t.number("checkpoint_bytes") for t in tasks.values())
    stats = [
        (text(len(tasks), "count"), "task on one base" if len(tasks) == 1 else "tasks on one base"),
        (size(slim), f"for base and deltas; whole checkpoints take {size(whole)}"),
        (size((slim - record.number("base_bytes")) / len(tasks)), "for each further task"),
    ]
    sections = [
        Section("Tasks", [_tasks(tasks)]),
        Section("Bytes", [_bytes(record, tasks, slim, whole)]),
        Section("Files", [deltas(there.items(), gaps)]),
    ]
    sections += [Section("Configuration", _configuration(record, tasks)), made_with(record, gaps)]
    keep = f"{record.number('keep'):g}"
    lead = f"{counted(len(tasks), 'fine-tune')} of one base, each with {keep} of its entries: {listed(list(tasks))}."
    return Document("paring slim --bank", folder.name, lead, sections, stats, gaps)


def read_deltas(folder: Path) -> Document:
    """Without a record: what the files say themselves."""
    from paring.bank.found import find_deltas

    gaps = [f"There is no {NUMBERS}: how these deltas were made, and what they score, is not known here."]
    found = find_deltas(folder)
    table = deltas(found.items(), gaps)
    total = sum(float(row[1] or 0) for row in table.rows)
    bases = {row[4] for row in table.rows}
    stats = [
        (text(len(found), "count"), "deltas"),
        (size(total), "in all"),
        (text(len(bases), "count"), "base" if len(bases) == 1 else "different bases"),
    ]
    lead = f"A folder of {counted(len(found), 'delta')}: {listed(list(found)[:12])}{' …' if len(found) > 12 else ''}."
    return Document("paring bank", folder.name, lead, [Section("Files", [table])], stats, gaps)


def _tasks(tasks: dict[str, Record]) -> Table:
    scored = [t for t in tasks.values() if t.record("scores").names]
    splits = [s for s in SPLITS if any(s in t.record("scores") for t in scored)]
    splits = [s for s in splits if s != "calibration"] or splits  # what it was fitted on says least
    columns = [
        Column("task"),
        Column("method"),
        Column("bytes", "count", bar=True),
        Column("were", "count"),
        Column("bits/parameter", "general"),
    ]
    for split in splits:
        columns += [Column(f"{split}, fine-tune", "score"), Column(f"{split}, slim", "score"), Column("share", "share")]
    rows = []
    for name, task in tasks.items():
        row: list[Cell] = [
            name,
            task.text("chosen"),
            task.number("slim_bytes"),
            task.number("bytes"),
            task.number("bits_per_parameter"),
        ]
        for split in splits:
            row += _pair(task, split)
        rows.append(row)
    metrics = {metric_of(t.record("scores"), t.record("scores").names) for t in scored}
    note = f"Scores: {listed(sorted(metrics))}." if metrics else ""
    return Table("Every task", columns, rows, note=note)


def _pair(task: Record, split: str) -> list[Cell]:
    if split not in task.record("scores"):
        return [None, None, None]
    metric = metric_of(task.record("scores"), [split])
    whole, value = (task.record(key).record(split).number(metric) for key in ("tuned", "scores"))
    return [whole, value, ratio(value, whole) if metric == "accuracy" else None]


def _configuration(record: Record, tasks: dict[str, Record]) -> list[Block]:
    if "settings" in record:
        return settings(record.record("settings"))
    first = next(iter(tasks.values()))
    common = [(key, value) for key, value in first.plain() if key in ("objective", "budget", "seed", "values")]
    return [Facts([("keep", text(record.number("keep"))), *common])]


def _bytes(record: Record, tasks: dict[str, Record], slim: float, whole: float) -> Block:
    rows: list[tuple[str, float]] = [("base", record.number("base_bytes"))]
    rows += [(f"delta of {name}", task.number("slim_bytes")) for name, task in tasks.items()]
    foot = [("base and deltas", slim), (counted(len(tasks), "checkpoint"), whole)]
    return Table("Both ways to keep the fine-tunes", (Column("what"), Column("bytes", "count", bar=True)), rows, foot=foot)
