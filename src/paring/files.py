"""Files and folders that are there whole or not at all.

What is being written has a hidden name beside the final one, ``.NAME.tmp-HOST-PID-…``. A process that is killed leaves it
behind, which harms nothing; the next one to write NAME removes it.
"""

import errno
import os
import shutil
import socket
import tempfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from paring import syscalls


@contextmanager
def replacing(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; renamed to ``path`` on leaving, removed when an exception leaves.

    A reader, or a run cut off half way, never meets half a file; of two writers at once, the later one stays. The folder
    is made when it is missing.

    Raises:
        FileExistsError: ``path`` is there and ``overwrite`` is False; on entering, or on leaving when it came meanwhile.
    """
    _refuse_present(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_prefix(path) + f"{os.getpid()}-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's are for the owner alone
        sync(temporary)
        if overwrite:
            temporary.replace(path)
        else:
            _rename_to_new(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _remove_leftovers(path)


@contextmanager
def replacing_folder(
    path: Path, overwrite: bool = False, *, empty: bool = False, ours: Collection[str] | None = None
) -> Iterator[Path]:
    """A new temporary folder beside ``path`` to fill; renamed to ``path`` on leaving, removed when an exception leaves.

    Files are synced to disk before that. With ``overwrite`` an old folder is swapped in one step (on Linux; elsewhere two
    renames, between which there is none), then removed with all it holds. Of a link, the folder it leads to is replaced.
    With ``empty`` a folder that holds nothing counts as none. ``ours``: see ``refuse_others``; None: the caller has looked.

    Raises:
        FileExistsError: ``path`` is there and ``overwrite`` is False, or it is no folder, or it holds other files than ours.
    """
    path = path.resolve()
    vacant = empty and not overwrite and path.is_dir() and not any(path.iterdir())
    if not vacant:
        _refuse_present(path, overwrite)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file, expected a folder or nothing; take another name, or remove it first")
    if ours is not None:
        refuse_others(path, ours)
    with hidden_folder(path) as temporary:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for inner in temporary.rglob("*"):
            sync(inner)
        sync(temporary)
        if vacant:
            with suppress(OSError):  # filled or removed meanwhile: the next line says so, or need not
                path.rmdir()
        put_in_place(temporary, path, overwrite)  # the old one, where there was one, is now called temporary


@contextmanager
def hidden_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside ``path``, removed on leaving with what is in it then, as are those that killed processes left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=_prefix(path) + f"{os.getpid()}-", dir=path.parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _remove_leftovers(path)


def refuse_others(folder: Path, ours: Collection[str]) -> None:
    """That replacing a folder removes what a command like this one wrote into it, and nothing of anyone else's.

    Args:
        ours: patterns of the names of such files; of a folder inside it, the name with a slash behind it.

    Raises:
        FileExistsError: naming what else is in there.
    """
    inner = [f"{p.name}/" if p.is_dir() else p.name for p in sorted(folder.iterdir())] if folder.is_dir() else []
    others = [name for name in inner if not any(fnmatch(name, pattern) for pattern in ours)]
    if others:
        named = ", ".join(others[:5]) + (f" and {len(others) - 5:,} more" if len(others) > 5 else "")
        raise FileExistsError(
            f"{folder} holds {named}, which overwriting it would remove, and expected there is only {', '.join(ours)}; take "
            "another name, or remove it first"
        )


def put_in_place(folder: Path, path: Path, overwrite: bool) -> None:
    """Gives a folder its name ``path``; with ``overwrite`` an old one there gets the name ``folder``, for the caller to remove.

    Raises:
        FileExistsError: ``path`` is there and ``overwrite`` is False.
    """
    if overwrite and path.exists():
        _exchange(folder, path)
    else:
        _rename_to_new(folder, path)
    sync(path.parent)


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


def _refuse_present(path: Path, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path} is there already; take another name, remove it first, or ask for it to be overwritten")


def _prefix(path: Path) -> str:
    """Of temporary names for ``path`` on this machine; another one may share the disk, and its processes are not known here."""
    return f".{path.name}.tmp-{zlib.crc32(socket.gethostname().encode()):08x}-"


def _remove_leftovers(path: Path) -> None:
    """What killed processes left when they wrote ``path``."""
    prefix = _prefix(path)
    with suppress(OSError):
        for left in [p for p in path.parent.iterdir() if p.name.startswith(prefix)]:
            pid = left.name.removeprefix(prefix).split("-")[0]
            if pid.isdecimal() and not _is_running(int(pid)):
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    if os.name != "posix":
        return True  # elsewhere signal 0 is no mere question
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def _rename_to_new(source: Path, target: Path) -> None:
    try:
        done = syscalls.rename(source, target, syscalls.NO_REPLACE)
    except FileExistsError:
        done = False
    if not done:
        _refuse_present(target, False)
        source.rename(target)


def _exchange(new: Path, old: Path) -> None:
    """Swaps the names of two folders."""
    if syscalls.rename(new, old, syscalls.EXCHANGE):
        return
    aside = new.with_name(f"{new.name}-old")
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise
    aside.rename(new)


def sync(path: Path) -> None:
    """To disk: a file's content, or a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # a folder, where a system cannot
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    """The process's mask; reading it means setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
