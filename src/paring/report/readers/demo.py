"""The folder of ``paring demo``: five tasks, four ways to tune, one base, and one model for all in the end."""

from pathlib import Path
from statistics import fmean

from paring.report.document import (
    Album,
    Axis,
    Block,
    Cell,
    Column,
    Document,
    Facts,
    Figure,
    Panel,
    Points,
    Section,
    Series,
    Strip,
    Table,
)
from paring.report.numbers import NOT_THERE, duration, ratio, size, text
from paring.report.readers.demo_outcome import outcome
from paring.report.readers.demo_outcome import stats as outcome_stats
from paring.report.readers.parts import listed, settings
from paring.report.record import Record, ReportError, read_record

RECORD, DELTAS = "demo.json", "deltas"
_HEX = "0123456789abcdef"


def marks(folder: Path) -> bool:
    return (folder / RECORD).is_file()


def read(folder: Path) -> Document:
    gaps: list[str] = []
    record = read_record(folder / RECORD)
    methods, tasks, results = record.records("methods"), record.records("tasks"), record.records("results")
    labels = {m.text("name"): m.text("label") for m in methods}
    by_method = {name: [r for r in results if r.text("method") == name] for name in labels}
    empty = [name for name, found in by_method.items() if len(found) != len(tasks)]
    if empty or not tasks:
        raise ReportError(
            f"{folder / RECORD}: 'results' has not one result of {listed(empty)} for each of its {len(tasks)} tasks"
        )
    _check_files(folder, record, gaps)

    base = record.record("base")
    slim = record.record("slim").records("results")
    stats = _stats(record, by_method, slim)
    sections = [
        Section("What it shows", [Points(record.texts("conclusions"))]),
        Section("The tasks", _tasks(tasks, gaps)),
        Section("How each way learns", [_curves(record, labels, tasks, results)]),
        Section(
            "What each way reaches, and what it costs", [_table(tasks, labels, by_method), _tradeoff(labels, by_method, slim)]
        ),
        Section("Made slim", [_slim(record, slim)]),
        *outcome(folder, record, tasks, by_method.get("full", []), gaps),
        Section("Back from the bank", [_bank(record.record("bank"))]),
        Section("Every run", [_runs(labels, results)]),
        Section("Configuration", [*settings(record.record("settings")), _splits(record.record("splits")), _slices(methods)]),
        Section("Made with", [_made_with(record)]),
    ]
    lead = (
        f"A vision transformer of {text(base.number('num_weights'), 'count')} weights, pretrained on upright digits, tuned "
        f"{len(labels)} ways on {len(tasks)} tasks it has never seen, each from the same weights."
    )
    return Document("paring demo", "Thin slices against whole fine-tunes", lead, sections, stats, gaps)


def _stats(record: Record, by_method: dict[str, list[Record]], slim: list[Record]) -> list[tuple[str, str]]:
    found = []
    if "moving" in by_method and "full" in by_method:
        moving, full = (_mean(by_method[name], "test_accuracy") for name in ("moving", "full"))
        found.append((text(ratio(moving, full), "share"), "of full fine-tuning's accuracy, by moving slices"))
        share = ratio(_mean(by_method["moving"], "num_trainable"), _mean(by_method["full"], "num_trainable"))
        found.append((text(share, "share"), "of the entries trained at a time"))
    if slim:
        found.append((size(_mean(slim, "num_bytes")), f"a slim delta, in place of {size(_mean(slim, 'of_bytes'))}"))
    found += outcome_stats(record, by_method.get("full", []))
    found.append((duration(record.number("seconds")), "for all of it"))
    return found


def _tasks(tasks: list[Record], gaps: list[str]) -> list[Block]:
    groups = []
    for task in tasks:
        strips = []
        if "samples" in task:
            samples = task.record("samples")
            before, shown = (_images(samples, key) for key in ("upright", "shown"))
            strips = [Strip("before", before), Strip("the task", shown, samples.texts("labels"))]
        groups.append((task.text("name"), task.text("summary"), strips))
    if any(not strips for _, _, strips in groups):
        gaps.append(f"The samples of the tasks are not in {RECORD}, which an older paring wrote; demo.png has them.")
    return [Album("What each task makes of five digits, and their labels", groups)]


def _images(samples: Record, key: str) -> list[list[list[float]]]:
    found = []
    for image in samples.texts(key):
        rows = image.split()
        if not rows or len({len(row) for row in rows}) != 1 or not set("".join(rows)) <= set(_HEX) or len(image) > 4096:
            raise ReportError(
                f"{samples.where}: '{key}' holds {image!r:.60}; expected rows of hexadecimal digits, equally long"
            )
        found.append([[_HEX.index(c) / 15 for c in row] for row in rows])
    return found


def _curves(record: Record, labels: dict[str, str], tasks: list[Record], results: list[Record]) -> Figure:
    panels = []
    for task in tasks:
        of = [r for r in results if r.text("task") == task.text("name")]
        series = [Series(labels[r.text("method")], r.pairs("curve")) for r in of]
        y = Axis("validation accuracy", "score", within=(0, 1))
        panels.append(Panel(task.text("name"), Axis("optimizer steps", "count"), y, series))
    return Figure("Validation accuracy while tuning", panels)


