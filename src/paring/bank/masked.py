"""Tasks that share one vector: each is a mask over its values and a scale (EMR-Merging, arXiv 2405.17461).

    theta_task = theta_pre + scale * mask * tau

A folder of them, which ``paring fuse`` writes:

    shared/                  tau, a delta of the base (docs/format.md), as a folder with an index
    NAME.mask.safetensors    a task: the manifest below, and its tensors
        T:mask   uint8, a bit for each value that tau stores of the tensor T, in their order: bit i % 8 (from the lowest) of
                 byte i // 8 is 1 where the task has value i; the bits left over are 0
        T:own    a tensor that is the task's alone (its head), whole, as it is: it takes the place of the base's, if it has one

The manifest is a JSON object under the metadata key "paring.mask": ``format`` 1; ``tool``; ``shared``, the hash of tau's own
manifests, one after the other with a zero byte between; ``scale``; ``masks``, name -> [compression, hash of the stored bytes];
``own``, name -> hash; ``facts``, anything. Tensors without a mask stay as they are in the base. As with deltas every hash is
checked, every size known before memory is taken, and no file names another.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

import paring
from paring.delta.change import Change
from paring.delta.checkpoint.fingerprint import tensor_hash
from paring.delta.checkpoint.read import Checkpoint, open_checkpoint
from paring.delta.checkpoint.strict import parsed
from paring.delta.checkpoint.tensorinfo import TensorInfo
from paring.delta.checkpoint.write import write_checkpoint
from paring.delta.codec.planes import rest_is_zero, row_bytes
from paring.delta.codec.positions import CODINGS, unpack_mask
from paring.delta.errors import DeltaError
from paring.delta.files import load_delta, open_files
from paring.delta.manifest import KEY as DELTA_KEY
from paring.delta.manifest import Entry, is_plain
from paring.delta.places import Everywhere, Places, Scattered
from paring.delta.taskvector import Lazy, TaskVector

KEY, FORMAT, SUFFIX, SHARED = "paring.mask", 1, ".mask.safetensors", "shared"
_FIELDS = {"format", "tool", "shared", "scale", "masks", "own", "facts"}


@dataclass(frozen=True, eq=False)
class Masked:
    """One task, opened; masks and values are read when they are needed.

    Attributes:
        shared: tau; shared_id: by what it is known.
        vector: what the task adds to the base: differences where it has a mask, its own tensors as new ones.
        masked: the tensors that have a mask.
        bits: gives a mask as it is packed, uint8.
    """

    path: Path
    scale: float
    shared: TaskVector
    shared_id: str
    vector: TaskVector
    masked: frozenset[str]
    bits: Callable[[str], Tensor]

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size


def open_masked(path: str | Path) -> Masked:
    """A task beside its shared vector.

    Raises:
        DeltaError: the file is none, or a damaged one; the vector beside it is missing, damaged, or another.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    checkpoint = open_checkpoint(path, kind="safetensors")
    if (text := checkpoint.metadata.get(KEY)) is None:
        raise DeltaError(f"{path} is no mask of a shared vector: its metadata has none of paring's")
    content = parsed(f"{path}: the manifest", text.encode("utf-8", "surrogatepass"))
    _check(content, str(path))
    folder = path.parent / SHARED
    if not folder.is_dir():
        raise DeltaError(f"{path} lacks {folder}, the vector that it is a mask of; fetch the whole folder of the bank")
    shared, entries = load_delta(folder), {n: e for _, m in open_files(folder) for n, e in m.entries.items()}
    found = shared_id(folder)
    if found != content["shared"]:
        raise DeltaError(f"{path} is a mask of another vector than {folder}; keep the files of one bank together")
    _check_tensors(content, checkpoint, entries, str(path))

    def bits(name: str) -> Tensor:
        return _read_bits(checkpoint, name, content["masks"][name], entries[name].count, f"{path}: '{name}'")

    scale = float(content["scale"])
    changes = {n: _masked(n, shared.changes[n], scale, bits) for n in content["masks"]}
    changes |= {name: _own(checkpoint, name, digest, path) for name, digest in content["own"].items()}
    vector = TaskVector(changes, shared.base, shared.removed, content["facts"])
    return Masked(path, scale, shared, found, vector, frozenset(content["masks"]), bits)


