"""That one process alone writes an output."""

import os
from contextlib import ExitStack, suppress
from pathlib import Path

from paring import resumed


class BusyError(OSError):
    """Another process is writing the same output."""


def lock_folder(folder: Path, out: Path, held: ExitStack) -> bool:
    """Locks a folder itself, whatever it will be called, for as long as ``held`` is open.

    Returns:
        False: another process had it, and has just renamed or removed it.

    Raises:
        BusyError: another process that writes ``out`` has it.
    """
    if os.name != "posix":
        return True
    with ExitStack() as opened, suppress(FileNotFoundError):
        fd = os.open(folder, os.O_RDONLY)
        opened.callback(os.close, fd)
        lock(fd, out)
        if os.path.samestat(os.fstat(fd), folder.stat()):
            held.push(opened.pop_all())
            return True
    return False


def lock(fd: int, out: Path) -> None:
    """Locks what is open, for as long as it is open. BusyError: another process that writes ``out`` has it."""
    if not resumed.lock(fd):
        raise BusyError(f"another process is writing {out}; wait for it, or take another name")
