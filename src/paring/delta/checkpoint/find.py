"""Where a checkpoint's weights are: one file, the shards an index names, a folder, or a name in the hub's local cache.

An index comes with the files it names, so it is not trusted: a shard is a plain file name, and what it names lies in the
folder (or, in the hub's cache, behind the cache's own links).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from paring.delta.checkpoint import hub
from paring.delta.checkpoint.strict import MOST_BYTES, parsed
from paring.delta.errors import DeltaError

Kind = Literal["safetensors", "torch"]

_SUFFIXES: dict[str, Kind] = {".safetensors": "safetensors", ".pt": "torch", ".pth": "torch", ".bin": "torch"}
_INDEX = ".index.json"
IN_FOLDER = ("model.safetensors", "model.safetensors" + _INDEX, "pytorch_model.bin", "pytorch_model.bin" + _INDEX)


@dataclass(frozen=True)
class Found:
    """The files of one checkpoint; none has been opened.

    Attributes:
        kind: how to read them.
        folder: where they lie.
        files: sorted by name, each there.
        weight_map: tensor name -> file name, of an index; None without one.
        index: the index, where there is one.
    """

    kind: Kind
    folder: Path
    files: tuple[Path, ...]
    weight_map: Mapping[str, str] | None = None
    index: Path | None = None


def find(where: str | Path, kind: Kind | None = None) -> Found:
    """The files of the checkpoint ``where``.

    Args:
        where: a file (``.safetensors``, ``.pt``, ``.pth``, ``.bin``, or an index), a folder with one, or
            ``org/name[@revision]`` as fetched by the hub's tools. What is on disk comes before what is in their cache.
        kind: of a file with another suffix.

    Raises:
        FileNotFoundError: there is no such file, folder or cached name, or no checkpoint in it.
        DeltaError: several checkpoints, an index that is damaged or names files outside, or files that are missing.
    """
    path = Path(where).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return _file(path, kind)
    if path.exists() or path.is_symlink():
        raise FileNotFoundError(f"{path} is no file: a link to nothing, a device or a pipe")
    if path.suffix in {*_SUFFIXES, ".json"}:
        raise FileNotFoundError(f"there is no file {path}")
    return _in_folder(hub.snapshot(str(where)))


def inside(folder: Path, path: Path) -> bool:
    """Whether ``path``, with all links followed, is in ``folder``, or in the blobs of the hub's cache that it is part of."""
    home, real = folder.resolve(), path.resolve()
    return real.is_relative_to(home) or (hub.is_snapshot(home) and real.is_relative_to(hub.blobs(home).resolve()))


def _in_folder(folder: Path) -> Found:
    for name in IN_FOLDER:
        if (folder / name).is_file():
            return _file(folder / name, None)
    for pattern in ("*.safetensors" + _INDEX, "*.safetensors"):
        single = sorted(p for p in folder.glob(pattern) if p.is_file() and not p.name.startswith("."))
        if len(single) == 1:
            return _file(single[0], None)
        if single:
            names = ", ".join(p.name for p in single[:10])
            raise DeltaError(f"{folder} holds {len(single)} files that could be it, expected one: {names}; name the file")
    raise FileNotFoundError(f"{folder} holds no checkpoint; expected {', '.join(IN_FOLDER)} or one file *.safetensors")


def _file(path: Path, kind: Kind | None) -> Found:
    assert kind is None or kind in get_args(Kind)
    if path.name.endswith(_INDEX):
        return _indexed(path)
    known = kind or _SUFFIXES.get(path.suffix)
    if known is None:
        raise DeltaError(f"{path} has the suffix {path.suffix!r}, expected {', '.join(_SUFFIXES)} or an index *{_INDEX}")
    return Found(known, path.parent, (path,))


def _indexed(index: Path) -> Found:
    kind = _SUFFIXES.get(Path(index.name.removesuffix(_INDEX)).suffix)
    if kind is None:
        raise DeltaError(f"{index} is an index of an unknown kind, expected *.safetensors{_INDEX} or *.bin{_INDEX}")
    size = index.stat().st_size
    if size > MOST_BYTES:  # before it is read
        raise DeltaError(f"{index} is {size:,} bytes, expected at most {MOST_BYTES:,}; it is no index")
    weight_map = _weight_map(index, parsed(str(index), index.read_bytes()), kind)
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    missing = [p.name for p in files if not p.is_file()]
    if missing:
        raise DeltaError(
            f"{index} names {len(files)} files, of which {len(missing)} are missing: {', '.join(missing)}; fetch it whole"
        )
    for path in files:
        if not inside(index.parent, path):
            raise DeltaError(
                f"{index}: path escape: {path.name} is a link to {path.resolve()}, outside the folder; put the file there"
            )
    return Found(kind, index.parent, tuple(files), weight_map, index)


def _weight_map(index: Path, content: dict[str, Any], kind: Kind) -> dict[str, str]:
    """Tensor name -> file name, every one a plain file name of the right kind."""
    found = content.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise DeltaError(
            f"{index} has the weight_map {ascii(found)[:100]}, expected an object of tensor and file names; fetch it again"
        )
    for tensor, name in found.items():
        if not isinstance(name, str) or not _is_plain(name):
            raise DeltaError(
                f"{index}: path escape: tensor {tensor[:200]!r} is said to be in {str(name)[:200]!r}, expected the name of a "
                "file in the same folder; do not use this checkpoint"
            )
        if _SUFFIXES.get(Path(name).suffix) != kind:
            raise DeltaError(f"{index}: tensor {tensor[:200]!r} is said to be in {name[:200]!r}, which is no {kind} file")
    return found


def _is_plain(name: str) -> bool:
    """Not the way to another folder, on any system; and a name that a file can have."""
    if not name or name in (".", "..") or not name.isprintable() or len(name.encode()) > 255:
        return False
    return not set(name) & set("/\\:")