def load_task(path: str | Path) -> TaskVector:
    """What one task of a bank adds to the base, from either kind of file. Raises as ``open_masked`` and ``load_delta``."""
    return open_masked(path).vector if Path(path).name.endswith(SUFFIX) else load_delta(path)


def shared_id(folder: Path) -> str:
    """By what a shared vector is known: a hash of its manifests, which hold the hashes of all its parts."""
    texts = (checkpoint.metadata[DELTA_KEY].encode() for checkpoint, _ in open_files(folder))
    return str(blake3(b"\0".join(texts)).hexdigest(16))


@dataclass(frozen=True)
class PackedMask:
    """A mask on its way into a file: its stored bytes, how they are compressed, and what gives them."""

    info: TensorInfo
    compression: str
    hash: str
    content: Callable[[], Tensor]


def write_masked(
    path: Path, shared: str, scale: float, masks: Mapping[str, PackedMask], own: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> int:
    """Writes one task to the new file ``path``; returns its bytes.

    Args:
        shared: ``shared_id`` of its vector, which lies in the same folder.
    """
    content = {
        "format": FORMAT,
        "tool": f"paring {paring.__version__}",
        "shared": shared,
        "scale": scale,
        "masks": {name: [m.compression, m.hash] for name, m in masks.items()},
        "own": {name: tensor_hash([tensor]) for name, tensor in own.items()},
        "facts": dict(facts),
    }
    _check(content, str(path))
    tensors = [(f"{n}:mask", m.info) for n, m in masks.items()]
    tensors += [(f"{n}:own", TensorInfo(t.dtype, t.shape)) for n, t in own.items()]

    def pieces(name: str) -> Iterator[Tensor]:
        whose, _, part = name.rpartition(":")
        yield masks[whose].content() if part == "mask" else own[whose]

    metadata = {KEY: json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)}
    write_checkpoint(path, tensors, pieces, metadata=metadata)
    return path.stat().st_size


class Common:
    """What the tasks of one shared vector have in common in memory: tau's values, and what stands there in the base."""

    def __init__(self, shared: TaskVector) -> None:
        self._shared = shared
        self._held: dict[str, tuple[Change, Tensor]] = {}

    def held(self, name: str, tensor: Tensor) -> tuple[Change, Tensor]:
        """Of the tensor ``name``, which is the base's now."""
        if name not in self._held:
            change = self._shared.change(name)
            change = replace(change, values=change.values.to(tensor.device))
            self._held[name] = change, change.places.gather(tensor)
        return self._held[name]


@dataclass(frozen=True, eq=False)
class MaskedEntries:
    """What a task writes into one tensor (as ``bank.Entries``), made anew each time.

    Attributes:
        change, before: tau and the base's entries, of ``common``, which lives as long as anything of it is in use.
    """

    name: str
    common: Common
    change: Change
    before: Tensor
    bits: Tensor
    scale: float
    where: str

    @property
    def places(self) -> Places:
        return self.change.places

    @property
    def after(self) -> Tensor:
        """The tuned entries; where the mask is 0 bitwise the base's."""
        mask = unpacked(self.bits, self.change.places.count).to(self.before.device)
        scaled = replace(self.change, values=self.change.values * self.scale)
        return torch.where(mask, scaled.after(self.before, self.where), self.before)


