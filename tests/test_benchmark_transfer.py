"""The transfer benchmark: lines measured on a small fine-tune, keys, plan, tables and verdicts of few numbers, its workers."""

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import paring
from paring.slim.lesson import Lesson
from paring.tasks.digits import accuracy, fit, load_splits, named_shifts, one_thread, pretrained
from paring.transfer.scores import h_score
from quality.groups import measured
from quality.store import Store
from slimming.finetunes import FineTune
from transferring import cells, plan, report
from transferring import problem as problems
from transferring.cells import Cell
from transferring.lines import LINES


@cache
def tuned() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A base that reads upright digits, and the weights of a short fine-tune for turned ones."""
    base = pretrained(steps=160)
    model = copy.deepcopy(base)
    with one_thread():
        fit(model, model.parameters(), named_shifts(["turned"])[0](load_splits()["train"]), steps=60, rate=2e-3, seed=0)
    return base, {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """That fine-tune in the place of the zoo's, and short paths and searches."""

    def fine_tune(suite: str, task: str, *_: Any) -> FineTune:
        base, after = tuned()
        return FineTune(
            suite, task, base, paring.diff(base, after).in_memory(), Lesson([{"unused": torch.zeros(1)}]), lambda _: 0.0
        )

    monkeypatch.setattr(problems, "fine_tune", fine_tune)
    monkeypatch.setitem(cells.BUDGET, "digits", 4)
    for module in (cells, sys.modules["transferring.lines"]):
        monkeypatch.setitem(module.PATH, "digits", (0.0, 0.5, 1.0))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_lines_are_scored_on_both_tasks(small: None, tmp_path: Path) -> None:
    asked = [Cell("digits", "turned", 0, line) for line in ("base", "whole", "nps", "joint")]
    base, whole, nps, joint = cells.measure(asked, tmp_path, tmp_path)

    model, after = tuned()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    turned = named_shifts(["turned"])[0]
    test, validation = load_splits()["test"], load_splits()["validation"]

    def scores(lam: float, rows: Any) -> tuple[float, float]:
        moved = copy.deepcopy(model)
        moved.load_state_dict({name: before[name] + lam * (after[name] - before[name]) for name in before})
        one, other = turned(rows), rows
        return accuracy(moved, one.images, one.labels), accuracy(moved, other.images, other.labels)

    assert [place["lambda"] for place in whole["path"]] == [0.0, 0.5, 1.0]
    for place in whole["path"]:
        assert (place["tuned"], place["original"]) == pytest.approx(scores(place["lambda"], validation), abs=0.005)
        assert place["h"] == h_score(place["tuned"], place["original"])
    assert whole["lambda"] == max(whole["path"], key=lambda place: place["h"])["lambda"]
    assert (whole["test"]["tuned"], whole["test"]["original"]) == pytest.approx(scores(whole["lambda"], test), abs=0.005)
    assert base["lambda"] == 0.0 and len(base["path"]) == 1
    assert (base["test"]["tuned"], base["test"]["original"]) == pytest.approx(scores(0.0, test), abs=1e-9)
    size = sum(p.numel() for p in model.parameters())
    assert nps["num_kept"] == joint["num_kept"] == -(-size // 10) and whole["num_kept"] > 0.9 * size
    journals = [folder.name for path in tmp_path.iterdir() for folder in path.iterdir()]
    assert sorted(journals) == ["joint", "nps"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_search_that_was_stored_is_not_run_again(small: None, tmp_path: Path) -> None:
    asked = [Cell("digits", "turned", 0, "nps")]
    (first,) = cells.measure(asked, tmp_path, tmp_path)
    (journal,) = tmp_path.glob("*/nps/search.jsonl")
    before = journal.read_bytes()
    (again,) = cells.measure(asked, tmp_path, tmp_path)
    assert journal.read_bytes() == before
    assert {**first, "seconds": 0} == {**again, "seconds": 0}


@pytest.mark.parametrize("classes", [2, 5])
def test_a_regression_as_a_head(classes: int) -> None:
    draws = np.random.default_rng(0)
    features = draws.normal(size=(60, 7)).astype(np.float32)
    labels = np.arange(60) % classes
    found = LogisticRegression(max_iter=500).fit(features, labels)
    model = nn.Module()
    model.classifier = nn.Linear(7, classes)
    with torch.no_grad():
        problems._put(model, found)
        chances = model.classifier(torch.tensor(features)).softmax(-1)
    assert np.allclose(chances.numpy(), found.predict_proba(features), atol=1e-5)


def test_a_key_changes_with_what_its_line_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {line: Cell("digits", "turned", 0, line) for line in LINES}
    before = {line: cell.key for line, cell in made.items()}
    assert len(set(before.values())) == len(made)
    assert replace(made["dare"], seed=1).key != before["dare"]
    monkeypatch.setitem(cells.BUDGET, "digits", 7)
    assert {line for line, cell in made.items() if cell.key != before[line]} == {"nps", "joint"}
    monkeypatch.setitem(sys.modules["transferring.lines"].PATH, "digits", (0.0, 1.0))
    assert {line for line, cell in made.items() if cell.key == before[line]} == {"base", "tuned"}


@pytest.mark.parametrize("suite", ["digits", "docstrings"])
def test_the_plan_holds_every_goal_on_every_fine_tune(suite: str) -> None:
    planned = [cell for group in plan.groups(suite) for cell in group]
    assert len({cell.key for cell in planned}) == len(planned)
    seeds = dict.fromkeys(("base", "nps", *report.BELOW_NPS), 3) | dict.fromkeys(plan.FURTHER[suite], 1)
    for line, count in seeds.items():
        assert len({(c.task, c.seed) for c in planned if c.line == line}) == count * len(plan.SUITES[suite].tasks), line
    for group in plan.groups(suite):  # one fine-tune is loaded for a group
        assert len({(c.task, c.seed) for c in group}) == 1


def stored(line: str, h: float, task: str = "turned", at: float = 0.5) -> dict[str, Any]:
    cell = Cell("digits", task, 0, line)
    test = {"tuned": h + 0.1, "original": h - 0.1, "h": h}
    return {**asdict(cell), "key": cell.key, "lambda": at, "num_kept": 9, "test": test, "validation": test, "seconds": 1.0}


def test_the_table_and_the_verdicts() -> None:
    found = [stored("whole", 0.6), stored("whole", 0.8, "unwoven", 0.9), stored("nps", 0.7), stored("nps", 0.71, "unwoven")]
    found += [stored("dare", 0.5), stored("magnitude", 0.75, "unwoven")]
    text = report.markdown("digits", found)
    assert "| whole | 70.0 ± 14.1 | 80.0 ± 14.1 | 60.0 ± 14.1 | 0.5 to 0.9 | 2 |" in text
    assert "| DARE | 50.0 | 60.0 | 40.0 | 0.5 | 1 |" in text
    verdicts = {goal: (value, met) for goal, value, met in report.verdicts(found)}
    assert verdicts["H-score of NPS above that of whole"] == ("70.5 ± 0.7 against 70.0 ± 14.1, higher on 1 of 2", True)
    assert verdicts["H-score of NPS above that of DARE"] == ("70.0 against 50.0, higher on 1 of 1", True)
    assert verdicts["H-score of NPS above that of magnitude"] == ("71.0 against 75.0, higher on 0 of 1", False)
    assert "nothing measured yet" in report.markdown("digits", [])


def test_what_is_stored_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = plan.store(tmp_path, "digits")
    for group in plan.groups("digits"):
        for cell in group:
            store.add(stored(cell.line, 0.5) | asdict(cell) | {"key": cell.key})
    before = (tmp_path / "transfer_digits.jsonl").read_bytes()
    monkeypatch.setattr(plan, "measure", squares)  # would fail: of a cell there is no square
    plan.run("digits", store, 1, tmp_path, tmp_path, None)
    assert (tmp_path / "transfer_digits.jsonl").read_bytes() == before


def squares(group: Sequence[int]) -> Iterator[dict[str, Any]]:
    """In the place of a measurement: fails at 13."""
    for number in group:
        if number == 13:
            sys.exit("thirteen")  # as an error, but without its traceback
        yield {"key": str(number), "square": number**2}


def test_workers_store_what_they_finish(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    store = Store(tmp_path / "some.jsonl")
    measured([[1, 2], [3]], squares, store, 2, None, lambda line, _: told.append(line["key"]))
    assert {key: line["square"] for key, line in Store(tmp_path / "some.jsonl").cells.items()} == {"1": 1, "2": 4, "3": 9}
    assert sorted(told) == ["1", "2", "3"]
    store = Store(tmp_path / "late.jsonl")
    measured([[4, 5], [6]], squares, store, 1, 0.0, lambda *_: None)
    assert store.cells == {}  # no time for any
    with pytest.raises(RuntimeError, match="a worker ended with 1; what it said stands above"):
        measured([[7, 13, 8], [9]], squares, store, 1, None, lambda *_: None)
    assert list(store.cells) == ["7"]
    assert "thirteen" in capfd.readouterr().err
