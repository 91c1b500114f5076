"""What pages of several kinds have in common: settings, versions, and what a delta file holds."""

import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from paring.report.document import Block, Column, Facts, Section, Table
from paring.report.numbers import size, text
from paring.report.record import Record

SPLITS = ("calibration", "validation", "test")
_MASK = ".mask.safetensors"
# Settings that say where something lay: a page may be shown to others, so it has the last part of these.
_PATHS = ("model", "data", "out", "search", "report", "config", "base", "delta")


def name_of(path: str) -> str:
    """The last part of a path of any system; a name on the hub (OWNER/NAME) stays whole."""
    pure = PureWindowsPath(path) if "\\" in path else PurePosixPath(path)
    if not pure.is_absolute() and len(pure.parts) == 2 and pure.parts[0] not in (".", ".."):
        return str(pure)
    return pure.name or path


def settings(record: Record, leave_out: Collection[str] = ()) -> list[Block]:
    """Names and values of settings, of paths the last part; then the names of those that are not set."""
    values = {key: value for key, value in record.plain() if key not in leave_out}
    pairs = [(key.replace("_", " "), name_of(value) if key in _PATHS else value) for key, value in values.items()]
    unset = [key.replace("_", " ") for key in record.names if key not in values and key not in leave_out]
    return [Facts(pairs), *([f"Not set: {listed(unset)}."] if unset else [])]


def made_with(record: Record, gaps: list[str]) -> Section:
    """Versions and machine."""
    pairs = []
    if "versions" in record:
        pairs += list(record.record("versions").plain())
    else:
        gaps.append("Versions of paring and PyTorch are not in the record; a newer paring writes them.")
    if "machine" in record:
        pairs.append(("machine", record.text("machine")))
    return Section("Made with", [Facts(pairs)] if pairs else ["Not recorded."])


def layers(path: Path, gaps: list[str]) -> list[Block]:
    """What a delta holds, layer by layer; what is wrong with it goes to ``gaps``."""
    from paring.delta.inspect import summarise  # loads PyTorch

    try:
        summary = summarise(path)
    except (OSError, ValueError) as error:
        gaps.append(unreadable(path, error))
        return []
    rows = [
        (r.name, r.tensors, r.entries, r.kept, r.kept / r.entries if r.entries else None, r.stored, r.coding)
        for r in summary.rows
    ]
    entries, kept = sum(r.entries for r in summary.rows), sum(r.kept for r in summary.rows)
    exact = all(e.kind != "real" for e in summary.manifest.entries.values())
    base = summary.manifest.base
    facts = [
        (
            "file",
            f"{path.name}, {summary.num_bytes:,} bytes, {summary.bits_per_parameter:.3f} bits for each parameter of the model",
        ),
        ("exactness", "base + delta is bitwise the fine-tune" if exact else "differences are rounded numbers"),
        ("base", f"{len(base.tensors)} tensors, fingerprint {base.total}"),
    ]
    columns = (
        Column("layer"),
        Column("tensors", "count"),
        Column("entries", "count"),
        Column("kept", "count"),
        Column("keep", "general"),
        Column("bytes", "count", bar=True),
        Column("coding"),
    )
    total = (
        "total",
        sum(r.tensors for r in summary.rows),
        entries,
        kept,
        kept / entries if entries else None,
        sum(r.stored for r in summary.rows),
        "",
    )
    return [Facts(facts), Table(f"What {path.name} holds, layer by layer", columns, rows, foot=[total], summed=True)]


def deltas(paths: Iterable[tuple[str, Path]], gaps: list[str]) -> Table:
    """A row for each delta of a folder."""
    from paring.delta.inspect import summarise

    rows: list[tuple[str | float | None, ...]] = []
    for name, path in paths:
        if path.name.endswith(_MASK):  # of a merge that is kept as a bank
            rows.append((name, path.stat().st_size, None, None, "", "a mask of the vector in shared/, and a scale"))
            continue
        try:
            s = summarise(path)
        except (OSError, ValueError) as error:
            gaps.append(unreadable(path, error))
            continue
        entries, kept = sum(r.entries for r in s.rows), sum(r.kept for r in s.rows)
        coding = "; ".join(sorted({c for r in s.rows for c in r.coding.split("; ")}))
        rows.append(
            (name, s.num_bytes, kept / entries if entries else None, s.bits_per_parameter, s.manifest.base.total, coding)
        )
    columns = (
        Column("delta"),
        Column("bytes", "count", bar=True),
        Column("keep", "general"),
        Column("bits/parameter", "general"),
        Column("base"),
        Column("coding"),
    )
    return Table("Delta files", columns, rows)


def unreadable(path: Path, error: Exception) -> str:
    """Of a file in the folder; of its path the last part."""
    if isinstance(error, FileNotFoundError) and not path.exists():
        return f"{path.name} is not in the folder"
    return f"{path.name} cannot be read: {str(error).replace(str(path), path.name)}"


def times_smaller(whole: float, part: float) -> str:
    """How many times as large ``whole`` is, for a line under a size."""
    return (
        f"{whole / part:,.1f} times smaller than {size(whole)}"
        if part > 0 and math.isfinite(whole / part)
        else f"of {size(whole)}"
    )


def counted(number: float, name: str) -> str:
    """1 task, 2 tasks."""
    return f"{text(number, 'count')} {name}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else "none"
