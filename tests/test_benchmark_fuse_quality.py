"""The benchmark of merge quality: lines measured on small untrained models, its keys, its plan, its table and verdicts."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import paring
from fusing import cells, fronts, plan, problem, report
from fusing.cells import Cell
from fusing.merges import MERGES
from paring.fusion.fitting import Fit
from paring.slim.lesson import Lesson
from paring.tasks.digits.vit import new_model
from quality.store import Store

TASKS = ("turned", "checkered")


def result(cell: Cell, shares: tuple[float, float]) -> dict[str, Any]:
    own = dict.fromkeys(TASKS, 0.8)
    test = {task: 0.8 * share for task, share in zip(TASKS, shares, strict=True)}
    return {**asdict(cell), "key": cell.key, "own": own, "test": test, "seconds": 1.0}


@pytest.fixture
def about(monkeypatch: pytest.MonkeyPatch) -> problem.Problem:
    """Two "fine-tunes" of an untrained ViT: random differences in two layers and in the head, which are each task's own."""
    monkeypatch.setattr(fronts, "BUDGET", {"digits": 4})
    monkeypatch.setattr(cells, "BUDGET", {"digits": 4})
    monkeypatch.setattr(cells, "Fit", lambda **given: Fit(steps=3, **given))
    models = {task: new_model(0).eval() for task in TASKS}
    problem.share_body(models)
    vectors, own = {}, {split: dict[str, float]() for split in ("validation", "test")}
    for i, (task, model) in enumerate(models.items()):
        generator = torch.Generator().manual_seed(i)
        fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        tuned = dict(fresh)
        chosen = [n for n in fresh if n.startswith("classifier.") or n.endswith(("0.mlp.fc1.weight", "1.mlp.fc1.weight"))]
        assert len(chosen) == 4, list(fresh)
        for name in chosen:
            tuned[name] = fresh[name] + 0.05 * torch.randn(fresh[name].shape, generator=generator)
        base = {name: tensor for name, tensor in fresh.items() if not name.startswith("classifier.")}
        vectors[task] = paring.diff(base, tuned).in_memory()
        with vectors[task].apply(model):
            for split in own:
                own[split][task] = problem.tasks.accuracy(model, "digits", task, split)  # type: ignore[arg-type]
    batches = {task: problem.calibration("digits", task)[:2] for task in TASKS}
    losses = {task: problem.CalibrationLoss(tuple(found)) for task, found in batches.items()}
    lessons = {task: Lesson(found) for task, found in batches.items()}
    return problem.Problem("digits", 0, models, vectors, own, losses, lessons)


def state(models: dict[str, nn.Module]) -> list[torch.Tensor]:
    return [tensor.clone() for model in models.values() for tensor in model.state_dict().values()]


@pytest.mark.parametrize("name", ["base", "average", "ties", "searched", "nps", "fit", "fit+heads", "nps+fit", "emr"])
def test_a_line_is_measured_and_the_models_are_as_before(name: str, about: problem.Problem, tmp_path: Path) -> None:
    before = state(about.models)  # type: ignore[arg-type]
    merge = replace(MERGES[name], grid=tuple((key, values[:2]) for key, values in MERGES[name].grid))
    found = cells._merged(about, merge, tmp_path, tmp_path)
    assert set(found["test"]) == set(TASKS)
    assert all(0 <= accuracy <= 1 for accuracy in found["test"].values())
    assert all(torch.equal(a, b) for a, b in zip(before, state(about.models), strict=True))  # type: ignore[arg-type]
    if name == "ties":
        assert found["tried"] == 4
        assert set(found["setting"]) == {"weight", "density", "lambda"}
    if "fit" in name:
        assert found["setting"]["distance"][1] < found["setting"]["distance"][0]
    assert ("alone" in found) == (merge.front != "whole")
    if merge.searched:
        assert len(found["setting"]["weights"]) == len(TASKS)
    made = sorted(path.name.split("-")[1] for path in tmp_path.iterdir())
    assert made == (sorted(TASKS) if merge.front == "nps" else [])


