"""The task vector between two models: what a fine-tune changed, tensor by tensor, read when it is needed.

Exact by default: integer differences of the bit patterns, so that base + delta is bitwise the fine-tune. A bf16 difference of
bf16 weights would lose 3 % of those that changed, and an fp32 one takes twice the bytes before compression.
"""

import json
from collections.abc import Callable, Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paring.delta.align import align
from paring.delta.base import Base, FactsWhenAsked, base_of, dtype_name
from paring.delta.change import Change
from paring.delta.codec.bits import exact_difference, integer_of
from paring.delta.codec.zeros import nonzero
from paring.delta.encode import at_positions
from paring.delta.errors import DeltaError
from paring.delta.places import Everywhere, Places, Scattered
from paring.delta.sources import BaseLike, CheckpointSource, Source, as_source
from paring.delta.taskvector import Lazy, TaskVector

ALLOW = ("removed", "reshaped")
_PIECE_BYTES = 1 << 20


def diff(base: BaseLike, tuned: BaseLike, *, allow: Collection[str] = (), exact: bool = True) -> TaskVector:
    """What turns ``base`` into ``tuned``.

    Args:
        base, tuned: models, state dicts, checkpoints on disk (a folder, a file) or names in the hub's local cache. One of them
            may have its names under a prefix (``bert.``).
        allow: "removed": tensors of the base may be missing in ``tuned``. "reshaped": a tensor may have another shape or type
            there; it is stored whole, as it is. Integer tensors that are missing (position numbers, which newer
            versions do not save) need no leave; ``removed`` lists them.
        exact: bitwise differences; False: differences in fp32 (fp64 for fp64 tensors), which ``save_delta`` can quantise.

    Raises:
        DeltaError: a tensor was removed or reshaped without leave, holds NaN or infinity, or no tensor is in both.
        FileNotFoundError: there is no such checkpoint.
    """
    unknown = set(allow) - set(ALLOW)
    if unknown:
        raise ValueError(f"allow: {min(unknown)!r}; expected {' or '.join(map(repr, ALLOW))}")
    before, after = as_source(base), as_source(tuned)
    pairs = align(after.names(), {*before.names(), *before.tied()})
    pairs = {name: before.tied().get(other, other) for name, other in pairs.items()}
    if not pairs:
        raise DeltaError(
            f"{before.called} and {after.called} share no tensor name (e.g. '{next(iter(before.names()), '')}' and "
            f"'{next(iter(after.names()), '')}'); they are not a base and its fine-tune"
        )
    reshaped = [name for name, other in pairs.items() if after.extent(name) != before.extent(other)]
    if reshaped and "reshaped" not in allow:
        raise DeltaError(
            _listed(
                f"{after.called} has other shapes or types than {before.called}",
                [f"'{n}' {_extent(before, pairs[n])} -> {_extent(after, n)}" for n in reshaped],
                "--allow reshaped stores these whole",
            )
        )
    removed = sorted(set(before.names()) - set(pairs.values()))
    lost = [n for n in removed if before.extent(n)[0].is_floating_point]
    if lost and "removed" not in allow:
        raise DeltaError(
            _listed(
                f"{after.called} lacks tensors of {before.called}",
                [f"'{n}'" for n in lost],
                "--allow removed leaves them out of what `paring apply` writes",
            )
        )
    renamed = _Renamed(before, {n: o for n, o in pairs.items() if n not in reshaped}, after.tied())
    changes: dict[str, Lazy] = {}
    for name in after.names():
        dtype, shape = after.extent(name)
        if name in renamed.pairs:
            changes[name] = _difference(name, renamed, after, exact)
        else:
            changes[name] = Lazy(shape, dtype, "new", lambda name=name: _new(after, name))  # type: ignore[misc]
    facts: dict[str, Any] = {"method": "diff"}
    if config := _config(after):
        facts["config"] = config
    return TaskVector(changes, renamed.base(), tuple(removed), facts)


class _Renamed:
    """A base under the names that its tensors have in the fine-tune."""

    def __init__(self, source: Source, pairs: dict[str, str], tied: Any) -> None:
        self.called, self.origin = source.called, source.origin
        self._source, self.pairs = source, pairs
        self._tied = {a: n for a, n in tied.items() if n in pairs}

    def names(self) -> Collection[str]:
        return list(self.pairs)

    def tied(self) -> dict[str, str]:
        return self._tied

    def extent(self, name: str) -> tuple[torch.dtype, torch.Size]:
        return self._source.extent(self.pairs[name])

    def tensor(self, name: str) -> Tensor:
        return self._source.tensor(self.pairs[name])

    def hash(self, name: str) -> str:
        return self._source.hash(self.pairs[name])

    def base(self) -> Base:
        """A checkpoint is hashed when somebody asks: until then its tensors may have been read for their differences."""
        if isinstance(self._source, CheckpointSource):
            return Base(FactsWhenAsked(self), self._tied, self.origin)
        return base_of(self, origin=self.origin)

    def pieces(self, name: str) -> Iterator[Tensor]:
        if isinstance(self._source, CheckpointSource):
            return self._source.pieces(self.pairs[name], _PIECE_BYTES)
        return _pieces(self._source, self.pairs[name])

    def entries(self, name: str, places: Places) -> Callable[[], Tensor]:
        """Gives what is at ``places`` now; from a checkpoint it is read then."""
        if isinstance(self._source, CheckpointSource):
            return lambda: places.gather(self.tensor(name))
        found = places.gather(self.tensor(name)).cpu()
        return lambda: found


