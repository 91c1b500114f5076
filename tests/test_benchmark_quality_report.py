"""What the quality benchmark shows of its cells, how it times, and its ways to begin a slice: on few, small runs."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from quality import plan, report, timing
from quality.methods import METHODS, Method, optimizer, prepare
from quality.runs import Cell, run
from test_benchmark_quality import result

NAMES = ("lora-r8", "static-column-r16")
LORA, SLICES = NAMES


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def new_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The digits' model with random weights, which takes no half minute."""
    import paring.tasks.digits
    from paring.tasks.digits.vit import new_model

    monkeypatch.setattr(paring.tasks.digits, "pretrained", new_model)


def scripted(folder: Path, accuracies: dict[str, float]) -> plan.Runner:
    """All cells of some methods on MiniLM, the best rate 5e-3; seeds 0, 1, 2 lie 0.01 apart."""
    runner = plan.runner("docstrings", folder, 1, None)
    for method, accuracy in accuracies.items():
        for rate in runner.suite.rates:
            lower = 0.0 if rate == 5e-3 else 0.1 + abs(rate - 5e-3)
            runner.store.add(result(runner.cell("module", method, rate, 0), accuracy - 0.01 - lower))
        for task in runner.suite.tasks:
            for seed in plan.SEEDS:
                cell = runner.cell(task, method, 5e-3, seed)
                runner.store.add(result(cell, accuracy + 0.01 * (seed - 1)))
    return runner


def test_the_table_holds_means_and_spreads(tmp_path: Path) -> None:
    text = report.markdown(scripted(tmp_path, {LORA: 0.8, SLICES: 0.79}), NAMES, tmp_path)
    assert "| LoRA, r 8 | 79.0 ± 1.0 | 79.0 ± 1.0 | 79.0 ± 1.0 | 79.0 | 0.005 | - | 100 | 0.00 |" in text
    assert "| static column, r 16 | 78.0 ± 1.0 | 78.0 ± 1.0 | 78.0 ± 1.0 | 78.0 |" in text
    assert "| LoRA, r 8 | 0.005 | 0.790 | 100 |" in text  # the screen: validation, seed 0


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        (0.792, "0.8 points behind: within 0.5 points on every task **does not hold**"),
        (0.796, "0.4 points behind: within 0.5 points on every task **holds**"),
        (0.82, "2.0 points ahead: within 0.5 points on every task **holds**"),
    ],
)
def test_the_verdict_is_on_the_worst_task(tmp_path: Path, accuracy: float, words: str) -> None:
    runner = scripted(tmp_path, {LORA: 0.8, SLICES: 0.9})
    for seed in plan.SEEDS:
        runner.store.add(result(runner.cell("kind", SLICES, 5e-3, seed), accuracy + 0.01 * (seed - 1)))
    text = report.markdown(runner, NAMES, tmp_path)
    assert f"On kind, where it does worst beside LoRA, it is {words}" in text


def test_a_table_of_what_is_there_so_far(tmp_path: Path) -> None:
    runner = scripted(tmp_path, {SLICES: 0.8})
    text = report.markdown(runner, NAMES, tmp_path)
    assert "| static column, r 16 | 0.005 | 0.790 | 100 |" in text and "LoRA" not in text and "±" not in text
    del runner.store.cells[runner.cell("kind", SLICES, 5e-3, 2).key]
    assert report.cells(runner, SLICES) == []
    moving = report.moving(runner, NAMES, ("module", "kind"), 5e-3)
    tests = report.tests_by_task(runner, NAMES)
    assert "| 79.0 ± 1.0 (3 seeds) | 78.5 ± 0.7 (2 seeds) | 79.0 ± 1.0 (3 seeds) |\n" in tests and "8 | - | - | - |\n" in tests
    assert "| static column, r 16 | 0.790 | 0.790 | 0.790 (0.005) |\n" in moving and "| LoRA, r 8 | - | - | - |\n" in moving


def test_time_to_a_score_is_a_share_of_loras_run(tmp_path: Path) -> None:
    runner = scripted(tmp_path, {SLICES: 0.8})  # curves: half of it half-way, all of it in the end
    assert report.time_to(runner, SLICES, "kind", 0.4, ratio=0.7) == pytest.approx(0.35)
    assert report.time_to(runner, SLICES, "kind", 0.8, ratio=0.7) == pytest.approx(0.7)
    assert report.time_to(runner, SLICES, "kind", 0.81, ratio=0.7) is None
    assert report.time_to(runner, SLICES, "kind", 0.8 + 1e-15, ratio=0.7) == pytest.approx(0.7)  # rounding alone


