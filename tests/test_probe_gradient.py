"""Restricted gradients: against autograd's own, and slices that have none."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import bert, tokens
from paring.cli.main import main
from paring.probe.gradient import mean_gradients, slice_norms
from paring.probe.kinds.gradient import slices_of
from paring.tune.config import SliceConfig
from paring.tune.targets import select
from probe_task import task

ALL = SliceConfig(rank=3, modes=("row",), move_steps=None)


def test_norms_are_those_of_the_entries() -> None:
    gradient = torch.randn(2, 10, 7)
    gradient[:, 3:5] = 0
    rows = slice_norms(gradient, "row", (0, 3, 8), 2)
    torch.testing.assert_close(rows, torch.stack([gradient[:, p : p + 2].double().norm() for p in (0, 3, 8)]))
    assert rows[1] == 0  # exactly
    columns = slice_norms(gradient, "column", (4, 0), 3)
    torch.testing.assert_close(columns, torch.stack([gradient[:, :, p : p + 3].double().norm() for p in (4, 0)]))
    even = slices_of(torch.ones(1, 6, 5), "row", (0, 2, 4), 2)
    assert [row["relative_norm"] for row in even] == pytest.approx([1, 1, 1])
    assert slices_of(torch.zeros(1, 6, 5), "row", (0,), 2) == [{"position": 0, "norm": 0.0, "relative_norm": None}]


def test_the_gradient_is_that_of_all_rows() -> None:
    model = bert().eval()
    layers = select(model, ALL).layers
    model.classifier.weight.requires_grad_(False)
    model.classifier.weight.grad = marker = torch.ones_like(model.classifier.weight)
    batches = [tokens(batch=4, seed=1), tokens(batch=2, seed=2)]
    found, loss = mean_gradients(model, layers, batches)
    assert model.classifier.weight.grad is marker and not model.classifier.weight.requires_grad
    assert all(p.grad is None for p in model.bert.parameters()) and all(p.requires_grad for p in model.bert.parameters())
    model.classifier.weight.grad = None
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    expected = model(**whole).loss
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for layer in layers:
        torch.testing.assert_close(found[layer.name][0], layer.module.weight.grad, atol=1e-6, rtol=1e-4)


def test_convolutions_transposed_and_half_precision() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50, n_positions=8)).eval().bfloat16()
    layers = select(model, ALL).layers
    found, _ = mean_gradients(model, layers, [tokens(labels=50) | {"labels": tokens()["input_ids"]}])
    shapes = {name: tuple(g.shape) for name, g in found.items()}
    assert shapes["transformer.h.0.mlp.c_fc"] == (1, 32, 8) and found["transformer.h.0.mlp.c_fc"].dtype == torch.float32


def test_bad_batches() -> None:
    model = bert().eval()
    layers = select(model, ALL).layers
    with pytest.raises(ValueError, match="there is no batch"):
        mean_gradients(model, layers, [])
    nn.init.constant_(model.classifier.weight, float("nan"))
    with pytest.raises(ValueError, match="the loss of batch 0 is nan"):
        mean_gradients(model, layers, [tokens()])
    assert all(p.requires_grad for p in model.parameters())


def test_every_slice_of_a_model(tmp_path: Path) -> None:
    result = task().probe("gradient", tmp_path, rank=5, rows=32, batch_size=10, seeds=(0, 1))
    rows = result.tables["slices"]
    ours = [r for r in rows if r["layer"] == "bert.encoder.layer.0.output.dense" and r["seed"] == 1]
    assert [r["position"] for r in ours if r["axis"] == "row"] == [0, 5, 10, 15, 19]
    assert [r["position"] for r in ours if r["axis"] == "column"] == list(range(0, 40, 5))
    assert result.record["facts"] == {"num_layers": 13, "num_rows": 32}
    assert result.verdict.holds is True and result.verdict.numbers["num_zero"] == 0
    num_positions = result.verdict.numbers["num_positions"]
    assert result.verdict.sentence.startswith(
        f"holds for {2 * num_positions} of {2 * num_positions} slices ({num_positions} positions x 2 seeds, rank 5)"
    )
    assert "the gradient is zero for 0.00 ± 0.00 % over seeds" in result.verdict.said
    layers = {(r["seed"], r["layer"]): r for r in result.tables["layers"] if r["axis"] == "row"}
    assert len(layers) == 26 and layers[0, "bert.pooler.dense"]["loss"] != layers[1, "bert.pooler.dense"]["loss"]
    again = task().probe("gradient", tmp_path / "again", rank=5, rows=32, batch_size=10, seeds=(0, 1))
    assert again.tables == result.tables


def test_dead_slices_are_counted(tmp_path: Path) -> None:
    """Columns that read a dead feature: the output of a row of zeros, after ReLU."""
    from transformers import BertModel

    model = BertModel.from_pretrained(task().model, hidden_act="relu")
    with torch.no_grad():
        dense = model.encoder.layer[1].intermediate.dense
        dense.weight[10:20] = 0
        dense.bias[10:20] = -1
    model.save_pretrained(tmp_path / "model")
    from small_text import tokenizer

    tokenizer().save_pretrained(tmp_path / "model")
    arguments = [*task().command("gradient", tmp_path / "out"), "--rank", "5", "--rows", "16", "--seeds", "0", "--no-figure"]
    arguments[2] = str(tmp_path / "model")
    assert main(arguments) == 0
    record = json.loads((tmp_path / "out" / "probe.json").read_text())
    # Two row slices (no gradient through the dead ReLU) and two column slices of the next layer.
    assert record["verdict"]["numbers"]["num_zero"] == 4 and record["verdict"]["holds"] is False
    assert record["verdict"]["sentence"].startswith("does not hold: for ")


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for more, expected in (
        (("--rank", "25"), "rank 25 is larger than a layer: layer 'bert.encoder.layer.0.attention.self.query' has 24 rows"),
        (("--rank", "0"), "rank is 0; expected a whole number"),
        (("--exclude", "bert.**"), "no layer to slice is left"),
        (("--text-column", "txt"), "has no column 'txt'"),
    ):
        assert main([*task().command("gradient", tmp_path / "out"), *more, "--no-figure"]) == 2
        assert expected in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_the_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = task().probe("gradient", tmp_path, rows=8, seeds=(0,), figure=True)
    assert (tmp_path / "figure.png").stat().st_size > 5000
    from paring.probe.plots.gradient import figure

    left, _ = figure(result.record, result.tables).axes
    values = sorted(r["relative_norm"] for r in result.tables["slices"] if r["axis"] == "row")
    assert list(left.lines[0].get_xdata()) == values
