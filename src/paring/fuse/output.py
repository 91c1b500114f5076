"""A checkpoint that is written tensor by tensor, in any order, by several threads, and goes on after a kill.

What is being written lies in a hidden folder beside the final one, ``.NAME.fuse``, with a journal: a line for the run (what is
merged, by a hash), then one for each finished tensor, with the hash of its bytes. A run that is killed leaves it; the same run
takes it up again and keeps each tensor whose bytes have the hash that stands in the journal. So it is with one that ran out of
memory or disk, once a tensor is finished. Another run, or any other error, removes it. The folder gets its name when
everything is in it and synced.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from paring.delta.checkpoint.fingerprint import tensor_hash
from paring.delta.checkpoint.tensorinfo import TensorInfo, raw_bytes
from paring.delta.checkpoint.write import LaidOut, refuse_foreign, refuse_no_room
from paring.files import put_in_place, sync
from paring.fuse.alone import lock, lock_folder
from paring.memory import out_of_memory
from paring.syscalls import start_writing

JOURNAL = "journal.jsonl"
_FORMAT = 1
_PIECE_BYTES = 1 << 20


class Output:
    """The files of a checkpoint under way; see ``writing``.

    Attributes:
        folder: where they are.
        kept: tensors that an earlier run finished, with their hashes; these are not written again.
        hashes: of every finished tensor.
    """

    def __init__(self, folder: Path, files: Sequence[LaidOut], journal: int) -> None:
        self.folder, self._journal, self._lock = folder, journal, Lock()
        self._homes: dict[str, tuple[int, int, TensorInfo]] = {}
        self._files: dict[int, str] = {}
        self.hashes: dict[str, str] = {}
        for file in files:
            fd = os.open(folder / file.name, os.O_RDWR | os.O_CREAT, 0o666)
            self._files[fd] = file.name
            self._put(fd, memoryview(file.header), 0)
            position = len(file.header)
            for name, info in file.order:
                self._homes[name] = fd, position, info
                position += info.nbytes
            os.ftruncate(fd, position)

    @property
    def kept(self) -> Mapping[str, str]:
        return dict(self.hashes)

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes one tensor, whole; safe to call from several threads."""
        fd, start, info = self._homes[name]
        assert tensor.dtype == info.dtype and tensor.shape == info.shape, name
        view = raw_bytes(tensor)
        self._put(fd, view, start)
        start_writing(fd, start, len(view))
        digest = tensor_hash([tensor])
        with self._lock:
            _note(self._journal, {"tensor": name, "hash": digest})
            self.hashes[name] = digest

    def take_up(self, lines: Sequence[Any]) -> None:
        """Keeps what an earlier run finished, as far as its bytes are those that it wrote down."""
        for line in lines:
            name, digest = line.get("tensor"), line.get("hash")
            if name in self._homes and self._hash(name) == digest:
                self.hashes[name] = digest

    def close(self) -> None:
        for fd in self._files:
            os.close(fd)
        self._files = {}

    def _put(self, fd: int, view: memoryview, start: int) -> None:
        try:
            while view:  # one call writes at most 2 GiB
                done = os.pwrite(fd, view, start)
                view, start = view[done:], start + done
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder / self._files[fd])) from None

    def _hash(self, name: str) -> str:
        fd, start, info = self._homes[name]

        def pieces() -> Iterator[Tensor]:
            for at in range(0, info.nbytes, _PIECE_BYTES):
                raw = os.pread(fd, min(_PIECE_BYTES, info.nbytes - at), start + at)
                yield torch.frombuffer(bytearray(raw), dtype=torch.uint8)

        return tensor_hash(pieces())


