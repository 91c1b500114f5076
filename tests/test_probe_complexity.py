"""Complexity: counts against formulas and against tensors that are known; what PEFT refuses is said."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import assert_same_bits, bert, bits, tokens
from paring.cli.main import main
from paring.probe.complexity import COUNTED, num_entries, step_cost
from paring.probe.kinds import complexity
from paring.probe.kinds.complexity import Settings, verdict
from paring.probe.methods import FULL, OURS, Tuning, peft_methods, prepare
from paring.tune.config import SliceConfig
from paring.tune.targets import select
from probe_task import task

LAYERS = SliceConfig(rank=1, modes=("row",), move_steps=None)
peft_only = pytest.mark.skipif(not peft_methods(), reason="needs the extra 'peers'")


def prepared(method: str, rank: int = 4) -> tuple[Tuning, int]:
    model = bert()
    return prepare(method, model, select(model, LAYERS).layers, "text-classification", rank), num_entries(bert())


def test_bytes_of_a_net_that_can_be_worked_out() -> None:
    """Two layers and a ReLU: kept are the hidden features twice (before and after the ReLU they are one storage each)."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lower, self.upper = nn.Linear(5, 7, bias=False), nn.Linear(7, 3, bias=False)

        def forward(self, x: torch.Tensor) -> object:
            return type("Output", (), {"loss": self.upper(self.lower(x).relu()).sum()})

    net = Net()
    tuning = Tuning(net, list(net.parameters()), {}, 56)
    cost = step_cost(tuning, {"x": torch.randn(4, 5)}, num_entries(net) - 9)
    assert (cost.num_trainable, cost.num_added) == (56, 9)
    assert cost.trained_bytes == cost.gradient_bytes == 56 * 4
    assert cost.optimizer_bytes == 2 * 56 * 4 + 2 * 4  # two moments, and a step counter for each tensor
    assert cost.activation_bytes == 4 * 7 * 4  # relu's output, which the upper layer keeps too; the batch is not counted
    assert cost.total_bytes == cost.trained_bytes + cost.gradient_bytes + cost.optimizer_bytes + cost.activation_bytes


def test_losses_and_gradients_that_are_none() -> None:
    tuning, before = prepared("row")
    nn.init.constant_(tuning.model.classifier.weight, float("nan"))
    with pytest.raises(ValueError, match="the loss is nan"):
        step_cost(tuning, tokens(), before)
    tuning.close()
    model = bert()
    with pytest.raises(ValueError, match="nothing that it trains has a gradient"):
        step_cost(Tuning(model, [nn.Parameter(torch.zeros(2))], {}, 2), tokens(), before)


@pytest.mark.parametrize("method", ["row", "column", FULL])
def test_entries_of_slices(method: str) -> None:
    tuning, before = prepared(method)
    cost = step_cost(tuning, tokens(), before)
    layers = select(bert(), LAYERS).layers
    expected = {x.name: COUNTED[method][1](x.matrix.out, x.matrix.inp, 4) for x in layers}
    assert {name: sum(p.numel() for p in found) for name, found in tuning.by_layer.items()} == expected
    assert cost.num_trainable == sum(expected.values()) and cost.num_added == 0
    assert cost.gradient_bytes == 4 * cost.num_trainable
    tuning.close()
    assert set(bits(tuning.model)) == set(bits(bert()))


def test_columns_keep_less() -> None:
    costs = {}
    for method in ("row", "column", "recommended", FULL):
        tuning, before = prepared(method)
        costs[method] = step_cost(tuning, tokens(batch=16), before)
        tuning.close()
    assert costs["column"].activation_bytes < costs["row"].activation_bytes <= costs[FULL].activation_bytes
    assert costs["recommended"].activation_bytes < costs["column"].activation_bytes  # the upper half


@peft_only
@pytest.mark.filterwarnings("ignore")
def test_entries_of_lora() -> None:
    tuning, before = prepared("lora")
    cost = step_cost(tuning, tokens(), before)
    layers = select(bert(), LAYERS).layers
    assert cost.num_trainable == cost.num_added == sum(4 * (x.matrix.out + x.matrix.inp) for x in layers)
    assert sum(p.numel() for p in tuning.by_layer[layers[4].name]) == 4 * (layers[4].matrix.out + layers[4].matrix.inp)
    assert not any(p.requires_grad for n, p in tuning.model.named_parameters() if "classifier" in n)


