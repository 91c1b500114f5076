"""Files that are there whole or not at all."""

import os
import tempfile
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` under a temporary name beside ``path``, then renames; makes the folder when it is missing.

    A reader, or a run cut off half way, never meets half a file; of two writers at once, the later one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's are for the owner alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's mask; reading it means setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
