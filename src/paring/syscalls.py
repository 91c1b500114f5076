"""Calls of Linux and of its C library that Python's lacks; each says, or does nothing, when it is not to be had."""

import ctypes
import errno
import os
from functools import cache
from pathlib import Path
from typing import Any

NO_REPLACE, EXCHANGE = 1, 2  # flags of renameat2
_HERE = -100  # AT_FDCWD: paths as they are
_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def rename(source: Path, target: Path, flag: int) -> bool:
    """Renames ``source`` only if there is no ``target`` (NO_REPLACE), or swaps the two (EXCHANGE), in one step.

    Returns:
        False where the system or the disk cannot; nothing has changed then.

    Raises:
        OSError: it could, but was not allowed to; FileExistsError: there is a ``target``.
    """
    call = _function("renameat2")
    if call is None or call(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flag) == 0:
        return call is not None
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))


def start_writing(fd: int, start: int, num_bytes: int) -> None:
    """Has the disk begin with bytes that were written to the open file, without waiting for it; a later sync is the shorter."""
    call = _function("sync_file_range")
    if call is not None:  # a hint: its failure is the sync's to report
        call(ctypes.c_int(fd), ctypes.c_int64(start), ctypes.c_int64(num_bytes), ctypes.c_uint(_START_WRITING))


def keep_freed_memory(num_bytes: int, below: int) -> None:
    """Of blocks smaller than ``below`` the process keeps up to ``num_bytes`` when they are freed, for the next ones. By itself
    the C library gives those of half a megabyte back, and the system zeroes the next ones page by page, which takes longer than
    to work on them. Of glibc, for the whole process."""
    call = _function("mallopt")
    if call is not None:  # a hint, too
        call(ctypes.c_int(_TRIM_THRESHOLD), ctypes.c_int(num_bytes))
        call(ctypes.c_int(_MMAP_THRESHOLD), ctypes.c_int(below))


@cache
def _function(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):
        return None
