"""Coded tensors on their way into a delta file, whose header can only be written when all are there.

Few bytes wait in memory. More go to the file at once, behind room for the header and for what has to stand before them: the
stored tensors of wider entries than a byte, so that each is aligned to its entries. What the header leaves of its room are
spaces; should it need more, the bytes behind it are moved.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from io import FileIO
from pathlib import Path

from torch import Tensor

from paring.delta.checkpoint.header import MOST_BYTES, make_header
from paring.delta.checkpoint.tensorinfo import TensorInfo, raw_bytes
from paring.delta.checkpoint.write import FLUSH_BYTES, put
from paring.delta.encode import Encoded
from paring.delta.manifest import KEY, Entry, Manifest, dump, stored_name
from paring.delta.taskvector import TaskVector
from paring.syscalls import start_writing

_IN_MEMORY = 32 << 20
_WIDTHS = (16, 8, 4, 2)


class Spool:
    """See above; ``with`` it, ``add`` each tensor, ``finish``.

    Args:
        path: of the file, whose old content goes.
        reserve: bytes for the header and for tensors of wider entries, see ``header_room``.
    """

    def __init__(self, path: Path, reserve: int) -> None:
        self._path, self._reserve = path, reserve
        self._stack = ExitStack()
        self._out: FileIO | None = None
        self._held: list[memoryview] = []
        self._wide = {
            width: self._stack.enter_context(tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(path.parent)))  # noqa: SIM115 - it is one
            for width in _WIDTHS
        }
        self._infos: dict[int, list[tuple[str, TensorInfo]]] = {width: [] for width in (*_WIDTHS, 1)}
        self._entries: dict[str, Entry] = {}
        self._num_held = self._flushed = self.num_bytes = 0

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, name: str, encoded: Encoded) -> None:
        self._entries[name] = encoded.entry
        for part, tensor in encoded.stored.items():
            self._infos[tensor.itemsize].append((stored_name(name, part), TensorInfo(tensor.dtype, tensor.shape)))
            if tensor.itemsize > 1:
                self._wide[tensor.itemsize].write(raw_bytes(tensor))
            elif self._out is None:
                self._hold(tensor)
            else:
                self._put(self._out, raw_bytes(tensor))
        self.num_bytes += encoded.num_bytes

    def finish(self, head: Manifest) -> int:
        """Writes the rest of the file; returns its bytes."""
        infos = [info for width in self._infos for info in self._infos[width]]
        header = make_header(infos, {KEY: dump(replace(head, entries=self._entries))})
        wide_bytes = sum(info.nbytes for width in _WIDTHS for _, info in self._infos[width])
        if self._out is None:
            out = self._stack.enter_context(FileIO(self._path, "wb"))
            first = len(header) + wide_bytes
        else:
            out = self._out
            first = max(self._reserve, len(header) + wide_bytes)
            first += (wide_bytes - first) % 8  # where the tensors begin is aligned to 8
            _move_up(out, self._reserve, first - self._reserve)
            out.seek(0)
        put(out, memoryview(_longer(header, first - wide_bytes)))
        for file in self._wide.values():
            file.seek(0)
            while piece := file.read(FLUSH_BYTES):
                put(out, memoryview(piece))
        for view in self._held:
            self._put(out, view)
        size = os.fstat(out.fileno()).st_size
        self._stack.close()
        return size

    def _hold(self, tensor: Tensor) -> None:
        self._held.append(raw_bytes(tensor))
        self._num_held += len(self._held[-1])
        if self._num_held > _IN_MEMORY:
            self._out = self._stack.enter_context(FileIO(self._path, "wb+"))
            self._out.seek(self._reserve)
            for view in self._held:
                self._put(self._out, view)
            self._held = []

    def _put(self, out: FileIO, view: memoryview) -> None:
        """Writes, and keeps the disk busy meanwhile."""
        while view:
            put(out, view[:FLUSH_BYTES])
            view = view[FLUSH_BYTES:]
            position = out.tell()
            if position - self._flushed >= FLUSH_BYTES:
                start_writing(out.fileno(), self._flushed, position - self._flushed)
                self._flushed = position


def header_room(vector: TaskVector, facts: Mapping[str, object]) -> int:
    """Bytes that a file's header hardly exceeds, and those of the new tensors, of which the sizes are known."""
    names = [*vector.base.tensors, *vector.base.tied, *vector.removed]
    room = 1000 + _twice_escaped(facts) + sum(150 + 2 * _twice_escaped(name) for name in names)
    room += sum(900 + 4 * _twice_escaped(name) for name in vector.changes)
    new = [vector.changes[name] for name in vector.new]
    new_bytes = sum(lazy.shape.numel() * lazy.dtype.itemsize for lazy in new if lazy.dtype.itemsize > 1)
    return int(min(room - room % 8, MOST_BYTES // 2) + new_bytes)


def _twice_escaped(value: object) -> int:
    """Bytes of JSON within a text of JSON."""
    return len(json.dumps(json.dumps(value)))


def _longer(header: bytes, size: int) -> bytes:
    """The header with spaces to ``size`` bytes, its stated length with it."""
    return (size - 8).to_bytes(8, "little") + header[8:] + b" " * (size - len(header))


def _move_up(file: FileIO, start: int, by: int) -> None:
    """Moves all from ``start`` to the end by so many bytes, the last first."""
    position = os.fstat(file.fileno()).st_size
    while by and position > start:
        size = min(FLUSH_BYTES, position - start)
        position -= size
        file.seek(position)
        piece = bytearray(size)
        view = memoryview(piece)
        while view:
            view = view[file.readinto(view) or 0 :]
        file.seek(position + by)
        put(file, memoryview(piece))
