"""The folder of ``paring fuse``: what was merged, how, and the checkpoint that came of it."""

from pathlib import Path

from paring.report.document import Block, Code, Column, Document, Facts, Section, Table
from paring.report.numbers import size, text
from paring.report.readers import fusion
from paring.report.readers.parts import counted, layers, listed, unreadable
from paring.report.record import Record, read_record

RECORD, CONFIG = "paring-fuse.json", "paring-fuse.yml"
SHARED, _MASK = "shared", ".mask.safetensors"  # of a bank
_MOST_TEXT = 1 << 20
_NO_TIMES = "The same inputs give the same files, byte for byte; so there are no times among them."


def marks(folder: Path) -> bool:
    return (folder / RECORD).is_file()


def unfinished(folder: Path) -> Path | None:
    """The hidden folder of a merge into ``folder`` that was stopped."""
    hidden = folder.with_name(f".{folder.name}.fuse")
    return hidden if (hidden / "journal.jsonl").is_file() else None


def read(folder: Path) -> Document:
    gaps: list[str] = []
    record = read_record(folder / RECORD)
    models, output = record.records("models"), record.record("output")
    method = record.text("merge_method")
    about = [(name, value) for name, value in record.plain() if name in ("paper", "scope", "seed")]
    searched, stats = fusion.sections(folder)
    stats.append((text(len(models), "count"), "models merged"))
    if "tasks" in output:
        result, size_of = _bank(folder, output, gaps)
        about.append(("the shared vector is known by", output.text("shared")))
    else:
        result, size_of = _weights(folder, output, gaps)
        about.append(("the output is known by", output.text("fingerprint")))
        stats.append((text(output.number("tensors"), "count"), "tensors"))
    if size_of is not None:
        stats.append((size(size_of), "in all" if "tasks" in output else "of weights"))
    sections = [
        Section("What was merged", [_models(models), Facts([("method", method), *about])]),
        *searched,
        result,
        Section("Configuration", _configuration(folder, gaps)),
        Section("Made with", [Facts([("paring", record.text("tool")), ("PyTorch", record.text("torch"))]), _NO_TIMES]),
    ]
    kept = f", a mask and a scale for each of {counted(len(output.record('tasks').names), 'task')}" if "tasks" in output else ""
    lead = f"{counted(len(models), 'model')} merged by {method}, in fp32, tensor by tensor{kept}."
    return Document("paring fuse", folder.name, lead, sections, stats, gaps)


def _models(models: list[Record]) -> Table:
    rows = []
    for m in models:
        known = m.text("fingerprint")
        tensors = m.maybe("tensors")
        rows.append((m.text("name"), m.text("role"), m.text("kind"), m.text("base") if "base" in m else "", tensors, known))
    columns = (Column("model"), Column("role"), Column("kind"), Column("on"), Column("tensors", "count"), Column("fingerprint"))
    return Table("The models, and by what each is known again", columns, rows)


def _weights(folder: Path, output: Record, gaps: list[str]) -> tuple[Section, float | None]:
    """The output's bytes by layer, from its headers; no tensor is read."""
    from paring.delta.checkpoint.read import open_checkpoint  # loads PyTorch
    from paring.delta.inspect import layer_of

    try:
        with open_checkpoint(folder) as checkpoint:
            infos = {name: checkpoint.info(name) for name in checkpoint}
    except (OSError, ValueError) as error:
        gaps.append(f"The weights: {unreadable(folder, error)}")
        return Section("The checkpoint", ["Its weights cannot be shown."]), None
    if len(infos) != output.number("tensors"):
        said = text(output.number("tensors"), "count")
        gaps.append(f"The weights have {len(infos):,} tensors, the record says {said}: they are not those of this merge.")
    groups: dict[str, list[tuple[int, int, str]]] = {}
    for name, info in infos.items():
        kind = str(info.dtype).removeprefix("torch.")
        groups.setdefault(layer_of(name), []).append((info.shape.numel(), info.nbytes, kind))
    rows = [
        (name, len(g), sum(n for n, _, _ in g), sum(b for _, b, _ in g), ", ".join(sorted({k for _, _, k in g})))
        for name, g in groups.items()
    ]
    total = ("total", len(infos), sum(r[2] for r in rows), sum(r[3] for r in rows), "")
    columns = (
        Column("layer"),
        Column("tensors", "count"),
        Column("entries", "count"),
        Column("bytes", "count", bar=True),
        Column("type"),
    )
    table = Table("Weights, layer by layer", columns, rows, foot=[total], summed=True)
    return Section("The checkpoint", [table]), total[3]


def _bank(folder: Path, output: Record, gaps: list[str]) -> tuple[Section, float | None]:
    """A bank: one shared vector, and for each task a mask and a scale."""
    rows = []
    for name, task in output.record("tasks").items():
        rows.append((name, task.number("scale"), task.number("bytes"), listed(task.texts("own"))))
        if not (folder / f"{name}{_MASK}").is_file():
            gaps.append(f"{name}{_MASK}, the mask of a task, is not in the folder.")
    columns = (Column("task"), Column("scale", "score"), Column("bytes", "count", bar=True), Column("tensors of its own"))
    shared = layers(folder / SHARED, gaps)
    files = [path for path in folder.rglob("*.safetensors") if path.is_file()]
    tables = [Table("Each task, beside the shared vector", columns, rows), *shared]
    return Section("The bank", tables), sum(path.stat().st_size for path in files)


def _configuration(folder: Path, gaps: list[str]) -> list[Block]:
    path = folder / CONFIG
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_TEXT + 1)
    except OSError as error:
        gaps.append(f"The configuration, {CONFIG}, cannot be read: {error.strerror}.")
        return ["It is missing."]
    if len(content) > _MOST_TEXT:
        gaps.append(f"{CONFIG} is longer than {_MOST_TEXT:,} bytes; its beginning is shown.")
    return [Code(CONFIG, content[:_MOST_TEXT].decode("utf-8", "replace"))]
