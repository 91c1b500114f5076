"""Named tensors of any origin, read the same way: a model, a state dict, a checkpoint on disk.

``name[i]`` is entry i of the first dimension of the tensor ``name`` (one expert's matrix of a fused tensor).
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor, nn

from paring.delta.checkpoint.fingerprint import State, fingerprint, hashed, module_hash, remembered
from paring.delta.checkpoint.read import Checkpoint, open_checkpoint
from paring.delta.names import split_part

BaseLike = nn.Module | Mapping[str, Tensor] | str | Path | Checkpoint


class Source(Protocol):
    """Tensors by name, read one at a time."""

    called: str  # what an error calls it
    origin: str  # where others may find it: a name on the hub, or a folder's own name without where it lies

    def names(self) -> Collection[str]:
        """Of whole tensors, each once: of a tied one, the first."""

    def tied(self) -> Mapping[str, str]:
        """Further names of tensors, to those that ``names`` gives."""

    def extent(self, name: str) -> tuple[torch.dtype, torch.Size]: ...

    def tensor(self, name: str) -> Tensor:
        """The tensor itself (model, state dict) or a copy (checkpoint)."""

    def hash(self, name: str) -> str: ...


class MemorySource:
    """The tensors of a model (those it saves) or of a state dict."""

    def __init__(self, held: nn.Module | Mapping[str, Tensor]) -> None:
        self.called = f"the {type(held).__name__}" if isinstance(held, nn.Module) else "the state dict"
        self.origin = public_name(getattr(held, "name_or_path", "")) if isinstance(held, nn.Module) else ""
        every: dict[str, Tensor] = dict(held.state_dict(keep_vars=True) if isinstance(held, nn.Module) else held)
        self._tensors = {n: t for n, t in every.items() if isinstance(t, Tensor)}
        first: dict[tuple[int, ...], str] = {}
        self._tied: dict[str, str] = {}
        for name, tensor in self._tensors.items():
            if tensor.numel() and tensor.device.type != "meta":
                key = (tensor.data_ptr(), *tensor.shape, -1, *tensor.stride())
                if first.setdefault(key, name) != name:
                    self._tied[name] = first[key]

    def names(self) -> Collection[str]:
        return [n for n in self._tensors if n not in self._tied]

    def tied(self) -> Mapping[str, str]:
        return self._tied

    def extent(self, name: str) -> tuple[torch.dtype, torch.Size]:
        tensor = self.tensor(name)
        return tensor.dtype, tensor.shape

    def tensor(self, name: str) -> Tensor:
        if name in self._tensors:
            return self._tensors[name].detach()
        whole, index = split_part(name)
        return self._tensors[whole].detach()[index]

    def hash(self, name: str) -> str:
        return module_hash(self.tensor(name))


class CheckpointSource:
    """The tensors of a checkpoint on disk; hashes of unchanged files are remembered."""

    def __init__(self, checkpoint: Checkpoint, name: str | Path = "") -> None:
        self.checkpoint = checkpoint
        self.origin = public_name(name)
        self.called = str(checkpoint.folder if len(checkpoint.files) > 1 else checkpoint.files[0])
        self._hashes: dict[str, str] = {}
        self._since: State | None = None  # of the files, when the first of the hashes was made
        self._have_all, self._looking = False, Lock()

    def names(self) -> Collection[str]:
        tied = self.tied()
        return [n for n in self.checkpoint.names if n not in tied]

    def tied(self) -> Mapping[str, str]:
        return {n: group[0] for group in self.checkpoint.tied for n in group[1:]}

    def extent(self, name: str) -> tuple[torch.dtype, torch.Size]:
        info = self.checkpoint.info(name)
        return info.dtype, info.shape

    def tensor(self, name: str) -> Tensor:
        whole, index = split_part(name) if name not in self.checkpoint.names else (name, -1)
        tensor = self.checkpoint.tensor(whole)
        return tensor if index < 0 else tensor[index]

    def hash(self, name: str) -> str:
        if not self._have_all:
            self._hashes = fingerprint(self.checkpoint, known=self._hashes, since=self._since)
            self._have_all = True
        return self._hashes[name]

    def pieces(self, name: str, piece_bytes: int) -> Iterator[Tensor]:
        """The content of a tensor (see ``Checkpoint.pieces``), whose hash is then known without reading it again."""
        with self._looking:
            if self._since is None:
                self._since = self.checkpoint.state()
                self._have_all = (found := remembered(self.checkpoint)) is not None
                self._hashes = found or self._hashes
        pieces = self.checkpoint.pieces(name, piece_bytes)
        return pieces if self._have_all else hashed(pieces, lambda digest: self._hashes.update({name: digest}))


def public_name(name: str | Path) -> str:
    """A name on the hub as it is; of a path the last component alone: where it lies is nobody else's business."""
    text = str(name)
    return text if isinstance(name, str) and text.count("/") == 1 and not Path(text).exists() else Path(text).name


def as_source(held: "BaseLike | Source") -> Source:
    """A source of what a user names: a model, a state dict, a folder or file, or a name on the hub that is in the cache."""
    if isinstance(held, Checkpoint):
        return CheckpointSource(held)
    if isinstance(held, str | Path):
        return CheckpointSource(open_checkpoint(held), held)
    if isinstance(held, nn.Module | Mapping):
        return MemorySource(held)
    return held