def _pieces(source: Source, name: str) -> Iterator[Tensor]:
    """A tensor's content in stored order, flat, in parts that fit the CPU's caches; each is valid until the next."""
    if isinstance(source, CheckpointSource):
        yield from source.checkpoint.pieces(name, _PIECE_BYTES)
    else:
        flat = source.tensor(name).detach().resolve_conj().resolve_neg().cpu().contiguous().view(-1)
        yield from flat.split(_PIECE_BYTES // flat.itemsize)


def _in_step(first: Iterator[Tensor], second: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Two tensors of one size, however each comes in pieces."""
    a = b = torch.empty(0)
    while True:
        while not a.numel():
            if (piece := next(first, None)) is None:
                return
            a = piece
        while not b.numel():
            b = next(second)
        size = min(a.numel(), b.numel())
        yield a[:size], b[:size]
        a, b = a[size:], b[size:]


def _difference(name: str, before: _Renamed, after: Source, exact: bool) -> Lazy:
    dtype, shape = after.extent(name)

    def load() -> Change:
        numel = shape.numel()
        d = np.empty(numel, f"<i{integer_of(dtype).itemsize}")  # in large pages, see checkpoint/shards.py
        start = changed = 0
        for a, b in _in_step(before.pieces(name), _pieces(after, name)):
            _refuse_infinite(before.called, name, a)
            piece = d[start : start + a.numel()]
            if _same_bytes(a, b):
                piece[:] = 0
            else:
                _refuse_infinite(after.called, name, b)
                exact_difference(a, b, piece)
                changed += int(np.count_nonzero(piece))
            start += a.numel()
        assert start == numel
        places: Places = Everywhere(numel)
        if at_positions(changed, numel):
            positions = nonzero(d)
            places, d = Scattered(torch.from_numpy(positions)), d.take(positions)
        made = Change(shape, dtype, "exact", places, torch.from_numpy(d), before.entries(name, places))
        return made if exact or not dtype.is_floating_point else made.real(f"'{name}'")

    return Lazy(shape, dtype, "exact" if exact or not dtype.is_floating_point else "real", load)


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    """Of flat tensors; where they differ all over, that is seen at once."""
    x, y = (t.view(torch.uint8).numpy() for t in (a, b))
    return np.array_equal(x[:256], y[:256]) and np.array_equal(x, y)


def _new(source: Source, name: str) -> Change:
    tensor = source.tensor(name).detach().cpu().contiguous()
    _refuse_infinite(source.called, name, tensor)
    return Change(tensor.shape, tensor.dtype, "new", Everywhere(tensor.numel()), tensor.view(-1))


def _refuse_infinite(called: str, name: str, tensor: Tensor) -> None:
    if not tensor.dtype.is_floating_point or tensor.dtype.itemsize == 1 or not tensor.numel():
        return
    # Of the bit patterns of either sign, those of infinity and NaN are the largest.
    width = tensor.itemsize
    patterns, infinity = tensor.view(integer_of(tensor.dtype)).numpy(), _infinity(tensor.dtype)
    if patterns.max() >= infinity or patterns.view(f"<u{width}").max() >= infinity | 1 << (8 * width - 1):
        raise DeltaError(
            f"{called}: '{name}' holds NaN or infinity; a delta of it would spread them. Repair the checkpoint first"
        )


@cache
def _infinity(dtype: torch.dtype) -> int:
    return int(torch.tensor(torch.inf, dtype=dtype).view(integer_of(dtype)))


def _config(source: Source) -> Any:
    """The fine-tune's ``config.json``, by which what is applied can be loaded as what it is."""
    if not isinstance(source, CheckpointSource):
        return None
    path = Path(source.checkpoint.folder) / "config.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DeltaError(f"{path} is no JSON: {error}") from None


def _extent(source: Source, name: str) -> str:
    dtype, shape = source.extent(name)
    return f"{list(shape)} {dtype_name(dtype)}"


def _listed(what: str, names: list[str], remedy: str) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{what}: {', '.join(names[:5])}{more}; {remedy}"
