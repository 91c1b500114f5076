"""The quality benchmark's own logic: how a rate is found, what is run, what a kill leaves behind. Runs are scripted here."""

import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from quality import plan
from quality.runs import Cell
from quality.store import Store
from quality.walk import best_rate, start

Runs = list[tuple[Cell, Path | None]]


def walk(scores: list[float], begin: int) -> tuple[int, set[int]]:
    """Where the walk ends, and what it asked for."""
    known: dict[int, float] = {}
    while True:
        found, wanted = best_rate(len(scores), begin, known.get)
        if found is not None:
            return found, set(known)
        assert not set(wanted) & set(known)
        known |= {i: scores[i] for i in wanted}


def test_the_walk_ends_where_both_neighbours_are_worse() -> None:
    assert walk([0.1, 0.2, 0.5, 0.4, 0.9], 1) == (2, {0, 1, 2, 3})  # a peak, not the highest of all
    assert walk([0.9, 0.2, 0.1], 1) == (0, {0, 1, 2})  # an end of the grid
    assert walk([0.1, 0.2, 0.3, 0.4], 1) == (3, {0, 1, 2, 3})
    assert walk([0.5, 0.5, 0.5], 1) == (0, {0, 1, 2})  # of equal scores the lower rate


def test_the_walk_begins_inside_the_grid() -> None:
    rates = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
    assert [start(rates, guess) for guess in (1.0, 2.0, 100.0, 0.001)] == [2, 3, 3, 1]


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    store = Store(tmp_path / "made" / "cells.jsonl")
    store.add({"key": "a", "test": 0.5})
    store.add({"key": "b", "test": 0.6})
    path = tmp_path / "made" / "cells.jsonl"
    path.write_text(path.read_text()[:-5])
    again = Store(path)
    assert again.cells == {"a": {"key": "a", "test": 0.5}}
    again.add({"key": "b", "test": 0.7})
    assert Store(path).cells["b"]["test"] == pytest.approx(0.7)


