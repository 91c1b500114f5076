"""Task energy: against the definitions worked out by hand, and on features whose energy is known."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import bert, tokens
from paring.cli.main import main
from paring.probe.energy import balanced_rows, pooled_features, smallest_k, task_energy
from paring.probe.kind import Row
from paring.probe.kinds.energy import Settings, verdict
from probe_task import task


def test_shares_are_those_of_the_definition() -> None:
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(40) % 3
    features += 2 * torch.nn.functional.one_hot(labels, 6)
    found = task_energy(features, labels)
    centred = (features - features.mean(0)).double()
    means = torch.stack([centred[labels == c].mean(0) for c in labels])
    variance, directions = torch.linalg.eigh(centred.t() @ centred)
    order = variance.argsort(descending=True)
    for k in range(1, 7):
        top = directions[:, order[:k]]
        assert float(found.energy[k - 1]) == pytest.approx(float((centred @ top).square().sum() / centred.square().sum()))
        assert float(found.class_mean[k - 1]) == pytest.approx(float((means @ top).square().sum() / means.square().sum()))
    share = float(means.square().sum() / centred.square().sum())
    assert found.class_share == pytest.approx(share) and found.adjusted == pytest.approx((share - 2 / 39) / (1 - 2 / 39))


def test_known_energy() -> None:
    """Classes along the direction of most variance, then along that of least."""
    labels = torch.arange(200) % 2
    noise = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    along, across = noise.clone(), noise.clone() * torch.linspace(10, 1, 10)
    along[:, 0] += 20 * labels
    across[:, 9] += 1.5 * labels
    assert smallest_k(task_energy(along, labels).class_mean, 0.9) == 1
    assert smallest_k(task_energy(across, labels).class_mean, 0.9) > 5
    assert task_energy(along, labels).class_share > 0.9
    by_chance = [task_energy(torch.randn(60, 5), torch.arange(60) % 4).adjusted for _ in range(200)]
    assert abs(sum(by_chance) / 200) < 0.01  # unbiased: the plain share would be 3 / 59


def test_smallest_k() -> None:
    shares = torch.tensor([0.5, 0.8, 0.9, 1.0], dtype=torch.float64)
    assert [smallest_k(shares, tau) for tau in (0.1, 0.5, 0.8, 0.81, 0.99, 1.0)] == [1, 1, 2, 3, 4, 4]
    assert smallest_k(None, 0.5) is None


def test_features_that_do_not_vary() -> None:
    found = task_energy(torch.full((6, 3), 0.1), torch.arange(6) % 2)
    assert (found.energy, found.class_mean, found.class_share, found.adjusted) == (None, None, None, None)
    same_means = task_energy(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), torch.tensor([0, 0, 1, 1]))
    assert same_means.class_mean is None and same_means.class_share == 0
    for labels in (torch.zeros(6), torch.arange(6)):
        with pytest.raises(ValueError, match="expected at least two, fewer than rows"):
            task_energy(torch.randn(6, 3), labels)
    with pytest.raises(ValueError, match="not finite"):
        task_energy(torch.tensor([[1.0], [float("nan")], [0.0]]), torch.tensor([0, 1, 1]))


def test_features_leave_padding_out() -> None:
    model = bert().eval()
    batch = tokens(batch=3)
    alone = pooled_features(model, [batch])
    assert [tuple(f.shape) for f in alone] == [(3, 24)] * 4
    padded = {
        "input_ids": torch.cat([batch["input_ids"], torch.zeros(3, 2, dtype=torch.int64)], 1),
        "attention_mask": torch.tensor([[1] * 7 + [0] * 2] * 3),
    }
    for one, other in zip(pooled_features(model, [padded]), alone, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        expected = model.bert(**{k: v for k, v in batch.items() if k != "labels"}).last_hidden_state.mean(1)
    torch.testing.assert_close(alone[-1], expected)


def test_a_model_without_hidden_states() -> None:
    class Plain(nn.Module):
        def forward(self, pixel_values: torch.Tensor, output_hidden_states: bool) -> torch.Tensor:
            return pixel_values

    with pytest.raises(ValueError, match="Plain gives no hidden_states"):
        pooled_features(Plain(), [{"pixel_values": torch.ones(2, 3)}])


def test_rows_are_balanced() -> None:
    labels = [0] * 50 + [1] * 5 + [2] * 20
    drawn = balanced_rows(labels, 30, ("a", "b", "c"), seed=0)
    assert len(set(drawn)) == 25 and Counter(labels[row] for row in drawn) == {0: 10, 1: 5, 2: 10}
    assert drawn == balanced_rows(labels, 30, ("a", "b", "c"), seed=0) != balanced_rows(labels, 30, ("a", "b", "c"), seed=1)
    with pytest.raises(ValueError, match="rows is 5; expected at least two for each of the 3 classes, 6"):
        balanced_rows(labels, 5, ("a", "b", "c"), seed=0)
    with pytest.raises(ValueError, match=r"the class 'd' has 1 train row\(s\)"):
        balanced_rows([*labels, 3], 30, ("a", "b", "c", "d"), seed=0)


def test_of_a_model(tmp_path: Path) -> None:
    result = task().probe("energy", tmp_path, rows=30, batch_size=8, seeds=(0, 1))
    layers = result.tables["layers"]
    assert len(layers) == 2 * 2 * 3 and {row["layer"] for row in layers} == {0, 1, 2}
    assert all(row["width"] == 24 and row["rows"] == 30 for row in layers)
    by = {(r["model"], r["seed"], r["layer"]): r for r in layers}
    # The test's base is itself what its class initialises with seed 0.
    assert by["untrained", 0, 2] == by["pretrained", 0, 2] | {"model": "untrained"}
    assert by["untrained", 1, 2]["class_share"] != by["pretrained", 1, 2]["class_share"]
    curve = [r for r in result.tables["curves"] if (r["model"], r["seed"], r["layer"]) == ("pretrained", 1, 2)]
    assert [r["k"] for r in curve] == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24]
    assert curve[-1]["energy"] == pytest.approx(1) and curve[-1]["class_mean"] == pytest.approx(1)
    for name in ("energy", "class_mean"):
        values = [r[name] for r in curve]
        assert values == sorted(values)
        k = by["pretrained", 1, 2][f"{name}_k90"]
        assert all((r[name] >= 0.9) == (r["k"] >= k) for r in curve)
    assert result.record["facts"] == {"num_classes": 3, "num_rows": 30}
    assert task().probe("energy", tmp_path / "again", rows=30, batch_size=8, seeds=(0, 1)).tables == result.tables


def made(pretrained: list[float], untrained: list[float], k90: int, rows: int = 60) -> dict[str, list[Row]]:
    def row(model: str, seed: int, layer: int, adjusted: float, k: int) -> Row:
        found: Row = {"model": model, "seed": seed, "layer": layer, "adjusted": adjusted, "width": 100, "rows": rows}
        return found | {"class_mean_k90": k, "energy_k90": 40}

    both = {"pretrained": pretrained, "untrained": untrained}
    return {
        "layers": [
            row(model, seed, layer, value, 90 if layer == 0 else k90)
            for model, values in both.items()
            for seed, value in enumerate(values)
            for layer in (0, 1)
        ]
    }


def test_verdicts() -> None:
    settings = Settings(bound=0.1)
    good = verdict(made([0.5, 0.52, 0.49], [0.1, 0.1, 0.12], 8), settings)
    assert good.holds is True and good.numbers["gain"] == pytest.approx(0.4, abs=0.01)
    assert "95 % interval +0.3" in good.said and "8.0 of 100 directions" in good.said
    assert verdict(made([0.5, 0.52, 0.49], [0.1, 0.1, 0.12], 11), settings).holds is False  # not compact
    near = made([0.5, 0.52, 0.49], [0.1, 0.1, 0.12], 10)  # at the bound, but of one seed beyond
    near["layers"] = [row | {"class_mean_k90": 11} if (row["layer"], row["seed"]) == (1, 2) else row for row in near["layers"]]
    found = verdict(near, settings)
    assert found.holds is None and "at most in 10.3 ± 1.4 % of the width (layer 1;" in found.said
    assert verdict(made([0.1, 0.1, 0.12], [0.5, 0.52, 0.49], 8), settings).holds is False  # worse than untrained
    assert verdict(made([0.1, 0.3, 0.2], [0.2, 0.1, 0.2], 8), settings).sentence.startswith("undecided, as measured it holds: ")
    few = verdict(made([0.5, 0.52, 0.49], [0.1, 0.1, 0.12], 8, rows=11), settings)  # any features would do
    assert few.holds is None and "but 11 rows span no more than 10 directions, and the asked for are 10" in few.said
    assert verdict(made([0.5, 0.52, 0.49], [0.1, 0.1, 0.12], 8, rows=12), settings).holds is True
    one = verdict(made([0.5], [0.1], 8), Settings(seeds=(0,)))
    assert one.holds is None and "one seed: no interval" in one.said and one.numbers["gain_half_width"] is None


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for more, expected in (
        (("--rows", "5"), "rows is 5; expected at least two for each of the 3 classes, 6"),
        (("--bound", "0"), "bound is 0.0; expected a share"),
        (("--task", "causal-lm"), "task is 'causal-lm', whose rows have no classes"),
        (("--seeds", "1", "1"), "every one once"),
    ):
        assert main([*task().command("energy", tmp_path / "out"), *more, "--no-figure"]) == 2
        assert expected in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_the_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = task().probe("energy", tmp_path, rows=12, seeds=(0,), figure=True)
    assert (tmp_path / "figure.png").stat().st_size > 5000
    from paring.probe.plots.energy import figure

    axis = figure(result.record, result.tables).axes[2]
    shown = list(axis.lines[0].get_ydata())
    assert shown == [r["adjusted"] for r in result.tables["layers"] if r["model"] == "pretrained"]
