"""The report folder of ``paring transfer --report``: scores along the path, what is best, and the Pareto front."""

import math
from pathlib import Path

from paring.report.document import Axis, Block, Cell, Column, Document, Facts, Figure, Panel, Section, Series, Table
from paring.report.numbers import text
from paring.report.readers.parts import counted, listed, made_with, settings
from paring.report.record import Record, ReportError, read_record

NUMBERS = "transfer.json"
_SIDES = (("tuned", "tuned task"), ("original", "original tasks"), ("h", "H-score"))


def marks(folder: Path) -> bool:
    return (folder / NUMBERS).is_file()


def read(folder: Path) -> Document:
    gaps: list[str] = []
    record = read_record(folder / NUMBERS)
    methods = record.records("methods")
    if not methods:
        raise ReportError(f"{folder / NUMBERS}: 'methods' is empty; expected at least one")
    chosen = record.record("chosen")
    winner = next((m for m in methods if m.text("method") == chosen.text("method")), None)
    if winner is None:
        raise ReportError(f"{folder / NUMBERS}: chosen is {chosen.text('method')!r}, which is not among its methods")
    with_test = _with_test(methods)
    if not with_test:
        gaps.append("No test rows were given: the scores are those of the validation rows that lambda was chosen on.")
    place = winner.record("test" if with_test else "best")
    split = "test" if with_test else "validation"
    stats = [
        (f"{chosen.number('lambda'):.4g}", f"lambda of the highest H-score, by {chosen.text('method')}"),
        *((text(place.number(key), "score"), f"{split} {name}") for key, name in _SIDES),
    ]
    originals = [name for name in record.record("metrics").names if name != "tuned"]
    lead = (
        f"The path from the base towards the fine-tune, base + λ · delta, scored on the tuned task and on {listed(originals)}; "
        f"{counted(len(methods), 'method')}, {record.number('keep'):g} of the entries kept where one prunes."
    )
    sections = [
        Section("Result", [table(record)]),
        Section("Along the path", [curves(record)]),
        Section("One against the other", [_front(record, methods)]),
        Section("Task by task", [_by_task(record, methods, with_test)]),
        Section("Configuration", [*_settings(record), _rows(record)]),
        made_with(record, gaps),
    ]
    return Document("paring transfer", folder.name, lead, sections, stats, gaps)


def table(record: Record) -> Table:
    """Every method of a transfer.json at its best lambda."""
    methods = record.records("methods")
    with_test = _with_test(methods)
    splits = ["validation", "test"] if with_test else ["validation"]
    columns = [Column("method"), Column("entries kept", "count"), Column("lambda", "general")]
    columns += [Column(f"{split} {name}", "score", best="high") for split in splits for _, name in _SIDES]
    rows = []
    for m in methods:
        places = [m.record("best"), *([m.record("test")] if with_test else [])]
        row: list[Cell] = [m.text("method"), m.number("num_kept"), m.record("best").number("lambda")]
        rows.append([*row, *(p.number(key) for p in places for key, _ in _SIDES)])
    ends = record.record("ends")
    foot = []
    for key, name in (("base", "the base"), ("tuned", "the fine-tune")):
        at = [ends.record(key).record(s) for s in splits]
        foot.append([name, None, at[0].number("lambda"), *(p.number(side) for p in at for side, _ in _SIDES)])
    marked = frozenset(i for i, m in enumerate(methods) if m.text("method") == record.record("chosen").text("method"))
    note = "H-score: the harmonic mean of the other two. Lambda was chosen on validation rows"
    note += ", then test rows were scored once." if with_test else "."
    caption = "Every method at its best lambda, and the ends of the path"
    return Table(caption, columns, rows, foot, marked=marked, mark="highest H-score", note=note)


def curves(record: Record) -> Figure:
    """The paths of a transfer.json."""
    methods, panels = record.records("methods"), []
    for key, name in _SIDES:
        series = []
        for m in methods:
            path = m.records("path")
            series.append(Series(m.text("method"), [(p.number("lambda"), p.number(key)) for p in path]))
            best = m.record("best")
            series.append(Series(m.text("method"), [(best.number("lambda"), best.number(key))], "dots", ("its best lambda",)))
        panels.append(
            Panel(
                name.capitalize() if key != "h" else name,
                Axis("lambda"),
                Axis("validation score", "score", within=(0, 1)),
                series,
            )
        )
    return Figure("Validation scores along the path", panels, "A dot marks the lambda of each method's highest H-score.")


def _with_test(methods: list[Record]) -> bool:
    return all("test" in m for m in methods)


def _front(record: Record, methods: list[Record]) -> Figure:
    places = {(m.text("method"), p.number("lambda")): p for m in methods for p in m.records("path")}
    series = []
    for m in methods:
        path = m.records("path")
        points = [(p.number("original"), p.number("tuned")) for p in path if math.isfinite(p.number("original"))]
        labels = [f"lambda {p.number('lambda'):.4g}" for p in path if math.isfinite(p.number("original"))]
        series.append(Series(m.text("method"), points, "dots", labels))
    front = [places.get((one.text("method"), one.number("lambda"))) for one in record.records("pareto")]
    best = sorted((p.number("original"), p.number("tuned")) for p in front if p is not None)
    series.append(Series("Pareto front", best, "line", faint=True))
    within = (0, 1)
    x = Axis("original tasks, validation score", "score", within=within)
    y = Axis("tuned task, validation score", "score", within=within)
    return Figure(
        "What the tuned task gains against what the original tasks lose",
        [Panel("", x, y, series)],
        "No place beats those on the front in both.",
    )


def _by_task(record: Record, methods: list[Record], with_test: bool) -> Table:
    """The same places, each task by itself."""
    metrics = record.record("metrics")
    names, split = metrics.names, "test" if with_test else "validation"
    columns = [Column("method")]
    columns += [Column(f"{name} {m}", "score", best=None) for name in names for m in dict.fromkeys(("accuracy", "loss"))]

    def row(name: str, place: Record) -> list[Cell]:
        scores = place.record("scores")
        return [name, *(scores.record(n).maybe(m) if n in scores else None for n in names for m in ("accuracy", "loss"))]

    rows = [row(m.text("method"), m.record("test" if with_test else "best")) for m in methods]
    ends = record.record("ends")
    foot = [row(name, ends.record(key).record(split)) for key, name in (("base", "the base"), ("tuned", "the fine-tune"))]
    return Table(f"Each task on {split} rows, at each method's best lambda", columns, rows, foot)


def _settings(record: Record) -> list[Block]:
    if "settings" in record:
        return settings(record.record("settings"))
    return [
        Facts(
            [
                (key.replace("_", " "), value)
                for key, value in record.plain()
                if key in ("keep", "objective", "seed", "own_head")
            ]
        )
    ]


def _rows(record: Record) -> Table:
    rows = record.record("rows")
    splits = ("calibration", "validation", "test")
    body = [[name, *(task.maybe(s) for s in splits)] for name, task in rows.items()]
    return Table("Rows by task and split", [Column("task"), *(Column(s, "count") for s in splits)], body)
