"""A search in a folder: killed at any moment it goes on as if it had not been, and another search's folder is left alone."""

import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from paring.search import Outcome, Progress, Result, SearchError, SearchSettings, Vector, search

SETTINGS = SearchSettings(budget=60, seed=3)
STARTS = {"ones": [1.0, 1.0, 1.0], "thirds": [1 / 3, 1 / 3, 1 / 3]}
PROBLEM = {"keep": 0.01, "base": "abc", "rows": {"calibration": [1, 2]}}


def bowl(vector: Vector) -> float:
    """Without a score in a corner."""
    return math.nan if vector[0] > 1.5 else sum((value - 0.7) ** 2 for value in vector)


def run(folder: Path | None, objective: Any = bowl, **changes: Any) -> Result:
    return search(objective, 3, STARTS, **{"settings": SETTINGS, "folder": folder, "problem": PROBLEM, **changes})


def outline(result: Result) -> list[tuple[Any, ...]]:
    return [(e.index, e.generation, e.start, e.coefficients, e.score) for e in result.history]


def counted(calls: list[Vector], most: float = math.inf, error: type[BaseException] = KeyboardInterrupt) -> Any:
    def objective(vector: Vector) -> float:
        if len(calls) >= most:
            raise error
        calls.append(vector)
        return bowl(vector)

    return objective


@pytest.fixture(scope="module")
def whole() -> list[tuple[Any, ...]]:
    return outline(run(None))


def test_what_is_written(tmp_path: Path, whole: list[tuple[Any, ...]]) -> None:
    found = run(tmp_path / "deep" / "folder")
    assert outline(found) == whole
    head, *lines = [json.loads(line) for line in (tmp_path / "deep/folder/search.jsonl").read_text().splitlines()]
    assert head["problem"] == PROBLEM and head["dims"] == 3 and head["settings"]["budget"] == 60
    assert head["starts"] == [[name, vector] for name, vector in STARTS.items()] and set(head["made_with"]) == {"cma", "numpy"}
    assert [(e["index"], e["generation"], e["start"], tuple(e["coefficients"]), e["score"]) for e in lines] == whole
    assert any(e["score"] is None for e in lines)
    assert all(e["seconds"] >= 0 and e["worker"]["pid"] == os.getpid() for e in lines)
    best = json.loads((tmp_path / "deep/folder/best.json").read_text())
    assert best == lines[best["index"]] and best["score"] == found.score == min(e[4] for e in whole if e[4] is not None)
    assert sorted(p.name for p in (tmp_path / "deep/folder").iterdir()) == ["best.json", "search.jsonl"]


def test_a_finished_search_is_read_back(tmp_path: Path) -> None:
    first = run(tmp_path)
    before = (tmp_path / "search.jsonl").read_bytes()
    with (tmp_path / "search.jsonl").open("ab") as file:
        file.write(b'{"half')
    assert run(tmp_path, counted([], 0)) == first
    assert (tmp_path / "search.jsonl").read_bytes() == before


def test_each_evaluation_is_written_when_it_ends(tmp_path: Path) -> None:
    lines: list[int] = []

    def objective(vector: Vector) -> float:
        lines.append((tmp_path / "search.jsonl").read_bytes().count(b"\n"))
        return bowl(vector)

    run(tmp_path, objective)
    assert lines == list(range(1, 61))


@pytest.mark.parametrize("most", [0, 1, 2, 5, 9, 30, 59])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted(tmp_path: Path, whole: list[tuple[Any, ...]], most: int, error: type[BaseException]) -> None:
    calls: list[Vector] = []
    with pytest.raises(error):
        run(tmp_path, counted(calls, most, error))
    if most:
        seen = [entry for entry in whole[:most] if entry[4] is not None]
        best = json.loads((tmp_path / "best.json").read_text())
        assert best["score"] == min(entry[4] for entry in seen)
    reports: list[Progress] = []
    assert outline(run(tmp_path, counted(calls), report=reports.append)) == whole
    assert calls == [entry[3] for entry in whole]  # each once
    assert [r.num_evaluations for r in reports] == list(range(most + 1, 61))
    assert reports[-1].best is not None and reports[-1].budget == 60


def test_cut_at_every_byte(tmp_path: Path, whole: list[tuple[Any, ...]]) -> None:
    """A journal that ends anywhere, also amid a line and with the zeros that a lost power leaves, is resumed."""
    run(tmp_path / "whole")
    content = (tmp_path / "whole/search.jsonl").read_bytes()
    begin = content.index(b"\n") + 1
    ends = [begin, begin + 1, len(content) - 1, *random.Random(0).sample(range(begin, len(content)), 25)]
    for end in ends:
        folder = tmp_path / str(end)
        folder.mkdir()
        (folder / "search.jsonl").write_bytes(content[:end] + b"\0" * (end % 3))
        calls: list[Vector] = []
        assert outline(run(folder, counted(calls))) == whole
        assert len(calls) == 60 - content[begin:end].count(b"\n")
        lines = (folder / "search.jsonl").read_bytes().splitlines()
        assert len(lines) == 61 and all(json.loads(line) for line in lines)
        assert (folder / "best.json").read_text().split(', "seconds"')[0] == (
            (tmp_path / "whole/best.json").read_text().split(', "seconds"')[0]
        )


