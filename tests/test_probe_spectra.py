"""Spectra: against eigenvalues computed the slow way, the controls as they are defined, and what is refused."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from paring.cli.main import main
from paring.probe import spectra
from paring.probe.bench import Bench
from paring.probe.kinds.spectra import Settings, compare
from paring.probe.matrices import stored_matrices
from paring.probe.runner import run
from paring.probe.subject import Subject
from peak_memory import TELL, WATCH, told
from probe_task import task


def matrix(out: int, inp: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, inp, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("out", "inp"), [(12, 20), (20, 12), (13, 5), (7, 7), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_eigenvalues_are_those_of_the_definition(out: int, inp: int, dtype: torch.dtype) -> None:
    weight = matrix(out, inp).to(dtype)
    for k in (2, 3, 4):
        groups = spectra.group_eigenvalues(weight, k)
        assert sum(len(g) for g in groups) == out and max(map(len, groups)) - min(map(len, groups)) <= 1
        first = 0
        for found in groups:
            rows = weight[first : first + len(found)].double()
            expected = torch.linalg.svdvals(rows @ rows.t())
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
            assert float(found.mean()) == pytest.approx(float(rows.square().sum()) / len(rows))
            first += len(found)


def test_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = matrix(9, 31)
    whole = spectra.group_eigenvalues(weight, 3)
    monkeypatch.setattr(spectra, "_PIECE", 10)
    for one, other in zip(spectra.group_eigenvalues(weight, 3), whole, strict=True):
        torch.testing.assert_close(one, other)
    assert float(spectra.gaussian_like(weight, 0).square().mean()) == pytest.approx(float(weight.square().mean()), rel=0.3)


@pytest.mark.parametrize(("out", "inp", "k"), [(12, 20, 4), (20, 12, 4), (13, 13, 4), (20, 3, 8), (11, 30, 3)])
def test_permuted_blocks_are_those_of_a_real_matrix(out: int, inp: int, k: int) -> None:
    """W' is built as the definition says, and its groups' eigenvalues are those that are computed without it."""
    weight = matrix(out, inp).double()
    _, values, right = torch.linalg.svd(weight, full_matrices=False)
    squares = spectra.spectrum(weight)
    torch.testing.assert_close(squares, values.square(), atol=1e-9, rtol=1e-9)
    found = spectra.permuted_blocks(squares, out, k, seed=5)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(5)).tolist()
    sizes = [end - first for first, end in spectra.group_bounds(out, k)]
    num_filled = [len(part) for part in torch.arange(len(values)).tensor_split(k)]
    first, groups = 0, {}
    for group in order:  # blocks in descending order
        block = slice(first, first + num_filled[group])
        groups[group] = torch.zeros(sizes[group], inp, dtype=torch.float64)
        groups[group][: num_filled[group]] = values[block, None] * right[block]
        first += num_filled[group]
    other = torch.cat([groups[g] for g in range(k)])
    torch.testing.assert_close(torch.linalg.svdvals(other), values)  # the same spectrum
    for one, expected in zip(found, spectra.group_eigenvalues(other, k), strict=True):
        torch.testing.assert_close(one, expected, atol=1e-9, rtol=1e-9)


def test_balance() -> None:
    same = [torch.tensor([3.0, 2.0, 1.0])] * 3
    assert spectra.balance(same) == {"num_groups": 3, "energy_ratio": 1, "profile_ratio": 1, "effective_rank_ratio": 1}
    twice = spectra.balance([same[0], 4 * same[0]])
    assert twice["energy_ratio"] == pytest.approx(4) and twice["profile_ratio"] == pytest.approx(1)
    flat, steep = torch.ones(4), torch.tensor([2.0, 1.0, 0.5, 0.5])
    other = spectra.balance([flat, steep])
    assert other["energy_ratio"] == pytest.approx(1) and other["profile_ratio"] == pytest.approx(2)
    assert spectra.balance([flat, torch.tensor([1.2, 1.2, 1.2, 0.4])])["profile_ratio"] == pytest.approx(2.5)  # the last
    faint = [torch.tensor([4.0, 4.0, last]) for last in (0.1, 0.2)]
    assert spectra.balance(faint)["profile_ratio"] == pytest.approx(8.2 / 8.1)  # two of three hold 90 %
    assert spectra.balance([flat, 0 * flat])["energy_ratio"] == math.inf
    assert spectra.effective_rank(flat) == pytest.approx(4) and spectra.effective_rank(0 * flat) == 0
    assert spectra.profiles([flat, 0 * flat])[0] == {"place": 0.0, "least": 1, "mean": 1, "most": 1}


def test_a_balanced_matrix_and_one_that_is_not() -> None:
    settings = Settings(groups=4, seeds=(0, 1))
    found = {(r["axis"], r["matrix"]): r for r in compare(matrix(64, 96), settings)["matrices"]}
    assert len(found) == 6
    assert found["row", "trained"]["energy_ratio"] < 1.3 > found["column", "gaussian"]["energy_ratio"]
    assert found["row", "permuted"]["energy_ratio"] > 5
    scaled = matrix(64, 96)
    scaled[:16] *= 3
    found = {(r["axis"], r["matrix"]): r for r in compare(scaled, settings)["matrices"]}
    assert found["row", "trained"]["energy_ratio"] == pytest.approx(9, rel=0.2)
    assert found["column", "trained"]["energy_ratio"] < 1.5


def test_of_a_checkpoint(tmp_path: Path) -> None:
    result = task().probe("spectra", tmp_path, groups=4)
    layers = list(dict.fromkeys(row["layer"] for row in result.tables["groups"]))
    assert len(layers) == 13 and layers[0] == "encoder.layer.0.attention.self.query" and layers[-1] == "pooler.dense"
    from transformers import BertModel

    weight = BertModel.from_pretrained(task().model).encoder.layer[1].output.dense.weight.detach().double()
    rows = [
        row
        for row in result.tables["groups"]
        if (row["layer"], row["axis"], row["matrix"]) == ("encoder.layer.1.output.dense", "column", "trained")
    ]
    assert [row["mean_eigenvalue"] for row in rows] == pytest.approx(
        [float(part.square().sum()) / part.shape[1] for part in weight.split(10, dim=1)]
    )
    numbers = result.verdict.numbers
    assert numbers["num_matrices"] == 13 and numbers["num_compared"] == 26
    trained = [row["energy_ratio"] for row in result.tables["matrices"] if row["matrix"] == "trained"]
    assert numbers["worst_ratio"] == pytest.approx(max(trained))
    assert numbers["num_within_bound"] == sum(ratio <= 2 for ratio in trained)
    assert result.verdict.holds == (max(trained) <= 2)
    assert task().probe("spectra", tmp_path / "again", groups=4).tables == result.tables


def test_a_matrix_without_balance_is_found(tmp_path: Path) -> None:
    scaled = matrix(32, 40)
    scaled[8:16] *= 2
    scaled[16:24] = 0
    save_file({"a.weight": matrix(32, 40), "b.weight": scaled, "b.bias": torch.zeros(32)}, tmp_path / "m.safetensors")
    result = run("spectra", str(tmp_path / "m.safetensors"), out=tmp_path / "out", groups=4, axes=("row",), figure=False)
    assert result.verdict.holds is False
    assert (
        result.verdict.sentence.startswith("does not hold: in 1 of 2 cuts into 4 groups")
        and "rows of b)" in result.verdict.said
    )
    assert result.verdict.numbers["worst_ratio"] is None  # infinite
    assert json.loads((tmp_path / "out" / "probe.json").read_text())["verdict"]["numbers"]["worst_layer"] == "b"


_PEAK = f"""
import sys
from paring.cli.main import main
import torch, paring.cli.probe, paring.probe.kinds.spectra, paring.delta.checkpoint.read
torch.set_num_threads(1)
torch.linalg.eigvalsh(torch.eye(300, dtype=torch.float64))  # what is loaded with the first one
{WATCH}
code = main(sys.argv[1:])
{TELL}
sys.exit(code)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc/self/status says how much memory is taken")
def test_the_process_holds_one_matrix_at_a_time(tmp_path: Path) -> None:
    count, one = 40, matrix(128, 8192)
    save_file({f"layers.{i}.weight": one + i for i in range(count)}, tmp_path / "m.safetensors")
    given = ["probe", "spectra", str(tmp_path / "m.safetensors"), "--out", str(tmp_path / "out"), "--no-figure"]
    given += ["--axes", "row", "--groups", "4"]
    done = subprocess.run([sys.executable, "-c", _PEAK, *given], capture_output=True, text=True, check=True)
    peak = told(done.stdout)
    num_bytes = 4 * one.numel()
    assert num_bytes < peak < 12 * num_bytes < count * num_bytes / 3  # in doubles, and beside its controls
    assert len(json.loads((tmp_path / "out" / "probe.json").read_text())["verdict"]["numbers"]) > 3


