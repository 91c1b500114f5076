"""One open file of a checkpoint: its tensors by name, read when asked for.

Safetensors are read with ``pread`` into a buffer rather than mapped. Measured on a warm cache: hashing at 4.8 GB/s against
4.4 GB/s through a mapping (no page faults, and the buffer stays in the CPU's cache); reading alone runs at 20 GB/s, and at
3 GB/s into fresh memory each time, which is why buffers are kept. And a file that is cut off meanwhile is an error, where a
mapping ends the process. ``mapped`` is for those who read several tensors side by side more than once and must not hold them.
"""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from paring.delta.checkpoint import torchfile
from paring.delta.checkpoint.header import read_header
from paring.delta.checkpoint.tensorinfo import TensorInfo
from paring.delta.errors import DeltaError

_KEPT = 4  # buffers; more threads than that hardly read faster


class Shard(Protocol):
    path: Path
    infos: dict[str, TensorInfo]
    metadata: dict[str, str]
    tied: list[tuple[str, ...]]

    def tensor(self, name: str) -> Tensor: ...

    def pieces(self, name: str, piece_bytes: int) -> Iterator[Tensor]: ...

    def mapped(self, name: str) -> Tensor: ...

    def stat(self) -> os.stat_result: ...

    def close(self) -> None: ...


class SafetensorsShard:
    """Reads may come from several threads at once. The file stays the one that was opened when another takes its name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tied: list[tuple[str, ...]] = []  # the format has none
        self._buffers: list[Tensor] = []
        self._fd = -1  # close() is called whatever happens
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            header = read_header(path, self._fd)
        except BaseException:
            self.close()
            raise
        self.infos, self.metadata, self._starts = header.infos, header.metadata, header.starts

    def tensor(self, name: str) -> Tensor:
        info = self.infos[name]
        if not info.nbytes:
            return torch.empty(info.shape, dtype=info.dtype)
        # numpy asks for large pages: fresh memory is filled at 8 GB/s and more, against 1.7 in torch's.
        flat = torch.from_numpy(np.empty(info.nbytes, np.uint8))
        self._read(name, flat, 0)
        return flat.view(info.dtype).view(info.shape)

    def pieces(self, name: str, piece_bytes: int) -> Iterator[Tensor]:
        info = self.infos[name]
        size = min(max(1, piece_bytes // info.dtype.itemsize) * info.dtype.itemsize, info.nbytes)
        buffer = self._buffer(size)
        for start in range(0, info.nbytes, max(size, 1)):
            part = buffer[: min(size, info.nbytes - start)]
            self._read(name, part, start)
            yield part.view(info.dtype)
        # Not in a finally: whoever stops half way may still hold the last piece.
        if len(self._buffers) < _KEPT:
            self._buffers.append(buffer)

    def mapped(self, name: str) -> Tensor:
        info, start = self.infos[name], self._starts[name]
        if not info.nbytes:
            return torch.empty(info.shape, dtype=info.dtype)
        if self._fd < 0:
            raise self._closed()
        if (lacking := start + info.nbytes - self.stat().st_size) > 0:
            raise self._cut_off(name, lacking)
        skipped = start % mmap.ALLOCATIONGRANULARITY
        # Private and writable: torch warns of memory that is not, and no writing reaches the file.
        memory = mmap.mmap(self._fd, info.nbytes + skipped, access=mmap.ACCESS_COPY, offset=start - skipped)
        flat = torch.frombuffer(memory, dtype=torch.uint8, offset=skipped)
        return flat.view(info.dtype).view(info.shape)  # ends the mapping when it goes

    def stat(self) -> os.stat_result:
        return os.fstat(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._buffers = -1, []

    def __del__(self) -> None:
        if os is not None and os.close is not None:  # at the interpreter's end modules may have gone before their objects
            self.close()

    def _buffer(self, size: int) -> Tensor:
        try:
            kept = self._buffers.pop()
        except IndexError:  # asked by another thread, or the first
            kept = None
        return kept if kept is not None and kept.numel() >= size else torch.empty(size, dtype=torch.uint8)

    def _read(self, name: str, into: Tensor, start: int) -> None:
        """Fills ``into`` (bytes) from byte ``start`` of the tensor on."""
        if self._fd < 0:
            raise self._closed()
        view = into.numpy().data
        position = self._starts[name] + start
        while view:
            done = os.preadv(self._fd, [view], position)
            if done == 0:
                raise self._cut_off(name, len(view))
            view, position = view[done:], position + done

    def _closed(self) -> ValueError:
        return ValueError(f"{self.path} has been closed; read its tensors before leaving the checkpoint")

    def _cut_off(self, name: str, lacking: int) -> DeltaError:
        return DeltaError(f"{self.path}: tensor {name!r} lacks {lacking:,} bytes: the file was cut off while in use")


class TorchShard:
    """A file of ``torch.save``, mapped: a tensor's bytes are read when they are touched."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        self._fd = -1
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))  # for its times of change alone
        try:
            self._tensors = torchfile.load(path)
        except BaseException:
            self.close()
            raise
        self.infos = {name: TensorInfo(t.dtype, t.shape) for name, t in self._tensors.items()}
        self.tied = torchfile.tied(self._tensors)

    def tensor(self, name: str) -> Tensor:
        self._refuse_closed()
        return self._tensors[name].clone(memory_format=torch.contiguous_format)

    def pieces(self, name: str, piece_bytes: int) -> Iterator[Tensor]:
        self._refuse_closed()
        return torchfile.flat_pieces(self._tensors[name], piece_bytes)

    def mapped(self, name: str) -> Tensor:
        self._refuse_closed()
        return self._tensors[name].contiguous()

    def stat(self) -> os.stat_result:
        return os.fstat(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._tensors = -1, {}

    def __del__(self) -> None:
        if os is not None and os.close is not None:  # as above
            self.close()

    def _refuse_closed(self) -> None:
        if self.infos and not self._tensors:
            raise ValueError(f"{self.path} has been closed; read its tensors before leaving the checkpoint")
