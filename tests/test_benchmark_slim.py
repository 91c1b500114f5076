"""The slim benchmark: one cell measured on a small model, its keys, its plan, its tables and picture from few numbers."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import slim_cost
from quality.store import Store
from slimming import cells, figure, plan, report
from slimming.cells import TITLES, Cell

TASKS = ("checkered", "turned")


def result(cell: Cell, test: float, bits: float = 0.2) -> dict[str, Any]:
    coded = {kind: {"bits_per_parameter": bits, "test": test} for kind in cells.CODED}
    return {**asdict(cell), "key": cell.key, "test": test, "validation": test, "seconds": 1.0, "coded": coded}


def scripted(shares: dict[str, float]) -> list[dict[str, Any]]:
    """All keeps of some methods on two fine-tunes of accuracy 0.8 and 0.9, one point apart."""
    out = []
    for task, whole in zip(TASKS, (0.8, 0.9), strict=True):
        out.append(result(Cell("digits", task, "full", 0, 1.0, "none"), whole))
        for method, share in shares.items():
            for keep in plan.KEEPS["digits"]:
                more = 0.01 if task == "turned" else 0.0
                out.append(result(Cell("digits", task, "full", 0, keep, method), whole * (share + more)))
    return out


def test_a_key_changes_with_what_its_method_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {m: Cell("digits", "turned", "full", 0, 0.01, m) for m in TITLES}
    before = {m: c.key for m, c in made.items()}
    assert len(set(before.values())) == len(made)
    monkeypatch.setattr(cells, "EXPONENT", 0.2)
    changed = {m for m, c in made.items() if c.key != before[m]}
    assert changed == {"salient", "fitted", "fitted:int4", "fitted:sign"}
    monkeypatch.undo()
    monkeypatch.setattr(cells, "BUDGET", 7)
    assert {m for m, c in made.items() if c.key != before[m]} == {m for m in made if m.startswith("nps:")}
    assert replace(made["dare"], seed=1).key != before["dare"]


@pytest.mark.parametrize("suite", ["digits", "docstrings"])
def test_the_plan_holds_every_goal_on_every_seed(suite: str) -> None:
    planned = {c.key: c for group in plan.groups(suite) for c in group}.values()
    for method in (*plan.DATA_FREE, "fitted"):
        for keep in plan.KEEPS[suite]:
            found = {(c.task, c.seed) for c in planned if (c.method, c.keep, c.tuned) == (method, keep, "full")}
            assert len(found) == 3 * len(plan.SUITES[suite].tasks), (method, keep)
    assert {c.method for c in planned} <= set(TITLES)
    for group in plan.groups(suite):  # one fine-tune is loaded for a group
        assert len({(c.task, c.tuned, c.seed) for c in group}) == 1


def test_shares_and_verdicts() -> None:
    found = scripted({"rescaled": 0.5, "fitted": 0.985})
    text = report.markdown("digits", found)
    assert "| magnitude, rescaled | 50.5 ± 0.7 (2) |" in text
    assert "| fitted (by saliency, refit) | 99.0 ± 0.7 (2) |" in text
    by_goal = {goal: met for goal, _, met in report.verdicts("digits", found)}
    assert by_goal["fitted at keep 0.01: at least 99 %"]
    assert by_goal["at most 0.25 bits for each parameter at keep 0.01 (int8)"]
    assert not any(goal.startswith("NPS") for goal in by_goal)  # not measured
    searched = report.verdicts("digits", scripted({"rescaled": 0.5, "nps:magnitude*kind": 0.91}))
    by_goal = {goal: met for goal, _, met in searched}
    assert by_goal["NPS at keep 0.003: at least 90 %"] and not by_goal["NPS at keep 0.01: at least 99 %"]
    assert by_goal["NPS not below magnitude, rescaled at keep 0.1 by more than their spread"]
    worse = {goal: met for goal, _, met in report.verdicts("digits", scripted({"rescaled": 0.97, "fitted": 0.9}))}
    assert not worse["fitted at keep 0.01: at least 99 %"]
    assert not worse["fitted not below magnitude, rescaled at keep 0.01 by more than their spread"]


def test_the_picture_has_each_curve(tmp_path: Path) -> None:
    figure.draw("digits", [], tmp_path)
    assert not list(tmp_path.iterdir())
    figure.draw("digits", scripted({"rescaled": 0.5, "fitted": 0.98}), tmp_path)
    drawn = (tmp_path / "slim_digits.svg").read_text()
    assert TITLES["rescaled"] in drawn
    assert TITLES["fitted"] in drawn
    assert TITLES["dare"] not in drawn


def test_what_is_stored_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "slim_digits.jsonl")
    for group in plan.groups("digits"):
        for cell in group:
            store.add(result(cell, 0.5))
    before = (tmp_path / "slim_digits.jsonl").read_bytes()
    monkeypatch.setattr(plan, "measure", lambda *_: ())  # cannot be sent to a worker
    plan.run("digits", store, 1, tmp_path, tmp_path, None)
    assert (tmp_path / "slim_digits.jsonl").read_bytes() == before


def test_the_largest_tensor_of_an_operation_is_noticed() -> None:
    import torch

    model = torch.zeros(1000)
    with slim_cost.Largest() as largest:
        model.view(10, 100)[3].add_(1.0)  # what was there before does not count
        model[:8].clone()
    assert largest.num_bytes == 32
