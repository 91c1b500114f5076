"""The merge benchmark's own arithmetic, on tiny sizes. No time is judged."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from paring.delta.checkpoint.read import open_checkpoint


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import fuse_speed

    return fuse_speed


def test_four_fine_tunes_of_one_base(bench: ModuleType, tmp_path: Path) -> None:
    from delta_cost.checkpoints import SIZES, make

    paths = make(tmp_path, SIZES["tiny"], num_tuned=4)
    base, *tuned = map(open_checkpoint, paths)
    name = "model.layers.0.mlp.up_proj.weight"
    taus = [t.tensor(name).float() - base.tensor(name).float() for t in tuned]
    assert len(taus) == 4 and all(0 < tau.std() < 1e-3 for tau in taus)
    cosines = [torch.cosine_similarity(a.view(-1), b.view(-1), dim=0) for a in taus for b in taus if a is not b]
    assert max(cosines) < 0.1
    (tmp_path / "one").mkdir()
    _, alone = make(tmp_path / "one", SIZES["tiny"])
    assert torch.equal(open_checkpoint(alone).tensor(name), tuned[0].tensor(name))  # as the delta benchmark has it


def test_how_far_two_outputs_are_apart(bench: ModuleType, tmp_path: Path) -> None:
    from fuse_cost.commands import difference

    for name, value in (("base", 1.0), ("ours", 3.5), ("theirs", 3.0)):
        save_file({"a": torch.full((2, 2), value), "b": torch.ones(4)}, tmp_path / f"{name}.safetensors")
    found = difference(*(tmp_path / f"{n}.safetensors" for n in ("base", "ours", "theirs")))
    assert found == 0.25


def one(wall_s: float, floor_s: float, mergekit_s: float = 0) -> dict[str, Any]:
    found: dict[str, Any] = {"floor_read_s": floor_s / 4, "floor_write_s": floor_s * 3 / 4}
    found["paring"] = {"wall_s": wall_s, "cpu_s": 2 * wall_s, "anonymous_bytes": 700_000_000}
    if mergekit_s:
        found |= {"mergekit": {"wall_s": mergekit_s, "anonymous_bytes": 2_000_000_000}, "difference": 0.03}
    return found


def test_ratios_are_taken_round_by_round(bench: ModuleType) -> None:
    from fuse_cost import report

    rounds = [{"ties": one(4, 1, 80)}, {"ties": one(10, 2)}, {"ties": one(18, 2, 90)}]
    settings = {"size": "250M", "methods": ["ties"], "largest_bytes": 60_000_000, "num_parameters": 250_000_000}
    record = {"rounds": rounds, "settings": settings}
    summary = record["summary"] = report.summarize(record)
    assert summary["ties"]["ratios"] == [4, 5, 9] and summary["ties"]["ratio"] == 5 and summary["ties"]["wall_s"] == 10
    assert summary["ties"]["faster"] == 12.5 and summary["ties"]["mergekit_s"] == 85
    verdicts = {v["what"]: v for v in report.verdicts(record)}
    assert {what: v["met"] for what, v in verdicts.items()} == {
        "ties: wall / floor": True,
        "ties: peak anonymous bytes": False,  # 700 MB of 680
        "ties: time / mergekit's": True,
    }
    assert verdicts["ties: peak anonymous bytes"]["limit"] == 680_000_000
    settings["size"] = "1B"
    assert report.verdicts(record)[0]["limit"] == 5.0


def test_everything_once(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--sizes", "tiny", "--methods", "linear,ties", "--rounds", "1", "--out", str(tmp_path / "out")]
    options += ["--work", str(tmp_path / "work")]
    assert bench.main(options) == 0
    assert not (tmp_path / "work").exists()
    record = json.loads((tmp_path / "out" / "fuse_speed_tiny.json").read_text())
    found = record["rounds"][0]["ties"]
    assert found["input_bytes"] > 4.9 * found["output_bytes"] > 0 and found["paring"]["wall_s"] > found["paring"]["work_s"] > 0
    assert found["paring"]["anonymous_bytes"] > 50e6 and "mergekit" not in found
    capsys.readouterr()
    assert bench.main([*options, "--table"]) == 0
    assert "| ties |" in capsys.readouterr().out
    assert bench.main(options) == 0
    assert "finished on" in capsys.readouterr().out


def test_an_environment_without_mergekit(bench: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no mergekit"):
        bench.main(["--sizes", "tiny", "--mergekit", sys.executable, "--out", str(tmp_path), "--work", str(tmp_path / "work")])


def test_where_mergekit_runs(bench: ModuleType) -> None:
    args = bench.parse(["--mergekit", "python", "--methods", "ties,sce", "--rounds", "2"])
    assert bench.beside(args, "250M") == {"ties": 1, "sce": 1} and bench.beside(args, "1B") == {"ties": 1}
    assert bench.beside(bench.parse([]), "250M") == {}


def test_a_merge_holds_outputs_and_no_inputs(bench: ModuleType, tmp_path: Path) -> None:
    """Of four models of two tensors of 34 MB each, no more than the two outputs lie in memory."""
    from delta_cost.processes import measured
    from fuse_cost.commands import _PARING, configuration

    paths = [tmp_path / f"{i}.safetensors" for i in range(5)]
    base = torch.randn(4096, 4096).mul_(0.02)
    for i, path in enumerate(paths):
        tuned = base + 1e-4 * i * torch.randn(4096, 1)
        save_file({"a": tuned.bfloat16(), "b": tuned.flip(0).contiguous().bfloat16()}, path)
    (tmp_path / "merge.yml").write_text(json.dumps(configuration("ties", paths)))
    nothing = [sys.executable, "-c", _PARING.replace("code = main(sys.argv[1:])", "import paring.fuse.engine; code = 0")]
    start = measured(nothing, {}).anonymous_bytes
    took = measured([sys.executable, "-c", _PARING, "fuse", str(tmp_path / "merge.yml"), str(tmp_path / "out")], {})
    assert 30e6 < took.anonymous_bytes - start < 2 * 33.6e6 + 100e6  # pieces and threads' own beside the outputs
