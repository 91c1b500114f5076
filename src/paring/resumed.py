"""What a run needs that goes on where it was killed: its folder to itself, what differs from what is asked, whole lines."""

import errno
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

_NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOTSUP)  # of a folder on NFS, say


def lock(file: BinaryIO | int) -> bool:
    """Keeps what is open (a file, a folder's descriptor) for this process alone until it is closed; False: another one has it.
    Where there are no locks, True."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def differences(there: Any, asked: Any, name: str) -> Iterator[str]:
    """What differs between two records of JSON, for a reader; ``name``: of both."""
    if isinstance(there, dict) and isinstance(asked, dict):
        for key in sorted(there.keys() | asked.keys()):
            yield from differences(there.get(key), asked.get(key), f"{name}.{key}")
    elif there != asked:
        yield f"{name} is {json.dumps(there)} there, {json.dumps(asked)} asked for"


def whole_lines(content: bytes) -> Iterator[bytes]:
    """Lines that end; a last one that was cut off is left out."""
    yield from (line for line in content.splitlines(keepends=True) if line.endswith(b"\n"))
