"""Delta files: a task vector as one safetensors file, or as a folder of several with an index.

docs/format.md is the specification. Each changed tensor is up to three stored ones: ``NAME:values``, ``NAME:places`` and
``NAME:scales``; the manifest (``manifest.py``) says how they are coded. Reading runs no code, and no length in the file is
trusted; a tensor is read and decoded when it is needed, after its hash was checked.
"""

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from paring.delta.align import located
from paring.delta.change import Change, unchanged
from paring.delta.checkpoint.find import inside
from paring.delta.checkpoint.read import Checkpoint, open_checkpoint
from paring.delta.checkpoint.strict import parsed
from paring.delta.encode import Encoded, decode, decode_factors, encode, encode_factors
from paring.delta.errors import DeltaError
from paring.delta.factors import LowRank
from paring.delta.manifest import KEY, Entry, Manifest, changed_twice, is_plain, parse, stored_name
from paring.delta.sources import BaseLike, as_source
from paring.delta.spool import Spool, header_room
from paring.delta.taskvector import Lazy, TaskVector, low_rank
from paring.files import replacing, replacing_folder

INDEX = "delta.safetensors.index.json"
_SHARDS = "delta-*-of-*.safetensors"
_MOST_IN_WORK, _BESIDE = 16, 160 << 20  # tensors in work, and their bytes beside the largest
COMPRESSIONS = ("zstd", "none")
_INDEX_FORMAT, _MOST_INDEX_BYTES = 1, 1 << 20
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors")


def save_delta(
    vector: TaskVector,
    path: str | Path,
    facts: Mapping[str, Any] | None = None,
    *,
    values: str = "fp32",
    group: int = 0,
    compression: str = "zstd",
    shard_bytes: int | None = None,
    overwrite: bool = True,
    threads: int = 2,
) -> int:
    """Writes a task vector to ``path``, whole or not at all.

    Args:
        path: usually ``….delta.safetensors``; a folder, where ``shard_bytes`` is given.
        facts: plain values to travel with it beside ``vector.facts`` (how it was made).
        values: how differences in numbers are stored: "fp32", "bf16", "fp16", "int8", "int4" or "sign". Exact differences,
            new tensors and factors of low rank (an imported LoRA's) stay as they are.
        group: that many consecutive values share a scale (int8, int4, sign); 0: all of a tensor.
        compression: "zstd", or "none" for plain bytes, which need no Zstandard to be read: exact differences as large as the
            tensors they change. To write these takes as long as compressing them, or longer.
        shard_bytes: the most bytes of a file, where more than one tensor is in it; None: one file.
        overwrite: whether something at ``path`` may be replaced.
        threads: tensors that are coded at a time; the bytes do not depend on it.

    Returns:
        Bytes written.

    Raises:
        DeltaError: a value is NaN or infinite, or the facts are no plain values. FileExistsError: something is at ``path``
            and ``overwrite`` is False. Nothing is written then.
    """
    path = Path(path)
    if compression not in COMPRESSIONS:
        raise ValueError(f"compression: {compression!r}; expected {' or '.join(map(repr, COMPRESSIONS))}")
    head = Manifest(vector.base, {}, vector.removed, _plain({**vector.facts, **(facts or {})}))
    room = header_room(vector, head.facts)
    if shard_bytes is None:
        with replacing(path, overwrite) as temporary, Spool(temporary, room) as spool:
            for name, encoded in _encoded(vector, values, group, compression, threads):
                spool.add(name, encoded)
            return spool.finish(head)
    with replacing_folder(path, overwrite, ours=(_SHARDS, INDEX)) as folder, ExitStack() as stack:
        spools = [stack.enter_context(Spool(folder / "0", room))]
        for name, encoded in _encoded(vector, values, group, compression, threads):
            if spools[-1].num_bytes and spools[-1].num_bytes + encoded.num_bytes > shard_bytes:
                spools.append(stack.enter_context(Spool(folder / str(len(spools)), room)))
            spools[-1].add(name, encoded)
        shards = [f"delta-{i:05}-of-{len(spools):05}.safetensors" for i in range(1, len(spools) + 1)]
        written = sum(spool.finish(head) for spool in spools)
        for i, shard in enumerate(shards):
            (folder / str(i)).rename(folder / shard)
        index = {"format": _INDEX_FORMAT, "base": vector.base.total, "shards": shards}
        return written + (folder / INDEX).write_text(json.dumps(index))