def _table(tasks: list[Record], labels: dict[str, str], by_method: dict[str, list[Record]]) -> Table:
    names = [task.text("name") for task in tasks]
    columns = [Column("method"), *(Column(n, "score", best="high") for n in names), Column("mean", "score", best="high")]
    columns += [
        Column("entries trained", "count", bar=True),
        Column("bytes to keep", "count", bar=True),
        Column("seconds", "seconds", bar=True),
    ]
    rows = []
    for name, results in by_method.items():
        of_task = {r.text("task"): r for r in results}
        missing = [n for n in names if n not in of_task]
        if missing:
            raise ReportError(f"{results[0].where}: there is no result of {name!r} on task {missing[0]!r}")
        row: list[Cell] = [labels[name], *(of_task[n].number("test_accuracy") for n in names), _mean(results, "test_accuracy")]
        rows.append([*row, *(_mean(results, field) for field in ("num_trainable", "kept_bytes", "seconds"))])
    untuned = [task.number("untuned_test_accuracy") for task in tasks]
    foot: list[Cell] = ["not tuned", *untuned, fmean(untuned), 0, 0, None]
    note = "Means over the tasks of entries trained at any one time, of the bytes of the delta file and of seconds of training."
    return Table("Test accuracy by task, and costs", columns, rows, foot=[foot], note=note)


def _tradeoff(labels: dict[str, str], by_method: dict[str, list[Record]], slim: list[Record]) -> Figure:
    series = []
    for name, results in by_method.items():
        series.append(
            Series(
                labels[name],
                [(_mean(results, "kept_bytes"), _mean(results, "test_accuracy"))],
                "dots",
                ("mean over the tasks",),
            )
        )
    if slim:
        series.append(
            Series(
                "full, made slim", [(_mean(slim, "num_bytes"), _mean(slim, "test_accuracy"))], "dots", ("mean over the tasks",)
            )
        )
    x, y = Axis("bytes to keep, a task", "count", log=True), Axis("test accuracy", "score", within=(0, 1))
    return Figure("Accuracy against bytes", [Panel("", x, y, series)], "Means over the tasks; up and to the left is better.")


def _slim(record: Record, slim: list[Record]) -> Table:
    keep, values = record.record("slim").number("keep"), record.record("slim").text("values")
    full = {r.text("task"): r.number("test_accuracy") for r in record.records("results") if r.text("method") == "full"}
    columns = (
        Column("task"),
        Column("bytes", "count", bar=True),
        Column("were", "count"),
        Column("test accuracy", "score"),
        Column("of the fine-tune's", "share"),
        Column("by magnitude alone", "score"),
    )
    rows = [
        (
            s.text("task"),
            s.number("num_bytes"),
            s.number("of_bytes"),
            s.number("test_accuracy"),
            ratio(s.number("test_accuracy"), full.get(s.text("task"))),
            s.number("magnitude_accuracy"),
        )
        for s in slim
    ]
    note = (
        f"{keep:.4g} of a full fine-tune's entries, fitted on calibration images and stored as {values}; scored from the files."
    )
    return Table("Full fine-tunes made slim", columns, rows, note=note)


def _bank(bank: Record) -> Facts:
    return Facts(
        [
            ("delta files", text(bank.number("num_deltas"), "count")),
            ("of these give the accuracy they had", text(bank.number("same_accuracy"), "count")),
            ("base and deltas", size(bank.number("bytes"))),
            ("as many checkpoints", size(bank.number("checkpoint_bytes"))),
            ("a swap takes (median)", f"{1000 * bank.number('median_swap_seconds'):.2f} ms"),
        ]
    )


def _runs(labels: dict[str, str], results: list[Record]) -> Table:
    columns = [Column("task"), Column("method"), Column("test accuracy", "score"), Column("entries trained", "count")]
    columns += [Column("bytes to keep", "count", bar=True), Column("seconds", "seconds", bar=True), Column("delta")]
    rows = []
    for r in results:
        numbers: list[Cell] = [r.number(f) for f in ("test_accuracy", "num_trainable", "kept_bytes", "seconds")]
        rows.append([r.text("task"), labels.get(r.text("method"), r.text("method")), *numbers, r.text("delta")])
    return Table("Each way on each task", columns, rows, folded=True)


def _made_with(record: Record) -> Facts:
    machine = record.record("machine")
    more = [("machine", machine.text("platform")), ("tasks at a time", text(machine.number("workers"), "count"))]
    return Facts([*record.record("versions").plain(), *more])


def _splits(splits: Record) -> Facts:
    return Facts([(f"{name} images", text(splits.number(name), "count")) for name in splits.names])


def _slices(methods: list[Record]) -> Table:
    rows = []
    for m in methods:
        how = "; ".join(f"{k} {v}" for k, v in m.record("slices").plain() if v != "none") if "slices" in m else NOT_THERE
        rows.append((m.text("label"), m.number("rate"), how))
    return Table(
        "The ways to tune", (Column("method"), Column("learning rate", "general"), Column("slices")), rows, folded=True
    )


def _check_files(folder: Path, record: Record, gaps: list[str]) -> None:
    """That the deltas which the record names are there."""
    there = {p.name for p in (folder / DELTAS).iterdir()} if (folder / DELTAS).is_dir() else set()
    every = [*record.records("results"), *record.record("slim").records("results")]
    gone = [name for r in every if (name := r.text("delta")) + ".delta.safetensors" not in there]
    if gone:
        gaps.append(
            f"Of {len(every)} delta files {len(gone)} are not in {DELTAS}/: {listed(gone[:4])}{' …' if len(gone) > 4 else ''}."
        )


def _mean(records: list[Record], field: str) -> float:
    return fmean(r.number(field) for r in records)
