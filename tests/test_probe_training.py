"""The room of the kinds that train: the same seed gives the same numbers, and what follows from them."""

from pathlib import Path

import pytest
import torch
from scipy import stats

import paring
from paring.cli.main import main
from paring.probe.batches import Rows
from paring.probe.bench import Bench
from paring.probe.contrasts import Contrast, Crossed, all_hold, at_best_rate, crossed, measured_on
from paring.probe.kind import Row
from paring.probe.subject import Subject
from paring.probe.training import Room, TrainingSettings
from probe_task import task


def subject(**given: object) -> Subject:
    settings = {"model": str(task().model), "data": str(task().data), "task": "text-classification", "max_length": 7}
    return Subject(**(settings | given))  # type: ignore[arg-type]


def test_a_training_learns_and_repeats() -> None:
    with Bench(subject()) as bench:
        room = Room(bench, TrainingSettings(steps=100))
        config = room.config(rank=8, modes=("column",))
        one = room.train(config, 0.05, seed=1)
        assert one.validation.accuracy is not None and one.validation.accuracy > 0.8 and one.test is not None
        state = torch.get_rng_state()
        threads = torch.get_num_threads()
        torch.rand(1)  # elsewhere in the random stream
        moved_on = torch.get_rng_state()
        assert room.train(config, 0.05, seed=1) == one and not torch.equal(moved_on, state)
        assert torch.equal(torch.get_rng_state(), moved_on) and torch.get_num_threads() == threads
        assert room.train(config, 0.05, seed=2).train_loss != one.train_loss
        moved = room.train(room.config(rank=8, modes=("column",), move_steps=5), 0.05, seed=1)
        assert moved.num_trainable == one.num_trainable and moved.train_loss != one.train_loss
        assert room.facts == {
            "num_layers": 13,
            "num_classes": 3,
            "num_train_rows": 90,
            "num_validation_rows": 30,
            "num_test_rows": 30,
        }


def test_slices_and_the_head_are_all_that_is_trained() -> None:
    with Bench(subject()) as bench:
        room = Room(bench, TrainingSettings(steps=3))
        model = bench.model(0).model
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        config = room.config(rank=2, modes=("row",), targets=("query",))
        with paring.sliced(model, config, verbose=False) as session:
            room.fit(model, session.parameters(), 0.01, 0, session.step)
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        queries = {f"bert.encoder.layer.{i}.attention.self.query.weight" for i in (0, 1)}
        assert changed == queries | {"classifier.weight", "classifier.bias"}
        for name in queries:
            assert torch.equal(model.state_dict()[name][2:], before[name][2:])


def test_a_loss_that_is_not_finite_ends_a_training() -> None:
    with Bench(subject()) as bench:
        room = Room(bench, TrainingSettings(steps=30))
        found = room.train(room.config(rank=8, modes=("column",)), 1e30, seed=0)
        model, steps = bench.model(0).model, []
        room.fit(model, list(model.parameters()), 1e30, 0, lambda: steps.append(1))
    assert 0 < len(steps) < 30
    assert found.diverged and found.validation.accuracy == 0.0 == found.as_row()["test"]


def test_rows_come_once_a_pass() -> None:
    def collate(rows: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.tensor([[float(row["at"])] for row in rows])}

    given = [{"at": i} for i in range(300)]  # more than are decoded at a time
    batches = Rows(given, collate).endless(50, seed=3)
    first = torch.cat([next(batches)["pixel_values"].cpu() for _ in range(6)]).flatten()
    second = torch.cat([next(batches)["pixel_values"].cpu() for _ in range(6)]).flatten()
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(300)) and first.tolist() != second.tolist()
    again = Rows(given, collate).endless(50, seed=3)
    assert torch.equal(next(again)["pixel_values"].cpu().flatten(), first[:50])
    few = Rows(given[:7], collate).endless(50, seed=0)  # a batch is never larger than the split
    assert len(next(few)["pixel_values"]) == 7