def load_delta(path: str | Path, base: BaseLike | None = None) -> TaskVector:
    """The task vector in ``path``, a file or a folder with shards. Tensors are read when they are needed.

    Args:
        base: the model, state dict or checkpoint it was made on; checked here. It is needed to read exact differences as
            numbers, not to apply them.

    Raises:
        DeltaError: the file is no delta, or a damaged one; or ``base`` is another. FileNotFoundError: no such file.
    """
    opened = open_files(path)
    first = opened[0][1]
    changes = {n: _lazy(checkpoint, n, entry) for checkpoint, m in opened for n, entry in m.entries.items()}
    vector = TaskVector(changes, first.base, first.removed, first.facts)
    return vector if base is None else beside(vector, base)


def open_files(path: str | Path) -> list[tuple[Checkpoint, Manifest]]:
    """The files of a delta with their manifests, checked against each other.

    Raises:
        DeltaError, FileNotFoundError: as ``load_delta``.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no delta file {path}")
    shards, total = _shards(path)
    opened = [_open(shard) for shard in shards]
    first = opened[0][1]
    if total not in (None, first.base.total):
        raise DeltaError(f"{opened[0][0].files[0]} is of another delta than {path / INDEX}: their bases differ")
    seen: set[str] = set()
    for checkpoint, manifest in opened:
        for what in ("base", "removed", "facts"):
            if getattr(manifest, what) != getattr(first, what):
                files = checkpoint.files[0], opened[0][0].files[0]
                raise DeltaError(f"{files[0]} is of another delta than {files[1]}: they differ in '{what}'")
        twice = seen & manifest.entries.keys()
        if twice:
            raise DeltaError(f"{checkpoint.files[0]}: '{min(twice)}' is in another file of this delta, too")
        seen |= manifest.entries.keys()
    if name := changed_twice(seen):
        raise DeltaError(f"{path} is damaged: its files change '{name}' as a whole and in part")
    return opened


def beside(vector: TaskVector, base: BaseLike) -> TaskVector:
    """The same task vector with its base at hand, by which exact differences can be read as numbers.

    Raises:
        DeltaError: it is another base.
    """
    source = as_source(base)
    found = vector.base.check(source)

    def with_base(name: str, lazy: Lazy) -> Lazy:
        def load() -> Change:
            change = lazy.load()
            return replace(change, before=lambda: change.places.gather(source.tensor(located(name, found))).cpu())

        return replace(lazy, load=load)

    changes = {n: with_base(n, c) if c.kind == "exact" else c for n, c in vector.changes.items()}
    return TaskVector(changes, vector.base, vector.removed, vector.facts)


def shards_of(path: Path) -> list[Path]:
    """The files of a delta.

    Raises:
        DeltaError: a folder without an index, an index that is none or names what is not a file in its folder.
    """
    return _shards(path)[0]


def _shards(path: Path) -> tuple[list[Path], str | None]:
    """The files, and the hash of the base that an index states."""
    if not path.is_dir():
        if path.name.endswith(".json"):
            raise DeltaError(f"{path} is an index, expected a delta file or the folder that it is in")
        return [path], None
    index = path / INDEX
    if not index.is_file():
        raise DeltaError(f"{path} is no delta: a folder without {INDEX}")
    if (size := index.stat().st_size) > _MOST_INDEX_BYTES:
        raise DeltaError(f"{index} is {size:,} bytes, expected at most {_MOST_INDEX_BYTES:,}; it is no index of a delta")
    content = parsed(str(index), index.read_bytes())
    shards: Any = content.get("shards")
    number, total = content.get("format"), content.get("base")
    good = type(number) is int and number == _INDEX_FORMAT and isinstance(total, str)
    good = good and isinstance(shards, list) and all(isinstance(s, str) and _SHARD.fullmatch(s) for s in shards)
    if not good or not 0 < len(shards) == len(set(shards)):
        raise DeltaError(f"{index} is damaged: expected format {_INDEX_FORMAT} and a list of file names in its folder")
    missing: list[str] = [s for s in shards if not (path / s).is_file()]
    if missing:
        raise DeltaError(f"{path} lacks {', '.join(missing)}, which its index names; fetch the whole folder")
    for shard in shards:
        if not inside(path, path / shard):
            raise DeltaError(f"{path / shard} is a link to a file outside its folder; put the file there")
    return [path / s for s in shards], total


def _open(path: Path) -> tuple[Checkpoint, Manifest]:
    checkpoint = open_checkpoint(path, kind="safetensors")
    if "paring.mask" in checkpoint.metadata and KEY not in checkpoint.metadata:
        raise DeltaError(
            f"{path} is a task of a bank with a shared vector, no delta by itself: paring.Bank opens its folder, and `paring "
            "bank activate` writes base + task"
        )
    manifest = parse(checkpoint.metadata.get(KEY), str(path))
    wanted = {stored_name(n, part): (n, part) for n, e in manifest.entries.items() for part in e.parts}
    if wanted.keys() != set(checkpoint.names):
        differing = min(wanted.keys() ^ set(checkpoint.names))
        raise DeltaError(f"{path} is damaged: {differing!r:.1100} is only in its manifest, or only in the file")
    return checkpoint, manifest


def _lazy(checkpoint: Checkpoint, name: str, entry: Entry) -> Lazy:
    where = f"{checkpoint.files[0]}: '{name}'"

    def stored() -> dict[str, Tensor]:
        return {part: checkpoint.tensor(stored_name(name, part)) for part in entry.parts}

    def load() -> Change:
        return decode(entry, stored(), where)

    def factors() -> LowRank:
        return decode_factors(entry, stored(), where)

    if entry.rank:
        return low_rank(entry.shape, entry.dtype, factors, where)
    return Lazy(entry.shape, entry.dtype, entry.kind, load)


def _encoded(vector: TaskVector, values: str, group: int, compression: str, threads: int) -> Iterator[tuple[str, Encoded]]:
    """Every change that changes something, coded; a few at a time in threads, in order."""

    def one(name: str, lazy: Lazy) -> Encoded | None:
        if lazy.factors is not None:
            low = lazy.factors()
            return None if low.is_zero() else encode_factors(low, lazy.shape, lazy.dtype, f"'{name}'")
        change = lazy.load()
        return None if unchanged(change) else encode(change, values, group, f"'{name}'", compression)

    sizes = {name: lazy.shape.numel() * lazy.dtype.itemsize for name, lazy in vector.changes.items()}
    most, in_work = max(sizes.values(), default=0) + _BESIDE, 0
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[str, Future[Encoded | None]]] = deque()
        todo = deque(vector.changes)
        try:
            while todo or waiting:
                while todo and len(waiting) < _MOST_IN_WORK and in_work + sizes[todo[0]] <= most:
                    name = todo.popleft()
                    in_work += sizes[name]
                    waiting.append((name, pool.submit(one, name, vector.changes[name])))
                name, future = waiting.popleft()
                encoded = future.result()
                in_work -= sizes[name]
                del future  # else what was written stays in memory beside the next
                if encoded is not None:
                    yield name, encoded
        finally:
            for _, future in waiting:
                future.cancel()


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as they come out of JSON."""
    expected = "expected texts, finite numbers, booleans, lists and dictionaries of these, at most 64 deep"
    try:
        plain = json.loads(json.dumps(facts, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise DeltaError(f"facts: {error}; {expected}") from None
    if not is_plain(plain):
        raise DeltaError(f"facts: a text is no valid Unicode, or they are nested too deeply; {expected}")
    return dict(plain)
