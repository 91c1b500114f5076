"""What the demo ends with: all tasks in one model, what is kept of them, and the path from the base to one of them."""

from pathlib import Path
from statistics import fmean

from paring.report.document import Cell, Column, Facts, Section, Table
from paring.report.numbers import duration, ratio, size, text
from paring.report.readers import transfer
from paring.report.record import Record, ReportError

FOLDER = "fused"
_MERGES = {"fitted": "fitted merge", "average": "weight average", "ties": "TIES"}


def outcome(folder: Path, record: Record, tasks: list[Record], full: list[Record], gaps: list[str]) -> list[Section]:
    """The last sections of the results; none of a run by an older paring.

    Args:
        full: the full fine-tunes' results, one a task.
    """
    if "kept" not in record:
        gaps.append("An older paring wrote this run: it fused nothing, and followed no path from the base to a fine-tune.")
        return []
    sections = []
    if "fused" in record:
        fused = record.record("fused")
        sections.append(Section("All in one model", [_fused(fused, tasks, full), _fit(fused)]))
        if not (folder / FOLDER / "model.safetensors").is_file():
            gaps.append(f"The fused model is not in {FOLDER}/.")
    found = record.record("transfer")
    title = f"From the base to {found.text('task')}"
    return [
        *sections,
        Section("What is kept", [_kept(record)]),
        Section(title, [transfer.curves(found), transfer.table(found)]),
    ]


def stats(record: Record, full: list[Record]) -> list[tuple[str, str]]:
    """The number that matters most of a fused model, if there is one."""
    if "fused" not in record:
        return []
    fitted = fmean(r.number("fitted") for r in record.record("fused").records("results"))
    share = ratio(fitted, fmean(r.number("test_accuracy") for r in full))
    return [(text(share, "share"), f"of the fine-tunes' accuracy, by all {len(full)} fused into one model")]


def _fused(fused: Record, tasks: list[Record], full: list[Record]) -> Table:
    names, results = [task.text("name") for task in tasks], fused.records("results")
    if [r.text("task") for r in results] != names:
        raise ReportError(f"{fused.where}: 'results' are not of the tasks, one each in their order")
    columns = [Column("one model for all"), *(Column(name, "score", best="high") for name in names)]
    columns += [Column("mean", "score", best="high"), Column("of the fine-tunes'", "share")]
    by_task = {r.text("task"): r.number("test_accuracy") for r in full}
    own = [by_task[name] for name in names]
    rows: list[list[Cell]] = []
    for key, label in _MERGES.items():
        found = [r.number(key) for r in results]
        rows.append([label, *found, fmean(found), ratio(fmean(found), fmean(own))])
    foot: list[Cell] = ["fine-tunes, a model each", *own, fmean(own), None]
    note = "One body, and each task's own head. Weight average and TIES see no data; the fitted merge is scored from its files."
    return Table("Test accuracy of the full fine-tunes in one model", columns, rows, foot=[foot], note=note)


def _fit(fused: Record) -> Facts:
    before, after = fused.numbers("distance")
    rate = fused.number("rate")
    return Facts(
        [
            ("steps of the fit", text(fused.number("steps"), "count")),
            ("which took", duration(fused.number("seconds"))),
            ("rate", text(rate) if rate else "none: no values came nearer than those of the average"),
            ("distance to the fine-tunes' answers", f"{before:.4g}, then {after:.4g}"),
            ("weights and heads", size(fused.number("num_bytes"))),
        ]
    )


def _kept(record: Record) -> Table:
    columns = (
        Column("kept"),
        Column("bytes", "count", bar=True, best="low"),
        Column("mean test accuracy", "score", best="high"),
    )
    rows = [(k.text("name"), k.number("bytes"), k.number("mean_test_accuracy")) for k in record.records("kept")]
    return Table("All tasks, and what they take on disk", columns, rows)
