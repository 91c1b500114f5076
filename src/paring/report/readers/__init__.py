"""Which folder is of which command: a list whose entries know their folders by a file in them, and read one into a document."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from paring.report.document import Document
from paring.report.readers import bank, demo, fuse, probe, slim, transfer, tune
from paring.report.record import ReportError


@dataclass(frozen=True)
class Reader:
    """Attributes:
    kind: what writes such a folder. marks: whether a folder is one. read: what it says.
    """

    kind: str
    marks: Callable[[Path], bool]
    read: Callable[[Path], Document]


READERS = (
    Reader("paring tune", tune.marks, tune.read),
    Reader("paring slim --report", slim.marks, slim.read),
    Reader("paring slim --bank", bank.marks, bank.read),
    Reader("paring transfer --report", transfer.marks, transfer.read),
    Reader("paring fuse", fuse.marks, fuse.read),
    Reader("paring probe", probe.marks, probe.read),
    Reader("paring demo", demo.marks, demo.read),
)
DELTAS = Reader("a folder of deltas", bank.holds_deltas, bank.read_deltas)  # asked last: runs hold deltas, too
_MOST_NAMED = 8


def reader_of(folder: Path) -> Reader:
    """The reader of a run's folder.

    Raises:
        FileNotFoundError: there is no such folder. ReportError: it is of no run, or of more than one; says what is there.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: there is no such folder{_unfinished(folder)}")
    if not folder.is_dir():
        raise ReportError(f"{folder} is a file; expected the folder of a run, such as {folder.absolute().parent}")
    found = [reader for reader in READERS if reader.marks(folder)]
    if len(found) > 1:
        raise ReportError(
            f"{folder} holds files of more than one run ({', '.join(r.kind for r in found)}); expected one in each folder"
        )
    if found:
        return found[0]
    if DELTAS.marks(folder):
        return DELTAS
    raise ReportError(
        f"{folder} holds no run of paring: {_there(folder)}; expected what one of {_kinds()} wrote{_unfinished(folder)}"
    )


def _there(folder: Path) -> str:
    """What is in a folder that is no run: the runs inside of it, or some of its files."""
    inside = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            try:
                inside += [f"{path} ({r.kind})" for r in READERS if r.marks(path)]
            except (ReportError, OSError):
                continue  # what is wrong with that one is not the question
    if inside:
        return f"there are runs inside of it, {', '.join(inside[:_MOST_NAMED])}{' …' if len(inside) > _MOST_NAMED else ''}"
    names = sorted(p.name for p in folder.iterdir())
    return f"it has {', '.join(names[:_MOST_NAMED])}{' …' if len(names) > _MOST_NAMED else ''}" if names else "it is empty"


def _unfinished(folder: Path) -> str:
    hidden = fuse.unfinished(folder)
    return f"; a paring fuse into it was stopped ({hidden}), the same command goes on with it" if hidden else ""


def _kinds() -> str:
    return ", ".join(reader.kind for reader in READERS)