def unpacked(bits: Tensor, count: int) -> Tensor:
    """A mask as bool."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count, bitorder="little")).bool()


def _masked(name: str, shared: Lazy, scale: float, bits: Callable[[str], Tensor]) -> Lazy:
    def load() -> Change:
        change = shared.load()
        inside = unpacked(bits(name), change.places.count).nonzero().view(-1)
        p = change.places
        places = Scattered(p.positions[inside] if isinstance(p, Scattered) else inside)
        return replace(change, places=places, values=change.values[inside] * scale)

    return Lazy(shared.shape, shared.dtype, "real", load)


def _own(checkpoint: Checkpoint, name: str, digest: str, path: Path) -> Lazy:
    info = checkpoint.info(f"{name}:own")

    def load() -> Change:
        tensor = checkpoint.tensor(f"{name}:own")
        _check_hash(tensor, digest, f"{path}: '{name}'")
        return Change(info.shape, info.dtype, "new", Everywhere(info.shape.numel()), tensor.view(-1))

    return Lazy(info.shape, info.dtype, "new", load)


def _read_bits(checkpoint: Checkpoint, name: str, said: list[str], count: int, where: str) -> Tensor:
    stored = checkpoint.tensor(f"{name}:mask")
    _check_hash(stored, said[1], where)
    raw = unpack_mask(stored.numpy().data, said[0], row_bytes(count), count, where)
    if not rest_is_zero(raw, count):
        raise DeltaError(f"{where} is damaged: its mask has entries beyond the last of its {count:,}")
    return torch.from_numpy(np.array(raw))


def _check_hash(tensor: Tensor, digest: str, where: str) -> None:
    if tensor_hash([tensor]) != digest:
        raise DeltaError(f"{where} is damaged (its hash differs); fetch or write the file again")


def _check(content: dict[str, Any], where: str) -> None:
    """That a manifest is one."""
    if type(content.get("format")) is not int or content["format"] != FORMAT:
        raise DeltaError(f"{where} has mask format {content.get('format')!r:.50}; this version reads {FORMAT}: update paring")
    wrong = sorted(content.keys() ^ _FIELDS)
    scale = content.get("scale")
    good = {
        "tool": isinstance(content.get("tool"), str),
        "shared": _is_hash(content.get("shared")),
        "scale": type(scale) in (int, float) and abs(scale) <= 2**53 and math.isfinite(scale),  # type: ignore[arg-type]
        "masks": isinstance(content.get("masks"), dict) and all(map(_is_mask, content["masks"].values())),
        "own": isinstance(content.get("own"), dict) and all(map(_is_hash, content["own"].values())),
        "facts": isinstance(content.get("facts"), dict) and is_plain(content["facts"]),
    }
    wrong += [field for field, holds in good.items() if not holds and field not in wrong]
    if wrong:
        raise DeltaError(f"{where} is damaged: in its manifest, {wrong[0]!r:.50} is not as the format has it")
    if both := content["masks"].keys() & content["own"].keys():
        raise DeltaError(f"{where} is damaged: '{min(both):.200}' has a mask and is the task's own")


def _check_tensors(content: dict[str, Any], checkpoint: Checkpoint, entries: Mapping[str, Entry], where: str) -> None:
    """That the file holds the manifest's tensors and no other, and the shared vector what they are masks of."""
    wanted = {f"{n}:mask" for n in content["masks"]} | {f"{n}:own" for n in content["own"]}
    if wanted != set(checkpoint.names):
        differing = min(wanted ^ set(checkpoint.names))
        raise DeltaError(f"{where} is damaged: {differing!r:.1100} is only in its manifest, or only in the file")
    for name in content["masks"]:
        entry = entries.get(name)
        if entry is None or entry.kind != "real" or entry.rank or entry.places not in ("dense", *CODINGS):
            raise DeltaError(f"{where} is damaged: the shared vector has no values for a mask of '{name:.200}'")
        info = checkpoint.info(f"{name}:mask")
        if info.dtype != torch.uint8 or len(info.shape) != 1:
            raise DeltaError(f"{where}: the mask of '{name:.200}' is {list(info.shape)} {info.dtype}; expected bytes in a row")


def _is_mask(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] in ("none", "zstd") and _is_hash(value[1])


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 32 and set(value) <= set("0123456789abcdef")
