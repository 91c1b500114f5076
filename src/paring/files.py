"""Files that are there whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; renamed to ``path`` on leaving, removed when an exception leaves.

    A reader, or a run cut off half way, never meets half a file; of two writers at once, the later one stays. The folder
    is made when it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's are for the owner alone
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def cache_folder() -> Path:
    """What may be made again lies here: ``$PARING_CACHE``, else ``$XDG_CACHE_HOME/paring``, else ``~/.cache/paring``.

    It need not exist. A relative ``XDG_CACHE_HOME`` is ignored, as its specification says.
    """
    if own := os.environ.get("PARING_CACHE"):
        return Path(own).expanduser().absolute()
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (configured if configured.is_absolute() else Path.home() / ".cache") / "paring"


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` to ``path`` (see ``replacing``)."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _umask() -> int:
    """The process's mask; reading it means setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