@peft_only
def test_every_method_is_measured_or_said_to_refuse(tmp_path: Path) -> None:
    result = task().probe("complexity", tmp_path, rank=4, batch_size=4)
    rows = {row["method"]: row for row in result.tables["methods"]}
    assert list(rows) == [*OURS, FULL, *peft_methods()]
    run = {name for name, row in rows.items() if row["refused"] is None}
    assert {*OURS, FULL, "lora", "adalora", "ia3", "loha", "oft", "c3a", "vera", "miss", "prefix_tuning"} <= run
    assert "expected" not in rows and rows["poly"]["refused"] == "ValueError: task_ids should not be None."
    assert "Unsupported model type" in rows["adaption_prompt"]["refused"]
    assert len(run) > 30
    formulas = {row["method"]: row for row in result.tables["formulas"]}
    assert set(formulas) == {"row", "column", "full", "lora", "adalora", "loha"}
    for row in formulas.values():
        assert row["num_counted_right"] == row["num_layers"] == 13
    # Of the 13 layers 9 are square; printed counts take d to be the layer's rows.
    assert [formulas[m]["num_printed_right"] for m in ("row", "column", "full", "lora", "loha")] == [9, 9, 13, 9, 9]
    assert formulas["adalora"]["num_printed_right"] == 0  # it has r singular values, not r^2
    assert result.verdict.holds is True
    assert result.verdict.said.startswith("in 26 of 26 counts (row and column slices of rank 4 in every layer), with 0 entries")
    assert "18 are right, those of square layers" in result.verdict.said
    assert result.verdict.numbers["num_methods"] == len(run) and result.verdict.numbers["num_refused"] == len(rows) - len(run)
    adapters = [row for name, row in rows.items() if name in run - {*OURS, FULL, "shira", "osf"}]
    assert all(row["num_added"] > 0 for row in adapters if row["method"] not in ("beft", "ln_tuning", "trainable_tokens"))


def test_the_model_on_disk_stays(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    before = load_file(task().model / "model.safetensors")
    result = task().probe("complexity", tmp_path, methods=("column", "full"), rank=2, batch_size=4, seeds=(0, 1))
    assert_same_bits(load_file(task().model / "model.safetensors"), before)
    assert [(r["method"], r["seed"]) for r in result.tables["methods"]] == [
        ("column", 0),
        ("full", 0),
        ("column", 1),
        ("full", 1),
    ]
    again = task().probe("complexity", tmp_path / "again", methods=("column", "full"), rank=2, batch_size=4, seeds=(0, 1))
    assert again.tables == result.tables


def test_without_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("paring.probe.methods.find_spec", lambda name: None)
    result = task().probe("complexity", tmp_path, rank=2, batch_size=4)
    assert [row["method"] for row in result.tables["methods"]] == [*OURS, FULL]
    assert any("PEFT's methods are left out" in note for note in result.record["notes"])
    with pytest.raises(ValueError, match=r"there is no 'lora'; there are row, .*; PEFT's need its package: pip install"):
        task().probe("complexity", tmp_path / "other", methods=("lora",))


@peft_only
def test_a_machine_that_is_full_is_not_the_methods_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = [
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ]
    for error in full:

        def cost(*given: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(complexity, "step_cost", cost)
        with pytest.raises(type(error)):
            task().probe("complexity", tmp_path, methods=("lora",), rank=2)
    monkeypatch.undo()
    result = task().probe("complexity", tmp_path, methods=("lora",), rank=2)  # nothing was kept of it
    assert result.tables["methods"][0]["refused"] is None


def test_verdicts() -> None:
    def tables(trained: int, added: int) -> dict:
        method = {"method": "row", "seed": 0, "refused": None, "num_added": added, "num_trainable": 8}
        count = {"method": "row", "layer": "a", "trained": trained, "counted": 8, "printed": 12}
        return {"methods": [method | {"activation_bytes": 10**6, "total_bytes": 2 * 10**6}], "counts": [count]}

    good = verdict(tables(8, 0), Settings(rank=2))
    assert good.holds is True and "kept for backward: row 1.0 MB" in good.said
    assert verdict(tables(12, 0), Settings()).holds is False  # as printed
    assert verdict(tables(8, 1), Settings()).holds is False
    none = {"methods": [tables(8, 0)["methods"][0] | {"method": "full"}]}
    assert verdict(none, Settings()).holds is None and "nothing was counted" in verdict(none, Settings()).said


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for more, expected in (
        (("--methods", "rows"), "there is no 'rows'; there are row, column"),
        (("--methods", "row", "row"), "every one once"),
        (("--rank", "25"), "rank is 25; layer 'bert.encoder.layer.0"),
        (("--batch-size", "0"), "batch_size is 0"),
    ):
        assert main([*task().command("complexity", tmp_path / "out"), *more, "--no-figure"]) == 2
        assert expected in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_the_command_and_its_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = [*task().command("complexity", tmp_path / "out"), "--methods", "row", "column", "full", "--rank", "3"]
    assert main(arguments) == 0
    record = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert record["tables"] == {"formulas": "formulas.csv", "methods": "methods.csv", "counts": "counts.csv"}
    assert (tmp_path / "out" / "figure.png").stat().st_size > 5000
    from paring.probe.folder import FIGURE
    from paring.probe.plots.complexity import figure

    assert FIGURE == "figure"
    rows = [json.loads(line)["tables"]["methods"][0] for line in (tmp_path / "out" / "cells.jsonl").read_text().splitlines()]
    tables = {
        "methods": [{"method": name, "seed": 0, **row} for name, row in zip(("row", "column", "full"), rows, strict=True)]
    }
    left, right = figure(record, tables).axes
    assert sorted(left.lines[0].get_xdata()) == sorted(row["num_trainable"] for row in rows)
    ends = [sum(c.patches[i].get_width() for c in right.containers) for i in range(3)]
    assert ends == pytest.approx(sorted((row["total_bytes"] / 1e6 for row in rows), reverse=True))