class Inline(Executor):
    """Runs at once, in this process."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # type: ignore[override]
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except RuntimeError as error:
            future.set_exception(error)
        return future


def result(cell: Cell, validation: float, num_trainable: int = 100) -> dict[str, Any]:
    curve = [(cell.num_steps // 2, validation / 2), (cell.num_steps, validation)]
    return {
        **asdict(cell),
        **{"key": cell.key, "curve": curve, "validation": validation, "test": validation - 0.01, "seconds": 1.0},
        **{"num_trainable": num_trainable, "kept_bytes": 4 * num_trainable, "diverged": False},
    }


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """What was run. Every method is best at a rate of 5e-3; the upper half is better than all and has too many entries."""
    done: Runs = []

    def run(cell: Cell, zoo: Path | None) -> dict[str, Any]:
        done.append((cell, zoo))
        head = 0.1 if cell.method == "head" else 0.0
        far = abs(plan.SUITES["docstrings"].rates.index(cell.rate) - 5)
        upper = 0.1 if "upper" in cell.method else 0.0
        return result(cell, 0.8 - 0.1 * far - head + upper, 101 if upper else 100)

    monkeypatch.setattr(plan, "run", run)
    monkeypatch.setattr(plan.Runner, "_pool", lambda self: Inline())
    return done


SCREENED = ("lora-r8", "head", "static-column-r16", "static-column-r16-upper")


def test_the_screen_runs_what_the_walks_ask_for_and_stores_it(tmp_path: Path, runs: Runs) -> None:
    runner = plan.runner("docstrings", tmp_path, 1, tmp_path / "zoo")
    with pytest.raises(KeyError, match="the rate of head is not known yet"):
        runner.rate("head")
    assert runner.screen(SCREENED) == dict.fromkeys(SCREENED, 5e-3)
    assert {(cell.task, cell.seed, zoo) for cell, zoo in runs} == {("module", 0, None)}
    rates = [cell.rate for cell, _ in runs if cell.method == "lora-r8"]  # from half of the grid's middle upwards
    assert sorted(rates) == [5e-4, 1e-3, 2e-3, 5e-3, 1e-2]
    assert len({cell.key for cell, _ in runs}) == len(runs)
    assert runner.best_score("head") == pytest.approx(0.7)


def test_a_finished_screen_runs_nothing_and_a_killed_one_goes_on(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, scripted = plan.runner("docstrings", tmp_path / "whole", 1, None), plan.run
    whole.screen(SCREENED)
    num_cells = len(runs)
    runs.clear()
    plan.runner("docstrings", tmp_path / "whole", 1, None).screen(SCREENED)
    assert runs == []

    def killed(cell: Cell, zoo: Path | None) -> dict[str, Any]:
        if len(runs) == 3 * len(SCREENED):  # the first rates of every walk have been run
            raise RuntimeError("killed")
        return scripted(cell, zoo)

    monkeypatch.setattr(plan, "run", killed)
    with pytest.raises(RuntimeError, match="killed"):
        plan.runner("docstrings", tmp_path, 1, None).screen(SCREENED)
    stored = len(Store(tmp_path / "tune_quality_docstrings.jsonl").cells)
    monkeypatch.setattr(plan, "run", scripted)
    runs.clear()
    plan.runner("docstrings", tmp_path, 1, None).screen(SCREENED)
    assert stored == 12 and len(runs) == num_cells - stored > 0


def test_confirming_takes_every_task_and_seed_at_the_rates_found(tmp_path: Path, runs: Runs) -> None:
    runner = plan.runner("docstrings", tmp_path, 1, tmp_path / "zoo")
    runner.screen(SCREENED)
    runs.clear()
    runner.confirm(("head",), ("module", "kind"), (0,))
    assert [(c.task, c.seed, c.rate) for c, _ in runs] == [("kind", 0, 5e-3)]  # the other one was screened
    runs.clear()
    runner.confirm(("head", "full"), ("kind",), (0,), rate=2e-2)  # whether the own rate is known or not
    assert [(c.method, c.task, c.rate) for c, _ in runs] == [("head", "kind", 2e-2), ("full", "kind", 2e-2)]
    runs.clear()
    runner.confirm(("head",))
    wanted = {(task, seed) for task in ("module", "kind", "returns") for seed in (0, 1, 2)}
    assert {(c.task, c.seed) for c, _ in runs} == wanted - {("module", 0), ("kind", 0)}
    assert {zoo for _, zoo in runs} == {tmp_path / "zoo"}


def test_the_best_slices_are_confirmed_if_they_train_no_more_than_lora(tmp_path: Path, runs: Runs) -> None:
    runner = plan.runner("docstrings", tmp_path, 1, None)
    screened = ("lora-r8", "static-column-r5", "static-column-r16-upper")  # two that are not confirmed anyway
    runner.screen(screened)
    assert runner.to_confirm(screened) == ("lora-r8", "static-column-r5")


def test_every_plan_names_methods_that_there_are() -> None:
    for suite, names in plan.SCREENED.items():
        assert set(plan.CONFIRMED[suite]) <= set(names) <= set(plan.METHODS)
    assert set(plan.MOVING_CONFIRMED) <= set(plan.MOVING) <= set(plan.METHODS) and set(plan.TEXT_ONLY) <= set(plan.METHODS)


@pytest.mark.parametrize("suite", ["digits", "docstrings"])
def test_the_results_that_are_kept_are_complete(tmp_path: Path, suite: str) -> None:
    name = f"tune_quality_{suite}.jsonl"
    (tmp_path / name).write_text((Path(plan.__file__).parents[1] / "results" / name).read_text())
    runner = plan.runner(suite, tmp_path, 1, None)
    screened = plan.SCREENED[suite]
    assert all(runner.best_score(name) > 0 for name in screened)
    for name in runner.to_confirm(screened):
        wanted = [runner.cell(task, name, runner.rate(name), s) for task in runner.suite.tasks for s in plan.SEEDS]
        assert not [cell for cell in wanted if cell.key not in runner.store.cells], name
