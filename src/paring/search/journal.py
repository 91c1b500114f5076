"""What a search did, on disk: a killed one goes on where it was.

``search.jsonl`` has one JSON object a line: a header (settings, starts, the caller's ``problem``), then one line for each
evaluation, in the order in which they finished:

    {"index": 7, "generation": 1, "start": null, "coefficients": [...], "score": 0.25, "seconds": 1.5, "worker": {...}}

Numbers are written so that they read back bitwise. A score of null was not finite. Each line reaches the system when its
evaluation ends (a killed process loses none), and the disk when its generation ends. ``best.json`` is the evaluation with the
lowest score so far. The candidates themselves follow from settings and scores, so resuming is asking the driver again and
answering from here.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from paring.files import replacing, write_bytes
from paring.resumed import differences, lock, whole_lines
from paring.search.settings import SearchError, SearchSettings, Vector

NAME, BEST = "search.jsonl", "best.json"
_FORMAT = "paring search 1"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation. ``index`` counts from 0, generation 0 is the starts; ``score`` is None when it was not finite."""

    index: int
    generation: int
    start: str | None
    coefficients: Vector
    score: float | None
    seconds: float
    worker: dict[str, Any] = field(default_factory=dict)


def better(one: Evaluation, other: Evaluation | None) -> bool:
    """Whether ``one`` has the lower score; of equal ones the earlier is better, and none is better without a score."""
    if one.score is None:
        return False
    return other is None or other.score is None or (one.score, one.index) < (other.score, other.index)


def header(dims: int, starts: Mapping[str, Vector], settings: SearchSettings, problem: Mapping[str, Any]) -> dict[str, Any]:
    """The first line: what a resumed search must have in common with the one that began, and what it began with.

    Raises:
        TypeError: ``problem`` holds something that JSON does not.
    """
    try:
        plain = json.loads(json.dumps(problem))
    except (TypeError, ValueError) as error:
        raise TypeError(f"`problem` must be plain JSON values (str, number, list, dict …): {error}") from error
    return {
        "format": _FORMAT,
        "dims": dims,
        "settings": json.loads(json.dumps(settings.as_json())),
        "starts": [[name, list(vector)] for name, vector in starts.items()],
        "problem": plain,
        "made_with": {name: version(name) for name in ("cma", "numpy")},
    }


class Journal:
    """The evaluations of one search; ``folder`` None keeps them in memory alone. A context manager: close it.

    Raises:
        SearchError: the folder holds another search, names what differs, or something that is none; nothing is changed then.
            Or another process is searching there.
    """

    def __init__(self, folder: Path | None, head: dict[str, Any]) -> None:
        self.known: dict[int, Evaluation] = {}  # by index
        self.best: Evaluation | None = None
        self._folder = folder
        self._file: BinaryIO | None = None
        if folder is not None:
            self._file = self._open(folder, head)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            with self._file:
                self.sync()

    def add(self, evaluation: Evaluation) -> None:
        """Appends an evaluation, and writes ``best.json`` when it is the best so far."""
        self.known[evaluation.index] = evaluation
        if self._file is not None:
            self._file.write(_line(asdict(evaluation)))
            self._file.flush()
        if better(evaluation, self.best):
            self.best = evaluation
            self._write_best()

    def sync(self) -> None:
        """To disk: at the end of a generation."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def _open(self, folder: Path, head: dict[str, Any]) -> BinaryIO:
        path = folder / NAME
        if not path.exists():
            if (folder / BEST).exists():
                raise SearchError(f"{folder} has a {BEST} and no {NAME}, so it is no search's folder; take another one")
            with suppress(FileExistsError):  # another process was quicker; it holds the lock, or wrote what we can read
                with replacing(path, overwrite=False) as temporary:  # a header is there whole or not at all
                    temporary.write_bytes(_line(head))
        file = path.open("r+b")
        try:
            if not lock(file):
                raise SearchError(f"another process is searching in {folder}; wait for it, or take another folder")
            length = 0
            for number, line in enumerate(whole_lines(file.read()), start=1):
                entry = _parsed(line, path, number)
                if number == 1:
                    _refuse_other(entry, head, path)
                else:
                    self._take(entry, path, number)
                length += len(line)
            if not length:
                raise SearchError(f"{path} has no whole first line, so it is no search's journal; take another folder")
            file.truncate(length)  # a line half written when its process was killed
            file.seek(length)
        except BaseException:
            file.close()
            raise
        if self.known:
            self._write_best()
        return file

    def _take(self, entry: Any, path: Path, number: int) -> None:
        try:
            if set(entry) != {f.name for f in fields(Evaluation)} or entry["index"] in self.known:
                raise KeyError
            taken = Evaluation(**{**entry, "coefficients": tuple(float(value) for value in entry["coefficients"])})
            self.known[int(taken.index)] = taken
        except (TypeError, KeyError, ValueError) as error:
            raise _damaged(path, number) from error
        if better(taken, self.best):
            self.best = taken

    def _write_best(self) -> None:
        if self._folder is not None and self.best is not None:
            content = _line(asdict(self.best))
            path = self._folder / BEST
            if not path.exists() or path.read_bytes() != content:
                write_bytes(path, content)


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _parsed(line: bytes, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise _damaged(path, number) from error


def _damaged(path: Path, number: int) -> SearchError:
    return SearchError(f"{path}, line {number}, is not what a search writes; take another folder, or cut the file before it")


def _refuse_other(entry: Any, head: dict[str, Any], path: Path) -> None:
    if not isinstance(entry, dict) or entry.get("format") != _FORMAT:
        raise SearchError(f"{path} does not begin as a journal of this version ({_FORMAT!r}); take another folder")
    differing = [
        difference
        for part in ("dims", "settings", "starts", "problem")
        for difference in differences(entry.get(part), head[part], part)
    ]
    if differing:
        raise SearchError(
            f"{path.parent} holds another search; take another folder, or search as there. What differs: "
            + "; ".join(differing)
        )
