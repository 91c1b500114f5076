"""The benchmark of a probe's memory on a tiny checkpoint: what it counts and writes."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import probe_memory

    return probe_memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc/PID/status says how much memory is taken")
def test_a_tiny_checkpoint(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["probe_memory", "--size", "tiny", "--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", given)
    assert bench.main() == 0
    rec = json.loads((tmp_path / "probe_memory_tiny.json").read_text())
    size = bench.SIZES["tiny"]
    assert rec["num_matrices"] == 7 and rec["settings"]["num_parameters"] == size.num_parameters
    assert 0 <= rec["checkpoint_bytes"] - 2 * size.num_parameters < 10_000
    assert 50e6 < rec["anonymous_bytes"] < 2e9 and rec["verdict"]["met"] is True  # Python and PyTorch are in it
    assert not (tmp_path / "work" / "tuned").exists()
    said = capsys.readouterr().out
    assert "7 matrices of a checkpoint of 0.0 GB" in said and "at most 2,000,000,000 bytes: met" in said
    monkeypatch.setattr(sys, "argv", [*given, "--report"])
    assert bench.main() == 0 and capsys.readouterr().out == said.splitlines()[-1] + "\n"