def test_images_are_decoded_as_the_model_takes_them(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from transformers import ViTConfig, ViTForImageClassification

    from paring.tasks.digits.folders import write_image_folder

    write_image_folder(None, tmp_path / "digits")
    shape = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 24}
    config = ViTConfig(**shape, num_hidden_layers=1, num_attention_heads=2, num_labels=10)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    what = {"model": str(tmp_path / "vit"), "data": str(tmp_path / "digits"), "task": "image-classification"}
    with Bench(subject(**what, max_length=None, exclude=("vit.embeddings.**",))) as bench:
        room = Room(bench, TrainingSettings(steps=2, batch_size=8))
        batch = next(room._train.endless(8, seed=5))
        order = torch.randperm(900, generator=torch.Generator().manual_seed(5))[:8].tolist()
        expected = bench.inputs(bench.model(0)).collate([bench.data.train[row] for row in order])
        assert torch.equal(batch["pixel_values"].cpu(), expected["pixel_values"])
        assert torch.equal(batch["labels"].cpu(), expected["labels"])
        found = room.train(room.config(rank=5, modes=("row",)), 1e-4, seed=0)
    assert found.test is not None and found.test.accuracy is not None and not found.diverged


def test_intervals_of_crossed_conditions() -> None:
    values = {"a": [0.80, 0.90, 0.85], "b": [0.82, 0.92, 0.87], "c": [0.70, 0.86, 0.78]}
    found = Crossed(values)
    table = torch.tensor(list(values.values()), dtype=torch.float64)
    left = table - table.mean(1, keepdim=True) - table.mean(0) + table.mean()
    deviation = (float(left.square().sum()) / 4) ** 0.5
    assert found.freedom == 4 and found.residual == pytest.approx(deviation)
    contrast = found.between("b", "a")
    assert contrast.difference == pytest.approx(0.02)
    assert contrast.half == pytest.approx(stats.t.ppf(0.975, 4) * deviation * (2 / 3) ** 0.5)
    assert found.between("b", "a", among=3).half == pytest.approx(stats.t.ppf(1 - 0.05 / 6, 4) * deviation * (2 / 3) ** 0.5)
    away = found.from_mean("c", among=3)
    assert away.difference == pytest.approx(table[2].mean() - table.mean())
    assert away.half == pytest.approx(stats.t.ppf(1 - 0.05 / 6, 4) * deviation * (2 / 9) ** 0.5)
    pairs = found.pairs(among=5)
    assert [pair for pair, _ in pairs] == [("b", "c"), ("a", "c"), ("b", "a")]
    assert pairs[0][1].difference == pytest.approx(0.09) and pairs[0][1].half == found.between("a", "b", 5).half
    one = Crossed({"a": [0.5], "b": [0.6]})
    assert one.between("a", "b").half == float("inf") and one.between("a", "b").said() == "-10.0 points (one seed: no interval)"
    with pytest.raises(ValueError, match=r"conditions have \[1, 2\] values"):
        Crossed({"a": [0.5], "b": [0.6, 0.7]})


def test_the_farthest_of_many_by_chance() -> None:
    """Against the same by simulation, of conditions that are alike."""
    generator = torch.Generator().manual_seed(0)
    values = 0.9 + 0.01 * torch.randn(20, 3, generator=generator, dtype=torch.float64)
    found = Crossed(dict(enumerate(values.tolist())))
    draws = 0.01 / 3**0.5 * torch.randn(4000, 20, generator=generator, dtype=torch.float64)
    expected = float((draws - draws.mean(1, keepdim=True)).abs().amax(1).mean())
    assert found.by_chance() == pytest.approx(expected * found.residual / 0.01, rel=0.03)


