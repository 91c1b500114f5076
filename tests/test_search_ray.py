"""Workers of a local Ray cluster find what one process finds, also when one of them is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from paring.search import Objective, Progress, RayExecutor, Result, SearchError, SearchSettings, Vector, search

pytest.importorskip("ray", reason="Ray is not installed (pip install 'paring[ray]')")
pytestmark = pytest.mark.filterwarnings("ignore:::ray")

STARTS = {"ones": [1.0] * 4}
SETTINGS = SearchSettings(budget=60)


def outline(result: Result) -> list[tuple[Any, ...]]:
    return [(e.index, e.generation, e.start, e.coefficients, e.score) for e in result.history]


def make_bowl(folder: Path) -> Objective:
    """In torch, so that threads could matter; each call leaves an empty file in ``folder``, where it finds what to do."""
    weight = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))

    def objective(vector: Vector) -> float:
        (folder / f"call-{time.monotonic_ns()}-{os.getpid()}").touch()
        match (folder / "mode").read_text():
            case "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            case "dies once":
                (folder / "mode").write_text("slow")
                os.kill(os.getpid(), signal.SIGKILL)
            case "raises":
                raise KeyError("no such row")
            case "threads":
                return float(torch.get_num_threads())
            case "slow":
                time.sleep(0.05)
        return float((weight @ (torch.tensor(vector) - 0.6)).square().mean())

    return objective


def make_nothing() -> Objective:
    raise LookupError("no such model")


@dataclass(frozen=True)
class Pair:
    """Two workers, and how they are to behave."""

    executor: RayExecutor
    folder: Path

    def behave(self, mode: str) -> None:
        (self.folder / "mode").write_text(mode)

    def num_calls(self) -> int:
        return len(list(self.folder.glob("call-*")))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """One cluster for all tests: starting it and its workers takes seconds."""
    import ray

    folder = tmp_path_factory.mktemp("workers")
    with RayExecutor(partial(make_bowl, folder), 2, max_retries=1) as executor:
        assert not ray.is_initialized()
        yield Pair(executor, folder)
        assert ray.is_initialized()
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("alone")
    (folder / "mode").write_text("")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return search(make_bowl(folder), 4, STARTS, SETTINGS)
    finally:
        torch.set_num_threads(before)


def test_the_same_as_in_process(pair: Pair, alone: Result, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pair.behave("threads")
    assert [outcome.score for _, outcome in pair.executor.evaluate([(0.0,), (1.0,), (2.0,)])] == [1.0] * 3
    pair.behave("slow")
    found = search(pair.executor, 4, STARTS, SETTINGS, tmp_path)
    assert outline(found) == outline(alone)
    assert (found.coefficients, found.score) == (alone.coefficients, alone.score)
    pids = {e.worker["pid"] for e in found.history}
    assert len(pids) == 2 and os.getpid() not in pids
    assert capfd.readouterr() == ("", "")


def test_a_killed_worker_loses_nothing(pair: Pair, alone: Result, tmp_path: Path) -> None:
    """Amid an evaluation, by the system's own kill; then another while it has nothing to do."""
    pair.behave("slow")
    victims: list[int] = []

    def kill(progress: Progress) -> None:
        if progress.num_evaluations == 15:
            pair.behave("dies once")
        if progress.num_evaluations == 33:  # the end of a generation: the other one is idle, or soon will be
            victims.append(progress.latest.worker["pid"])
            os.kill(victims[0], signal.SIGKILL)

    before = pair.num_calls()
    found = search(pair.executor, 4, STARTS, SETTINGS, tmp_path, report=kill)
    assert outline(found) == outline(alone)
    pids = [e.worker["pid"] for e in found.history]
    assert victims[0] in pids[:33] and victims[0] not in pids[33:]
    assert len(set(pids)) == 4  # two that began, two that came for those that died
    assert pair.num_calls() - before == 61  # none that had finished was made again


def test_left_half_way_and_resumed(pair: Pair, alone: Result, tmp_path: Path) -> None:
    pair.behave("slow")

    def stop(progress: Progress) -> None:
        if progress.num_evaluations == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(pair.executor, 4, STARTS, SETTINGS, tmp_path, report=stop)
    assert len((tmp_path / "search.jsonl").read_text().splitlines()) == 21
    assert outline(search(pair.executor, 4, STARTS, SETTINGS, tmp_path)) == outline(alone)


def test_what_the_objective_raises_comes_through(pair: Pair) -> None:
    pair.behave("raises")
    before = pair.num_calls()
    with pytest.raises(KeyError, match="no such row"):
        list(pair.executor.evaluate([(1.0,)]))
    assert pair.num_calls() == before + 1  # it is not tried again


def test_retries_end(pair: Pair) -> None:
    pair.behave("dies")
    before = pair.num_calls()
    with pytest.raises(SearchError, match=r"2 workers died over the coefficients \(1.0,\); .* take fewer workers"):
        list(pair.executor.evaluate([(1.0,)]))
    assert pair.num_calls() == before + 2


def test_on_a_cluster_of_the_callers(pair: Pair) -> None:
    """It is not ended; what the factory raises comes through."""
    import ray

    pair.executor._end_workers()
    with RayExecutor(make_nothing, 1) as executor, pytest.raises(LookupError, match="no such model"):
        list(executor.evaluate([(1.0,)]))
    with RayExecutor(make_nothing, 3, threads=2) as executor:
        with pytest.raises(SearchError, match="3 workers take 6 CPUs, the cluster has 2; take fewer"):
            list(executor.evaluate([(1.0,)]))
    assert ray.is_initialized()


def test_values_out_of_range() -> None:
    for name in ("num_workers", "threads", "max_retries"):
        with pytest.raises(ValueError, match=f"`{name}` is -1, expected"):
            RayExecutor(make_nothing, **{"num_workers": 1, name: -1})  # type: ignore[arg-type]


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'paring\[ray\]'"):
        RayExecutor(make_nothing, 1)


def test_ray_is_not_loaded_before_it_is_needed() -> None:
    code = "import sys, paring.search; assert not {'ray', 'cma', 'matplotlib'} & set(sys.modules), 'loaded'"
    subprocess.run([sys.executable, "-c", code], check=True)
