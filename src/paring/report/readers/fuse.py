"""The folder of ``paring fuse``: what was merged, how, and the checkpoint that came of it."""

from pathlib import Path

from paring.report.document import Block, Code, Column, Document, Facts, Section, Table
from paring.report.numbers import size, text
from paring.report.readers.parts import counted, unreadable
from paring.report.record import Record, read_record

RECORD, CONFIG = "paring-fuse.json", "paring-fuse.yml"
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
    weights, num_bytes = _weights(folder, output, gaps)
    stats = [
        (text(len(models), "count"), "models merged"),
        (text(output.number("tensors"), "count"), "tensors"),
        (size(num_bytes), "of weights"),
    ]
    about = [
        ("method", method),
        ("paper", record.text("paper")),
        ("thresholds over", record.text("scope")),
        ("seed", dict(record.plain())["seed"]),
    ]
    about.append(("fingerprint of the output", output.text("fingerprint")))
    sections = [
        Section("What was merged", [_models(models), Facts(about)]),
        Section("The checkpoint", weights),
        Section("Configuration", _configuration(folder, gaps)),
        Section("Made with", [Facts([("paring", record.text("tool")), ("PyTorch", record.text("torch"))]), _NO_TIMES]),
    ]
    lead = f"{counted(len(models), 'model')} merged into one by {method}, in fp32, tensor by tensor."
    return Document("paring fuse", folder.name, lead, sections, stats if weights else stats[:2], gaps)


def _models(models: list[Record]) -> Table:
    rows = []
    for m in models:
        known = m.text("fingerprint")
        tensors = m.maybe("tensors")
        rows.append((m.text("name"), m.text("role"), m.text("kind"), m.text("base") if "base" in m else "", tensors, known))
    columns = (Column("model"), Column("role"), Column("kind"), Column("on"), Column("tensors", "count"), Column("fingerprint"))
    return Table("The models, and by what each is known again", columns, rows)


def _weights(folder: Path, output: Record, gaps: list[str]) -> tuple[list[Block], float]:
    """The output's bytes by layer, from its headers; no tensor is read."""
    from paring.delta.checkpoint.read import open_checkpoint  # loads PyTorch
    from paring.delta.inspect import layer_of

    try:
        with open_checkpoint(folder) as checkpoint:
            infos = {name: checkpoint.info(name) for name in checkpoint}
    except (OSError, ValueError) as error:
        gaps.append(f"The weights: {unreadable(folder, error)}")
        return [], 0
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
    return [Table("Weights, layer by layer", columns, rows, foot=[total], summed=True)], total[3]


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
