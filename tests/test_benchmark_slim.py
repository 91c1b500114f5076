"""The slim benchmark: one cell measured on a small model, its keys, its plan, its tables and picture from few numbers."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import paring
import slim_cost
from paring.slim.lesson import Lesson
from paring.slim.pruners import prune
from paring.slim.refit import Refit
from paring.slim.subspaces import kind_of
from paring.tasks.digits.vit import new_model
from quality import tasks
from quality.store import Store
from slimming import cells, figure, finetunes, plan, report
from slimming.cells import TITLES, Cell
from slimming.weights import CUTS, weighted

TASKS = ("checkered", "turned")


def moved_vit() -> tuple[nn.Module, dict[str, torch.Tensor], paring.TaskVector]:
    """A model, its tensors, and a task vector that is noise."""
    model = new_model(0).eval()
    generator = torch.Generator().manual_seed(0)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = {name: t + 0.02 * torch.randn(t.shape, generator=generator) for name, t in base.items()}
    return model, base, paring.diff(base, tuned).in_memory()


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
    assert changed == {"salient", "fitted", "fitted:int4", "fitted:sign", *plan.WEIGHTS}
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


def test_coarse_values_count_as_they_come_back() -> None:
    whole = result(Cell("digits", "turned", "full", 0, 1.0, "none"), 0.8)
    coarse = result(Cell("digits", "turned", "full", 0, 0.01, "fitted:sign"), 0.2)
    coarse["coded"]["sign"]["test"] = 0.6
    assert report.kept([whole, coarse], "full")["fitted:sign", 0.01] == [pytest.approx(0.75)]


def test_the_picture_has_each_curve(tmp_path: Path) -> None:
    figure.draw("digits", [], tmp_path)
    assert not list(tmp_path.iterdir())
    figure.draw("digits", scripted({"rescaled": 0.5, "fitted": 0.98}), tmp_path)
    drawn = (tmp_path / "slim_digits.svg").read_text()
    assert TITLES["rescaled"] in drawn
    assert TITLES["fitted"] in drawn
    assert TITLES["dare"] not in drawn


def test_what_a_cell_has_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "BUDGET", 4)
    model, _, vector = moved_vit()
    batch = tasks._collate(tasks._rows("digits", "turned", "calibration")[:32])
    tune = finetunes.FineTune("digits", "turned", model, vector, Lesson([batch]), lambda of: float(of(**batch).loss))
    wrong = sum(int(model(**{**batch}).logits[i].argmax()) != int(batch["labels"][i]) for i in range(32))
    assert tune.errors(model) == wrong / 32
    found = {}
    for method in ("nps:magnitude", "nps:magnitude/parts=4", "nps:magnitude*kind/by=errors", "nps:magnitude*kind/budget=320"):
        if "budget" in method:
            monkeypatch.setattr(cells, "prune_nps", lambda *given: pytest.fail(f"{given[-1].budget}"))
            with pytest.raises(pytest.fail.Exception, match="320"):
                cells._pruned(tune, Cell("digits", "turned", "full", 0, 0.01, method), {})
        else:
            found[method], _ = cells._pruned(tune, Cell("digits", "turned", "full", 0, 0.01, method), {})
    assert [len(v.facts["weights"]) for v in found.values()][:2] == [8, 4]
    score = found["nps:magnitude*kind/by=errors"].facts["search"]["score"]
    assert (32 * score) % 1 == 0
    whole, each = (
        cells._pruned(tune, Cell("digits", "turned", "full", 0, 0.01, m), {})[0] for m in ("rescaled", "rescaled/scope=tensor")
    )
    kept = [{n: len(v.change(n).values) for n in v.names} for v in (whole, each)]
    shares = [{n: k[n] / v.changes[n].shape.numel() for n in k} for k, v in zip(kept, (whole, each), strict=True)]
    large = [n for n in each.names if each.changes[n].shape.numel() >= 5000]
    assert large and all(0.01 <= shares[1][n] < 0.0105 for n in large)
    assert not all(0.01 <= shares[0][n] < 0.0105 for n in large)


@pytest.mark.parametrize("cut", CUTS)
def test_weights_of_subspaces_found_by_gradient(cut: str) -> None:
    model, base, vector = moved_vit()
    lesson = Lesson([tasks._collate(tasks._rows("digits", "turned", "calibration")[:16])])
    pruned = prune(vector, "magnitude", 0.01).in_memory()
    found = weighted(pruned, vector, model, lesson, cut, Refit(steps=8, mix=0.0))
    assert all(torch.equal(t, base[n]) for n, t in model.state_dict().items())

    factors = {}  # of each entry, by where its weight is shared
    for n in pruned.names:
        before, after = pruned.change(n), found.change(n)
        at = before.places.flat(before.shape)
        assert torch.equal(at, after.places.flat(after.shape))
        rows = at // before.shape[1:].numel() if len(before.shape) > 1 else torch.zeros_like(at)
        parts = before.values.abs().argsort().argsort() * 8 // max(1, len(at))
        shared = {"kind": [kind_of(n, before.shape)] * len(at), "tensor": [n] * len(at)}
        shared["row"] = [(n, int(r)) for r in rows]
        shared["magnitude*tensor"] = [(n, int(part)) for part in parts]
        for where, factor in zip(shared[cut], after.values / before.values, strict=True):
            factors.setdefault(where, []).append(float(factor))
    assert all(f == pytest.approx([f[0]] * len(f), rel=1e-4) and f[0] > 0 for f in factors.values())
    assert len({round(f[0], 6) for f in factors.values()}) > 1
    assert found.facts["num_weights"] == len(factors)

    def distance(v: paring.TaskVector) -> float:
        teacher = new_model(0).eval()
        with torch.no_grad(), vector.apply(teacher), v.apply(model):
            return float(lesson.distance(model, teacher, lesson.batches[0]))

    assert distance(found) < distance(pruned)


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
    model = torch.zeros(1000)
    with slim_cost.Largest() as largest:
        model.view(10, 100)[3].add_(1.0)  # what was there before does not count
        model[:8].clone()
    assert largest.num_bytes == 32
