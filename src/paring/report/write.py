"""From a folder to a file."""

from pathlib import Path

from paring.files import write_bytes
from paring.report.page import GENERATOR, render
from paring.report.readers import reader_of

PAGE = "report.html"
_HEAD_BYTES = 4096


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page of a run.

    Args:
        folder: what a command of paring wrote.
        out: the file; None: ``report.html`` in the folder. An older page of ours there is replaced.

    Returns:
        The file.

    Raises:
        FileNotFoundError: there is no such folder. ReportError: it holds no run, or a damaged one. FileExistsError: ``out`` is
            there and is no such page. OSError: it cannot be written. Nothing is written then.
    """
    folder = Path(folder)
    out = folder / PAGE if out is None else Path(out)
    reader = reader_of(folder)
    _refuse_foreign(out)
    page = render(reader.read(folder.resolve()))
    write_bytes(out, page)
    return out


def _refuse_foreign(out: Path) -> None:
    if out.is_dir():
        raise FileExistsError(f"{out} is a folder; expected a file to write, such as {out / PAGE}")
    if out.exists():
        with out.open("rb") as file:
            if f'content="{GENERATOR} '.encode() not in file.read(_HEAD_BYTES):
                raise FileExistsError(f"{out} is there and is no page of paring's; take another name, or remove it first")
