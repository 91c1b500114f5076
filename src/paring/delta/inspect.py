"""What a delta file holds, as a table: layer by layer, how it is coded, how large and how strong its change is."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paring.delta.base import Base
from paring.delta.files import load_delta, open_files
from paring.delta.manifest import Entry, Manifest, stored_name

_BAR = 24


@dataclass(frozen=True)
class Row:
    """One changed tensor, or a group of them.

    Attributes:
        name: of the tensor, or what the names of the group have in common (``encoder.layer.0``).
        tensors: in the group.
        entries: of these tensors, and how many of them are ``kept`` in the delta.
        stored: bytes in the file.
        coding: kinds, places and value types found in it.
    """

    name: str
    tensors: int
    entries: int
    kept: int
    stored: int
    coding: str


@dataclass(frozen=True)
class Summary:
    """A delta file (or a folder of them): the rows, and what the manifest says besides."""

    path: Path
    rows: tuple[Row, ...]
    manifest: Manifest
    num_bytes: int

    @property
    def bits_per_parameter(self) -> float:
        """Bytes of the file, in bits, over the entries of the whole base and of new tensors."""
        total = sum(_size(f.shape) for f in self.manifest.base.tensors.values())
        total += sum(e.shape.numel() for e in self.manifest.entries.values() if e.kind == "new")
        return 8 * self.num_bytes / total if total else 0.0


def summarise(path: str | Path, *, by: str = "layer") -> Summary:
    """What ``path`` holds, from its manifest and sizes alone.

    Args:
        by: "layer" (tensors of one numbered block together) or "tensor".

    Raises:
        DeltaError: it is no delta, or a damaged one. FileNotFoundError: no such file.
    """
    if by not in ("layer", "tensor"):
        raise ValueError(f"by: {by!r}; expected 'layer' or 'tensor'")
    opened = open_files(path)
    groups: dict[str, list[tuple[Entry, int]]] = {}
    for checkpoint, manifest in opened:
        for name, entry in manifest.entries.items():
            size = sum(checkpoint.info(stored_name(name, part)).nbytes for part in entry.parts)
            groups.setdefault(layer_of(name) if by == "layer" else name, []).append((entry, size))
    rows = tuple(_row(name, group) for name, group in groups.items())
    first = opened[0][1]
    entries = {name: entry for _, m in opened for name, entry in m.entries.items()}
    whole = Manifest(first.base, entries, first.removed, first.facts, first.tool)
    return Summary(Path(path), rows, whole, sum(c.files[0].stat().st_size for c, _ in opened))


def verify(path: str | Path) -> int:
    """Reads and decodes every tensor of a delta, and checks its hash; returns how many.

    Raises:
        DeltaError: one is damaged; it is named.
    """
    changes = load_delta(path).changes.values()
    for lazy in changes:
        (lazy.factors or lazy.load)()  # a product may be far larger than the file: nobody asked for it
    return len(changes)


def lines(summary: Summary, *, width: int = 100) -> Iterator[str]:
    """The summary for a terminal: facts, a table with a bar for each row's bytes, and a line of totals."""
    m, base = summary.manifest, summary.manifest.base
    yield f"{summary.path}: {summary.num_bytes:,} bytes, format 1, written by {m.tool}"
    yield f"base     {base.total}  {_base_text(base)}"
    exact = all(e.kind != "real" for e in m.entries.values())
    yield f"exact    {'yes: base + delta is bitwise the fine-tune' if exact else 'no: differences are rounded numbers'}"
    if m.removed:
        yield f"removed  {', '.join(m.removed)}"
    for key, value in m.facts.items():
        # Anybody may have written them: what is no character to print would be an order to the terminal.
        text = "".join(c if c.isprintable() else "\ufffd" for c in (value if isinstance(value, str) else repr(value)))
        key = "".join(c if c.isprintable() else "\ufffd" for c in key)
        yield f"{key:<8} {text if len(text) <= width else text[: width - 1] + '…'}"
    yield ""
    longest = max((len(r.name) for r in summary.rows), default=4)
    most = max((r.stored for r in summary.rows), default=1)
    yield f"{'layer':<{longest}}  {'entries':>13} {'kept':>13} {'keep':>9} {'bytes':>13}  {'':<{_BAR}}  coding"
    for r in summary.rows:
        yield _line(r, longest, "█" * max(1, round(_BAR * r.stored / most)) if r.stored else "")
    rows = summary.rows
    total = Row("total", 0, sum(r.entries for r in rows), sum(r.kept for r in rows), sum(r.stored for r in rows), "")
    yield _line(total, longest, "")
    yield f"{summary.bits_per_parameter:.3f} bits for each parameter of the model"


def _line(row: Row, longest: int, bar: str) -> str:
    keep = f"{row.kept / row.entries:9.4f}" if row.entries else f"{'':>9}"
    text = f"{row.name:<{longest}}  {row.entries:>13,} {row.kept:>13,} {keep} {row.stored:>13,}  {bar:<{_BAR}}  {row.coding}"
    return text.rstrip()


def _base_text(base: Base) -> str:
    entries = sum(_size(f.shape) for f in base.tensors.values())
    kinds = ", ".join(sorted({f.dtype for f in base.tensors.values()}))
    return f"{len(base.tensors)} tensors, {entries:,} entries ({kinds})" + (f", from {base.origin}" if base.origin else "")


def _row(name: str, group: list[tuple[Entry, int]]) -> Row:
    entries = [e for e, _ in group]
    coding = sorted({f"{e.kind} {e.places} {e.values}" + (f" {e.rank}" if e.rank else "") for e in entries})
    total, kept = sum(e.shape.numel() for e in entries), sum(e.count for e in entries)
    return Row(name, len(entries), total, kept, sum(size for _, size in group), "; ".join(coding))


def layer_of(name: str) -> str:
    """A tensor's layer, its name up to the first number (``bert.encoder.layer.0``); without one, all but the last component."""
    found = re.match(r"(.*?\.\d+)(?=\.|$)", name)
    return found[1] if found else name.rpartition(".")[0] or name


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