def matrices(path: Path, **given: object) -> tuple[dict[str, tuple[int, int]], tuple[str, ...]]:
    with Bench(Subject(model=str(path), **given)) as bench:  # type: ignore[arg-type]
        found, notes = stored_matrices(bench.checkpoint, bench.subject)
        for one in found:
            assert one.read(bench.checkpoint).shape == (one.out, one.inp)
        return {one.layer: (one.out, one.inp) for one in found}, notes


def test_matrices_by_class(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=6))
    model.save_pretrained(tmp_path)
    found, notes = matrices(tmp_path)
    assert notes == () and found["transformer.h.0.mlp.c_fc"] == (32, 8)  # stored [in, out]
    assert len(found) == 4 and "lm_head" not in found
    assert list(matrices(tmp_path, targets=("c_attn",))[0]) == ["transformer.h.0.attn.c_attn"]
    with pytest.raises(ValueError, match="targets: 'c_atn' matches no module"):
        matrices(tmp_path, targets=("c_atn",))


def test_matrices_of_fused_experts(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        num_local_experts=3, vocab_size=16,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    model.save_pretrained(tmp_path / "apart")  # an expert a tensor, as Mixtral is published
    found, notes = matrices(tmp_path / "apart")
    assert sum(shape == (8, 12) for shape in found.values()) == 3 and "told by the names" in notes[0]  # down projections
    (tmp_path / "fused").mkdir()
    config.save_pretrained(tmp_path / "fused")
    config_file = tmp_path / "fused" / "config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"architectures": ["MixtralForCausalLM"]}))
    save_file({n: t.clone() for n, t in model.state_dict().items()}, tmp_path / "fused" / "model.safetensors")
    with Bench(Subject(model=str(tmp_path / "fused"))) as bench:
        experts = [m for m in stored_matrices(bench.checkpoint, bench.subject)[0] if m.expert is not None]
        assert len(experts) == 6
        for one in experts:
            name, _, number = one.layer.removesuffix("]").partition("[")
            assert one.expert == int(number)
            assert torch.equal(one.read(bench.checkpoint), model.get_parameter(name)[int(number)])


def test_matrices_by_name(tmp_path: Path) -> None:
    tensors = {
        "net.0.weight": torch.ones(4, 3, 2, 2),
        "net.10.weight": torch.ones(5, 4),
        "net.2.weight": torch.ones(4, 4),
        "net.2.bias": torch.ones(4),
        "wte.weight": torch.ones(9, 4),
        "classifier.weight": torch.ones(2, 4),
    }
    torch.save(tensors, tmp_path / "m.pt")
    found, notes = matrices(tmp_path / "m.pt")
    assert list(found) == ["net.0", "net.2", "net.10"] and found["net.0"] == (4, 12)
    assert "told by the names" in notes[0] and "left out as embeddings and heads: classifier, wte" in notes[0]
    assert list(matrices(tmp_path / "m.pt", targets=("net.*",), exclude=("net.2",))[0]) == ["net.0", "net.10"]
    with pytest.raises(ValueError, match="exclude: 'nett' matches no matrix"):
        matrices(tmp_path / "m.pt", exclude=("nett",))


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_file({"norm.weight": torch.ones(4), "wte.weight": torch.ones(9, 4)}, tmp_path / "none.safetensors")
    save_file({"a.weight": torch.ones(4, 4, dtype=torch.int8)}, tmp_path / "int8.safetensors")
    for arguments, expected in (
        ((str(tmp_path / "none.safetensors"),), "has no target matrices"),
        ((str(tmp_path / "int8.safetensors"),), "'a.weight' of .* is torch.int8 .quantised.; expected float32"),
        ((str(task().model), "--groups", "25"), r"groups is 25; layer 'encoder.layer.0.* has 24 rows .* lower --groups"),
        ((str(task().model), "--groups", "1"), "groups is 1; expected a whole number, at least 2"),
        ((str(task().model), "--bound", "1"), "bound is 1.0; expected a ratio above 1"),
        ((str(task().model), "--seeds", "1", "1"), "seeds is .1, 1.; expected at least 1 whole number"),
    ):
        assert main(["probe", "spectra", *arguments, "--out", str(tmp_path / "out"), "--no-figure"]) == 2
        assert re.search(expected, capsys.readouterr().err)
        assert not (tmp_path / "out").exists()


def test_the_command_and_its_figure(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    assert main([*task().command("spectra", tmp_path / "out"), "--groups", "3", "--controls", "gaussian"]) == 0
    assert "Spectral balance: " in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert record["figures"] == ["figure.svg", "figure.png"]
    for name in record["figures"]:
        assert (tmp_path / "out" / name).stat().st_size > 5000
    first = (tmp_path / "out" / "figure.svg").read_bytes()
    assert main([*task().command("spectra", tmp_path / "out"), "--groups", "3", "--controls", "gaussian"]) == 0
    assert (tmp_path / "out" / "figure.svg").read_bytes() == first


def test_the_figure_shows_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from paring.probe.plots.spectra import figure

    result = task().probe("spectra", tmp_path, groups=3)
    left = figure(result.record, result.tables).axes[0]
    shown = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    rows = [r for r in result.tables["matrices"] if r["axis"] == "row" and r["matrix"] == "trained"]
    assert shown["trained"] == sorted(r["energy_ratio"] for r in rows)


def test_memory_is_that_of_a_matrix(tmp_path: Path) -> None:
    """Of a checkpoint of many matrices: what is read is let go."""
    sizes = {f"net.{i}.weight": matrix(256, 256) for i in range(6)}
    save_file(sizes, tmp_path / "m.safetensors")
    import gc

    alive: list[int] = []
    with Bench(Subject(model=str(tmp_path / "m.safetensors"))) as bench:
        from paring.probe.kinds.spectra import plan

        with plan(bench, Settings()) as planned:
            for cell in planned.cells:
                planned.measure(cell)
                gc.collect()
                tensors = (o for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and not isinstance(o, nn.Parameter))
                alive.append(sum(t.numel() for t in tensors if t.shape == (256, 256)) - sum(t.numel() for t in sizes.values()))
    assert max(alive) <= 0