def test_steps_are_timed_in_turn(tmp_path: Path, new_vit: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUNDS", 3)
    monkeypatch.setattr(timing, "WARMUP", 1)
    taken: list[int] = []
    step = timing._step

    def noted(tuning: timing.Tuning, *rest: object) -> float:
        taken.append(tuning.num_trainable)
        return step(tuning, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(timing, "_step", noted)
    timing.measure("digits", ("head", "full"), tmp_path)
    head, full = 970, 450_730
    assert taken == [head, full, full, head] * 2
    assert len(timing.json.loads((tmp_path / "tune_quality_digits_steps.json").read_text())["rounds"]) == 3  # no warm-up
    assert {*timing.ratios(tmp_path, "digits", to="head")} == {"head", "full"}
    assert timing.ratios(tmp_path, "docstrings") == {}


def test_ratios_are_taken_by_round_but_of_a_window_over_all_places(tmp_path: Path) -> None:
    rounds = [{LORA: 1.0, SLICES: 0.5, "column-r16-window": w} for w in (0.2, 0.4, 0.9)] + [
        {LORA: 9.0, SLICES: 4.5, "column-r16-window": 3.0}
    ]
    (tmp_path / "tune_quality_digits_steps.json").write_text(timing.json.dumps({"rounds": rounds}))
    assert timing.ratios(tmp_path, "digits") == pytest.approx({LORA: 1.0, SLICES: 0.5, "column-r16-window": 4.5 / 12})


def test_a_run_is_repeated_to_the_letter_and_kept(tmp_path: Path, new_vit: None) -> None:
    cell = Cell("digits", "turned", "static-column-r5", 1e-2, 0, 6)
    first, second = run(cell, tmp_path), run(cell, None)
    assert {k: v for k, v in first.items() if k != "seconds"} == {k: v for k, v in second.items() if k != "seconds"}
    assert [step for step, _ in first["curve"]] == [1, 2, 3, 4, 5, 6] and not first["diverged"]
    (kept,) = tmp_path.iterdir()
    assert kept.name == f"digits-turned-static-column-r5-0-{cell.key}.safetensors"


def test_a_run_that_diverges_is_not_kept(tmp_path: Path, new_vit: None) -> None:
    out = run(Cell("digits", "turned", "full", 1e30, 0, 6), tmp_path)
    assert out["diverged"] and out["validation"] == out["test"] == 0.0 and not list(tmp_path.iterdir())


def moved(method: str) -> tuple[dict[str, torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Four steps, a move after the third. Gives the optimizer's state of a slice, what its working copy held after the
    optimizer's first step, after the session's first, after the optimizer's second, and so on, and its last gradient."""
    from paring.tasks.digits.vit import new_model

    settings = {**METHODS[method].settings, "move_steps": 3}
    tuning = prepare(Method(method, "", "slices", settings), new_model(0).train(), 4)
    train = optimizer(tuning, 1e-2)
    pictures = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    values, copy, gradient = [], tuning.parameters[0], torch.empty(0)
    for _ in range(4):
        tuning.model(pixel_values=pictures, labels=torch.arange(8)).loss.backward()
        train.step()
        assert copy.grad is not None
        values.append(copy.detach().clone())
        gradient = copy.grad.clone()
        tuning.after_step(train)
        values.append(copy.detach().clone())
        train.zero_grad()
    tuning.session.close()
    return train.state[copy], values, gradient


def test_second_moments_are_kept_over_a_move() -> None:
    fresh, plain, _ = moved("column-r16")
    carried, values, gradient = moved("column-r16-carried")
    assert all(torch.equal(a, b) for a, b in zip(plain[:6], values[:6], strict=True))
    assert not torch.equal(plain[4], plain[5])  # the move
    assert (fresh["step"], carried["step"]) == (1, 4)
    torch.testing.assert_close(carried["exp_avg"], 0.1 * gradient)
    # Fresh: the gradient over its own size, so each entry goes a whole step. Kept: a smaller first moment, and other sizes.
    assert (plain[6] - plain[5]).abs().median() > 0.9e-2
    assert 0.1e-2 < (values[6] - values[5]).abs().median() < 0.7e-2


def test_a_slice_is_eased_in_after_a_move() -> None:
    _, plain, _ = moved("column-r16")
    _, eased, _ = moved("column-r16-eased")
    assert all(torch.equal(a, b) for a, b in zip(plain[:7], eased[:7], strict=True))  # up to the optimizer's own step
    torch.testing.assert_close(eased[7] - eased[5], (plain[7] - plain[5]) / 5)