@contextmanager
def writing(out: Path, files: Sequence[LaidOut], key: str, *, other_bytes: int, overwrite: bool) -> Iterator[Output]:
    """The output under way; on leaving it is at ``out``, whole. When an exception leaves, nothing is left, unless it is an
    interruption (``KeyboardInterrupt``) or says that the machine gave out (``machine_failed``) when a tensor was finished:
    after these the same run goes on.

    Args:
        files: as ``lay_out`` gives them.
        key: of the run: only what was written under the same is kept.
        other_bytes: of further files that will be put into the folder.

    Raises:
        FileExistsError: ``out`` is there, and ``overwrite`` is False, or it is no checkpoint. BusyError: another process is
            writing it. OSError: the disk has no room.
    """
    out = out.resolve()
    refuse_present(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        folder = _alone(out, overwrite, held)
        journal = os.open(folder / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        held.callback(os.close, journal)
        lock(journal, out)  # where folders cannot be locked
        lines, whole = _read(journal)
        same = bool(lines) and lines[0] == {"format": _FORMAT, "run": key}
        os.ftruncate(journal, whole if same else 0)  # whatever followed half a line would be lost with it
        if not same:
            _empty(folder)
            _note(journal, {"format": _FORMAT, "run": key})
        try:
            if not same:
                refuse_no_room(out, sum(file.num_bytes for file in files) + other_bytes)
            output = Output(folder, files, journal)
            try:
                output.take_up(lines[1:] if same else [])
                yield output
            finally:
                output.close()
            for path in folder.rglob("*"):
                sync(path)
            (folder / JOURNAL).unlink()
            sync(folder)
            if overwrite and out.is_dir():
                lock_folder(out, out, held)  # it is about to have the hidden name, to be removed
            put_in_place(folder, out, overwrite)
            shutil.rmtree(folder, ignore_errors=True)  # the old one, where there was one
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if not (machine_failed(error) and (folder / JOURNAL).exists() and _any_finished(journal)):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def machine_failed(error: BaseException) -> bool:
    """Whether an error is of the machine (its disk, its memory), and not of what it was asked to do."""
    return isinstance(error, OSError) or out_of_memory(error)


def hidden(out: Path) -> Path:
    """Where an output is while it is written."""
    return out.with_name(f".{out.name}.fuse")


def refuse_present(out: Path, overwrite: bool) -> None:
    """FileExistsError: there is something at ``out``, and ``overwrite`` is False, or it is no checkpoint's folder."""
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise FileExistsError(f"{out} is a file, expected a folder or nothing; take another name, or remove it first")
    if not overwrite:
        raise FileExistsError(f"{out} is there already; take another name, remove it first, or ask for it to be overwritten")
    refuse_foreign(out)


def refuse_no_room_for(out: Path, num_bytes: int) -> None:
    """As ``writing`` will find it: what an earlier run left is taken up, or removed, and counts as free."""
    left = [path.stat().st_blocks * 512 for path in hidden(out).rglob("*") if path.is_file()]
    refuse_no_room(out, num_bytes - sum(left))


def _note(journal: int, line: Mapping[str, Any]) -> None:
    """Appends a line."""
    left = json.dumps(line).encode() + b"\n"
    while left:
        left = left[os.write(journal, left) :]


def _read(journal: int) -> tuple[list[Any], int]:
    """The lines of a journal up to the first that is not whole, and their bytes."""
    raw, found, whole = b"", [], 0
    while part := os.pread(journal, _PIECE_BYTES, len(raw)):
        raw += part
    for line in raw.split(b"\n")[:-1]:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
        if not isinstance(found[-1], dict):
            return [], 0
        whole += len(line) + 1
    return found, whole


def _any_finished(journal: int) -> bool:
    return len(_read(journal)[0]) > 1


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != JOURNAL:
            path.unlink()


def _alone(out: Path, overwrite: bool, held: ExitStack) -> Path:
    """The hidden folder, for this process alone while ``held`` is open. It is locked itself, since the journal goes before it
    gets its name."""
    folder = hidden(out)
    folder.mkdir(exist_ok=True)
    while not lock_folder(folder, out, held):
        folder.mkdir(exist_ok=True)
    try:
        refuse_present(out, overwrite)  # it may have come just now
    except FileExistsError:
        with suppress(OSError):  # what an earlier run left stays
            folder.rmdir()
        raise
    return folder
