"""A checkpoint as a read-only mapping of names to tensors, none of which is kept in memory."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from torch import Tensor

from paring.delta.checkpoint.find import Found, Kind, find
from paring.delta.checkpoint.shards import SafetensorsShard, Shard, TorchShard
from paring.delta.checkpoint.tensorinfo import TensorInfo
from paring.delta.errors import DeltaError

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]


def open_checkpoint(where: str | Path, *, kind: Kind | None = None) -> "Checkpoint":
    """The checkpoint ``where``: a file, a folder, an index or a name in the hub's local cache (see ``find``).

        with open_checkpoint("all-MiniLM-L6-v2") as checkpoint:
            for name in checkpoint.names:
                print(name, checkpoint.info(name).shape, checkpoint.tensor(name).norm())

    Every file is opened and its header checked; no tensor is read.

    Raises:
        FileNotFoundError: there is none. DeltaError: it is damaged, incomplete, or needs code to be run.
    """
    return Checkpoint(find(where, kind))


class Checkpoint(Mapping[str, Tensor]):
    """See ``open_checkpoint``; safe to read from several threads at once.

    Attributes:
        names: of its tensors, sorted.
        folder: where its files lie.
        files: its files, sorted by name.
        metadata: texts that its files carry; of a text in several, the first file's.
        tied: groups of names that stand for one stored tensor (``torch.save`` keeps that; safetensors have none).
    """

    def __init__(self, found: Found) -> None:
        self.folder, self.files = found.folder, list(found.files)
        with ExitStack() as stack:
            self._shards: list[Shard] = []
            for path in found.files:
                self._shards.append(SafetensorsShard(path) if found.kind == "safetensors" else TorchShard(path))
                stack.callback(self._shards[-1].close)
            self._home = _homes(found, self._shards)
            stack.pop_all()
        self.names = sorted(self._home)
        self.metadata: dict[str, str] = {}
        for shard in reversed(self._shards):
            self.metadata |= shard.metadata
        self.tied = [names for shard in self._shards for names in shard.tied]

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and size of a tensor. KeyError: it has no such tensor."""
        return self._of(name).infos[name]

    def tensor(self, name: str) -> Tensor:
        """A tensor, read now, in memory of its own on the CPU. KeyError: it has no such tensor."""
        return self._of(name).tensor(name)

    def pieces(self, name: str, piece_bytes: int) -> Iterator[Tensor]:
        """The content of a tensor in stored order, flat, in its dtype, in parts of at most ``piece_bytes``.

        A part is valid until the next one is asked for: they share a buffer. Not to be written to. KeyError: it has no
        such tensor.
        """
        return self._of(name).pieces(name, piece_bytes)

    def mapped(self, name: str) -> Tensor:
        """A tensor whose content stays in the file (where it is contiguous there) and is read when it is touched.

        Not to be written to. A file that is cut off while its tensor is in use ends the process (SIGBUS). KeyError: it has no
        such tensor.
        """
        return self._of(name).mapped(name)

    def file_of(self, name: str) -> Path:
        """The file that a tensor is in. KeyError: it has no such tensor."""
        return self._of(name).path

    def state(self) -> list[tuple[str, int, int, int]]:
        """Absolute path, size, and times of the last change (content; anything), in ns, of each file, as they are now."""
        stats = [(str(shard.path.absolute()), shard.stat()) for shard in self._shards]
        return [(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats]

    def close(self) -> None:
        for shard in self._shards:
            shard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> Tensor:
        return self.tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._home

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.files[0] if len(self.files) == 1 else self.folder)!r}, {len(self)} tensors)"

    def _of(self, name: str) -> Shard:
        try:
            return self._home[name]
        except KeyError:
            raise KeyError(f"{self!r} has no tensor {name!r}") from None


def _homes(found: Found, shards: list[Shard]) -> dict[str, Shard]:
    """For each tensor the file it is in; what the files hold must be what the index says, no less and no more."""
    homes: dict[str, Shard] = {}
    for shard in shards:
        for name in shard.infos:
            if name in homes:
                raise DeltaError(
                    f"{shard.path}: tensor {name!r} is also in {homes[name].path.name}, expected in one file; write it again"
                )
            homes[name] = shard
    if found.weight_map is None:
        return homes
    for name, file_name in found.weight_map.items():
        if name not in homes or homes[name].path.name != file_name:
            got = f"is in {homes[name].path.name}" if name in homes else "is in none of the files"
            raise DeltaError(f"{found.index}: tensor {name!r} {got}, expected in {file_name}; fetch or write it again whole")
    extra = sorted(homes.keys() - found.weight_map.keys())
    if extra:
        raise DeltaError(
            f"{homes[extra[0]].path}: tensor {extra[0]!r} and {len(extra) - 1} others are not in {found.index}; files and "
            "index are of different checkpoints: fetch or write them again"
        )
    return homes
