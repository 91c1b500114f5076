"""What a folder of deltas holds, and whether it is whole."""

import math
from collections.abc import Iterator
from pathlib import Path

from paring.bank.found import find_deltas
from paring.bank.masked import SHARED, SUFFIX, open_masked
from paring.delta import inspect
from paring.delta.codec.planes import count_ones
from paring.delta.inspect import Summary, summarise

_Row = tuple[str, int, float, float, str, str]  # name, bytes, keep, bits a parameter, base, coding


def listing(folder: str | Path) -> Iterator[str]:
    """A table for a terminal: a row a delta, and a line of totals.

    Raises:
        DeltaError: one is damaged. FileNotFoundError: there is no such folder.
    """
    found = find_deltas(folder)
    masks = [path for path in found.values() if path.name.endswith(SUFFIX)]
    rows = [_masked(name, path) if path in masks else _delta(name, summarise(path)) for name, path in found.items()]
    if masks:
        rows.append(_delta(f"({SHARED})", summarise(masks[0].parent / SHARED)))
    longest = max((len(row[0]) for row in rows), default=4)
    yield f"{'name':<{longest}}  {'bytes':>13}  {'keep':>8}  {'bits/param':>10}  base      coding"
    for name, num_bytes, keep, bits, base, coding in rows:
        yield f"{name:<{longest}}  {num_bytes:>13,}  {keep:>8.4f}  {bits:>10.3f}  {base[:8]}  {coding}"
    yield f"{len(found)} deltas, {sum(row[1] for row in rows):,} bytes, {len({row[4] for row in rows})} base tables"


def verify(path: str | Path) -> int:
    """Reads and decodes every tensor of a delta, or of a mask and what it is a mask of; returns how many.

    Raises:
        DeltaError: one is damaged; it is named.
    """
    if not str(path).endswith(SUFFIX):
        return inspect.verify(path)
    changes = open_masked(path).vector.changes.values()
    for lazy in changes:
        lazy.load()
    return len(changes)


def _delta(name: str, s: Summary) -> _Row:
    entries, kept = sum(r.entries for r in s.rows), sum(r.kept for r in s.rows)
    coding = sorted({c for r in s.rows for c in r.coding.split("; ")})
    return name, s.num_bytes, kept / max(entries, 1), s.bits_per_parameter, s.manifest.base.total, "; ".join(coding)


def _masked(name: str, path: Path) -> _Row:
    task = open_masked(path)
    base, changes = task.vector.base, task.vector.changes
    own = sum(changes[n].shape.numel() for n in task.vector.new)
    kept = own + sum(count_ones(task.bits(n).numpy()) for n in task.masked)
    total = sum(math.prod(facts.shape) for facts in base.tensors.values())
    total += sum(changes[n].shape.numel() for n in task.vector.new if n not in base.tensors)
    coding = f"mask of {SHARED}, scale {task.scale:.4f}" + ("; new dense plain" if own else "")
    entries = sum(lazy.shape.numel() for lazy in changes.values())
    return name, task.num_bytes, kept / max(entries, 1), 8 * task.num_bytes / max(total, 1), base.total, coding