def test_emr_gives_a_single_task_its_own_model_back(about: problem.Problem) -> None:
    """With one task the shared vector, its mask and its scale are the task vector itself."""
    one = replace(about, models={"turned": about.models["turned"]}, vectors={"turned": about.vectors["turned"]})
    one = replace(one, own={split: {"turned": of["turned"]} for split, of in about.own.items()})
    assert cells._emr(one)["test"] == one.own["test"]


def test_a_key_changes_with_what_its_line_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {name: Cell("digits", 0, name) for name in ("joint", *MERGES)}
    before = {name: cell.key for name, cell in made.items()}
    assert len(set(before.values())) == len(made)
    monkeypatch.setattr(cells, "BUDGET", {"digits": 7})
    searched = {n for n, m in MERGES.items() if m.searched or m.front in ("nps", "fitted")}
    assert {n for n, c in made.items() if c.key != before[n]} == searched
    monkeypatch.undo()
    monkeypatch.setattr(cells, "Fit", lambda: Fit(steps=1))
    assert {n for n, c in made.items() if c.key != before[n]} == {n for n, m in MERGES.items() if m.fitted}
    monkeypatch.setattr(cells, "Fit", lambda: Fit(head_rate=0.3))
    assert {n for n, c in made.items() if c.key != before[n]} == {n for n, m in MERGES.items() if m.heads}


def test_the_plan_has_every_line_on_every_seed_of_the_vit_and_what_decides_on_every_seed_of_minilm() -> None:
    every, others = {"joint", *MERGES}, {"docstrings": {0}, "digits": {0, 1, 2}}
    assert set(plan.DECISIVE) < every and {*report.BELOW_NPS, "nps", "fit", "fit+heads"} < set(plan.DECISIVE)
    for suite, seeds in others.items():
        found = [(c.seed, c.merge) for group in plan.cells(suite) for c in group]
        assert len(found) == len(set(found))
        assert set(found) == {(s, m) for s in range(3) for m in every if m in plan.DECISIVE or s in seeds}
        for group in plan.cells(suite):
            assert len({c.seed for c in group}) == 1  # loaded once
        decisive = [c.merge in plan.DECISIVE for group in plan.cells(suite) for c in group]
        assert decisive == sorted(decisive, reverse=True)


def test_shares_and_verdicts() -> None:
    lines = {"nps": (0.4, 0.6), "ties": (0.3, 0.3), "pcb": (0.6, 0.6), "fit": (0.95, 0.97), "emr": (0.99, 0.99)}
    found = [result(Cell("digits", seed, m), shares) for m, shares in lines.items() for seed in (0, 1)]
    text = report.markdown("digits", found)
    assert text.index(MERGES["fit"].title) < text.index(MERGES["pcb"].title) < text.index(MERGES["ties"].title)
    assert f"| {MERGES['nps'].title} | 50.0 ± 0.0 (2) | 40.0 ± 0.0 (2) | 40.0 | 60.0 |  |" in text
    met = {goal: holds for goal, _, holds in report.verdicts(found)}
    assert met == {
        "NPS above TIES": True,
        "NPS above PCB": False,
        "best static merge at least 95 % of the fine-tunes": True,
    }
    best = report.verdicts(found)[-1][1]
    assert best.startswith(MERGES["fit"].title)  # EMR is no static merge
    assert "nothing measured" in report.markdown("digits", [])


def test_cells_of_two_sets_of_fine_tunes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected cells of one suite and seed"):
        next(iter(cells.measure([cells.Cell("digits", seed, "average") for seed in (0, 1)], tmp_path, tmp_path)))


def test_what_is_stored_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "fuse_quality_digits.jsonl")
    for group in plan.cells("digits"):
        for cell in group:
            store.add(result(cell, (0.5, 0.5)))
    before = (tmp_path / "fuse_quality_digits.jsonl").read_bytes()
    monkeypatch.setattr(plan, "measure", lambda *_: ())  # cannot be sent to a worker
    plan.run("digits", store, 1, tmp_path, tmp_path, None)
    assert (tmp_path / "fuse_quality_digits.jsonl").read_bytes() == before