def test_within_a_band() -> None:
    assert Contrast(0.005, 0.004).within(0.01) is True and Contrast(-0.005, 0.004).within(0.01) is True
    assert Contrast(0.005, 0.02).within(0.01) is None and Contrast(-0.015, 0.02).within(0.01) is None
    assert Contrast(-0.015, 0.004).within(0.01) is False and Contrast(0.015, 0.004).within(0.01) is False
    assert Contrast(0.5, float("inf")).within(0.01) is None and Contrast(0.0, float("inf")).within(0.01) is None
    least = [Contrast(away, 0.01).at_least(-0.01) for away in (0.05, 0.001, -0.001, -0.019, -0.021)]
    assert least == [True, True, None, None, False] and Contrast(0.5, float("inf")).at_least(-0.01) is None
    assert all_hold([True, True]) is True and all_hold([True, None]) is None and all_hold([None, False]) is False


def test_the_rate_is_chosen_on_validation_rows() -> None:
    def run(rank: int, rate: float, seed: int, validation: float, test: float | None) -> Row:
        return {"rank": rank, "rate": rate, "seed": seed, "validation": validation, "test": test}

    rows = [
        *(run(1, 0.1, seed, v, 0.99) for seed, v in ((1, 0.5), (0, 0.6))),
        *(run(1, 0.2, seed, v, 0.3) for seed, v in ((1, 0.7), (0, 0.6))),
        *(run(2, rate, seed, 0.5, 0.4) for rate in (0.1, 0.2) for seed in (0, 1)),
    ]
    found = at_best_rate(rows, ("rank",))
    assert [row["rate"] for row in found[(1,)]] == [0.2, 0.2] and [row["seed"] for row in found[(1,)]] == [0, 1]
    assert found[(2,)][0]["rate"] == 0.1  # the lower of equal ones
    assert crossed(found, "test").means == {1: pytest.approx(0.3), 2: pytest.approx(0.4)}
    assert measured_on(rows) == "test" and measured_on([run(1, 0.1, 0, 0.5, None)]) == "validation"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0; expected a whole number, at least 1"),
        ({"batch_size": True}, "batch_size is True"),
        ({"threads": 0}, "threads is 0"),
        ({"rates": ()}, r"rates is \(\); expected at least 1 number, every one once"),
        ({"rates": (0.1, 0.1)}, "rates is"),
        ({"rates": (0.1, -1.0)}, "rates is .*; expected learning rates above 0"),
        ({"seeds": (1, 1)}, "seeds is .*; expected at least 1 whole number, every one once"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**settings)


def test_what_is_refused_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    one = tmp_path / "one"
    one.mkdir()
    (one / "train.csv").write_text("text,label\nslice row,a\nthin row,a\n")
    for kind, more, expected in (
        ("rank", ("--task", "causal-lm"), "task is 'causal-lm'; expected text-classification or image-classification"),
        ("rank", ("--data", str(one)), "all train rows have the label 'a'; expected at least two labels"),
        (
            "rank",
            ("--ranks", "1", "2", "25"),
            "rank 25 is larger than a layer: layer 'bert.encoder.layer.0.attention.self.query'",
        ),
        ("rank", ("--ranks", "2", "4"), "ranks is (2, 4); expected at least 3 whole numbers"),
        ("rank", ("--exclude", "bert.**"), "no layer to slice is left"),
        ("position", ("--rank", "25"), "rank 25 is larger than a layer"),
        ("position", ("--positions", "1"), "positions is 1; expected a whole number, at least 2"),
        ("position", ("--positions", "37"), "positions is 37; the widest layer, "),
        ("position", ("--band", "1"), "band is 1.0; expected an accuracy"),
        ("importance", ("--categories", "most"), "categories is ('most',); expected at least 2 of most, least, mixed, random"),
        ("importance", ("--rank", "25"), "rank 25 is larger than a layer"),
        ("tickets", ("--keep", "1"), "keep is 1.0; expected a share, above 0 and below 1"),
        ("tickets", ("--whole-rate", "0"), "whole_rate is 0.0; expected a learning rate above 0"),
        ("schedule", ("--steps", "20", "--intervals", "20"), "intervals is (20,); expected at least 1 and less than steps, 20"),
        ("schedule", ("--steps", "1"), "steps is 1; expected at least 2"),
    ):
        assert main([*task().command(kind, tmp_path / "out"), *more, "--no-figure"]) == 2
        assert expected in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