class Backwards:
    """Finishes in another order than asked, and can be cut off."""

    def __init__(self, most: float = math.inf) -> None:
        self.num = 0.0
        self.most = most

    def evaluate(self, batch: Any) -> Any:
        for i in reversed(range(len(batch))):
            if self.num >= self.most:
                raise KeyboardInterrupt
            self.num += 1
            yield i, Outcome(bowl(batch[i]), 0.0)


def test_order_of_finishing_changes_nothing(tmp_path: Path, whole: list[tuple[Any, ...]]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Backwards(12))
    rest = Backwards()
    assert outline(run(tmp_path, rest)) == whole and rest.num == 48


SCRIPT = """
import sys, time
sys.modules["matplotlib"] = None  # pycma would load it
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_search_journal import bowl, run

def slow(vector):
    time.sleep(0.004)
    return bowl(vector)

run(Path({folder!r}), slow)
print("finished")
"""


def test_killed(tmp_path: Path, whole: list[tuple[Any, ...]]) -> None:
    """Again and again until it is through; what each process evaluated, the next ones do not."""
    times = random.Random(1)
    code = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "killed"))
    kills = 0
    for _ in range(30):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        journal = tmp_path / "killed/search.jsonl"
        size = journal.stat().st_size if journal.exists() else 0
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > size):
            time.sleep(0.001)  # imports take longer than the search
        if kills < 6:
            time.sleep(times.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if "finished" in out:
            break
    assert kills >= 3 and process.returncode == 0
    assert outline(run(tmp_path / "killed", counted([], 0))) == whole
    lines = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert [line["index"] for line in lines] == list(range(60))
    assert len({line["worker"]["pid"] for line in lines}) >= 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": SearchSettings(budget=61, seed=3)}, "settings.budget is 60 there, 61 asked for$"),
        (
            {"settings": SearchSettings(budget=60, bounds=(0, 3), seed=4)},
            r"settings.bounds is \[0.0, 2.0\] .*; settings.seed is 3",
        ),
        (
            {"problem": {**PROBLEM, "rows": {"calibration": [1, 3]}}},
            r"problem.rows.calibration is \[1, 2\] there, \[1, 3\] asked",
        ),
        ({"problem": None}, 'problem.base is "abc" there, null asked for'),
    ],
)
def test_another_search_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, counted([], 7))
    with (tmp_path / "search.jsonl").open("ab") as file:
        file.write(b'{"half')
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SearchError, match="holds another search; .*" + message):
        run(tmp_path, counted([], 0), **changes)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_starts_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(SearchError, match="What differs: starts is"):
        search(bowl, 3, dict(reversed(STARTS.items())), SETTINGS, tmp_path, PROBLEM)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("search.jsonl", b"", "no whole first line"),
        ("search.jsonl", b"my notes", "no whole first line"),
        ("search.jsonl", b"my notes\n", "line 1, is not what a search writes"),
        ("search.jsonl", b"[]\n", "does not begin as a journal"),
        ("search.jsonl", b'{"format": "paring search 2"}\n', "does not begin as a journal of this version"),
        ("best.json", b"{}", "has a best.json and no search.jsonl"),
    ],
)
def test_other_files_are_left_alone(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SearchError, match=message):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [
        lambda line: b"nonsense",
        lambda line: b"[1]",
        lambda line: line.replace(b'"score"', b'"scope"'),
        lambda line: line.replace(b'"index": 5', b'"index": 4'),
        lambda line: line.replace(b'"coefficients": [', b'"coefficients": ["x", '),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, change: Any) -> None:
    run(tmp_path)
    lines = (tmp_path / "search.jsonl").read_bytes().splitlines()
    lines[6] = change(lines[6])
    (tmp_path / "search.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(SearchError, match="search.jsonl, line 7, is not what a search writes"):
        run(tmp_path)


@pytest.mark.parametrize(("offset", "refused"), [(1e-12, False), (1e-3, True)])
def test_coefficients_of_another_search(tmp_path: Path, offset: float, refused: bool) -> None:
    """What another machine's rounding changed is gone on from; anything else is refused."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, counted([], 20))
    lines = [json.loads(line) for line in (tmp_path / "search.jsonl").read_text().splitlines()]
    lines[6]["coefficients"][1] += offset
    (tmp_path / "search.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if refused:
        with pytest.raises(SearchError, match="evaluation 5 of the folder is of other coefficients"):
            run(tmp_path)
    else:
        assert run(tmp_path).history[5].coefficients == tuple(lines[6]["coefficients"])


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    def objective(vector: Vector) -> float:
        with pytest.raises(SearchError, match="another process is searching in"):
            run(tmp_path)
        return bowl(vector)

    pytest.importorskip("fcntl", reason="no file locks on this system")
    assert run(tmp_path, objective, settings=SearchSettings(budget=3)).num_evaluations == 3


def test_a_folder_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some of NFS are: the search runs; what else goes wrong is no such folder."""
    fcntl = pytest.importorskip("fcntl", reason="no file locks on this system")

    def fails(number: int) -> Any:
        def flock(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return flock

    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOLCK))
    assert outline(run(tmp_path / "a")) == outline(run(None))
    monkeypatch.setattr(fcntl, "flock", fails(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        run(tmp_path / "b")


def test_a_problem_that_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="`problem` must be plain JSON values"):
        run(tmp_path / "none", problem={"path": tmp_path})
    assert not (tmp_path / "none").exists()
