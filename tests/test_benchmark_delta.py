"""The delta benchmark's own arithmetic, on tiny sizes. No time is judged."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import zstandard

from paring.delta.checkpoint.read import open_checkpoint


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import delta

    return delta


def test_the_checkpoints_are_as_described(bench: ModuleType, tmp_path: Path) -> None:
    from delta_cost.checkpoints import LEAST, MOST, SIZES, make

    size = SIZES["tiny"]
    base, tuned = map(open_checkpoint, make(tmp_path, size))
    assert {n: tuple(base.info(n).shape) for n in base.names} == size.shapes()
    assert sum(t.numel() for t in base.values()) == size.num_parameters == 164_672
    assert size.largest_bytes == 2 * 1000 * 64 == max(base.info(n).nbytes for n in base.names)
    embedding = "model.embed_tokens.weight"
    changed = (base[embedding] != tuned[embedding]).any(1).double().mean()
    assert 0.2 < changed < 0.3
    for name in base.names:
        difference = tuned[name].double() - base[name].double()
        if "norm" in name:
            assert not difference.any()
        elif name != embedding:
            assert LEAST / 3 < difference.std() < 3 * MOST  # rounding adds to it
            assert 0.018 < base[name].double().std() < 0.022
    written = (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns
    make(tmp_path, size)
    assert (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns == written
    assert {SIZES[n].num_parameters for n in ("250M", "1B")} == {251_169_792, 990_455_808}


def test_memory_and_failures_of_a_process(bench: ModuleType) -> None:
    from delta_cost.processes import measured

    work = (
        "import time; time.sleep(0.05); print(time.monotonic()); {}; time.sleep(0.1); print(time.monotonic()); time.sleep(0.05)"
    )
    held = measured([sys.executable, "-c", work.format("a = b'x' * 50_000_000; print('done')")], {})
    plain = measured([sys.executable, "-c", work.format("a = 1")], {})
    assert 49e6 < held.anonymous_bytes - plain.anonymous_bytes < 60e6
    assert held.around_s > 0.1 and held.work_s > 0.1 and held.cpu_s > 0
    with pytest.raises(RuntimeError, match="ended with 3: no such thing"):
        measured(
            [sys.executable, "-c", "import os, sys; print('no such thing'); sys.exit(int(os.environ['CODE']))"], {"CODE": "3"}
        )


def test_the_floor_writes_as_much_and_leaves_nothing(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from delta_cost import floor

    source = tmp_path / "in"
    source.write_bytes(b"x" * 3_000_000)
    sizes = []
    monkeypatch.setattr(floor.os, "fsync", lambda fd: sizes.append(floor.os.fstat(fd).st_size))
    read_s, write_s = floor.floor_s([source], tmp_path / "out", 2_500_000)
    assert sizes == [2_500_000] and read_s > 0 and write_s > 0
    assert list(tmp_path.iterdir()) == [source]


def test_entropy_and_what_others_store(bench: ModuleType) -> None:
    from delta_cost.sizes import entropy, others

    assert entropy(0.5) == 1 and entropy(0.0) == entropy(1.0) == 0
    assert math.isclose(entropy(0.25), 0.8112781244591328)
    dense = torch.zeros(1000)
    dense[::10] = torch.arange(1, 101) / 7
    found = others(dense, 100)
    assert (found["coo_int32_fp32"], found["coo_int32_fp16"]) == (6.4, pytest.approx(4.8))
    assert found["bitmask_fp16"] == pytest.approx(1 + 1.6)
    raw = dense.bfloat16().view(torch.int16).numpy().tobytes()
    assert found["zstd_dense_bf16"] == 8 * len(zstandard.ZstdCompressor(level=3).compress(raw)) / 1000


def test_bits_of_a_pruned_task_vector(bench: ModuleType) -> None:
    from delta_cost import sizes

    base, tuned = sizes.synthetic(width=64, blocks=1)
    rows = sizes.pruned(base, {n: tuned[n] - t for n, t in base.items()})
    assert [r["keep"] for r in rows] == list(sizes.KEEPS)
    for row in rows:
        assert row["numel"] == 3 * 4 * 64 * 64 and row["count"] == round(row["keep"] * row["numel"])
        assert row["sign"] < row["int4"] < row["int8"] < row["fp16"] < row["fp32"] < row["coo_int32_fp32"]
        assert row["file_fp16"] > row["fp16"]  # the header


def test_exact_sizes(bench: ModuleType) -> None:
    from delta_cost import sizes

    base, tuned = sizes.synthetic(width=64, blocks=1)
    fp32, bf16 = sizes.exact(base, tuned)
    assert fp32["checkpoint_bytes"] == fp32["plain_difference_bytes"] == 4 * 3 * 4 * 64 * 64 == 2 * bf16["checkpoint_bytes"]
    assert fp32["changed"] > 0.99 and 0.5 < bf16["changed"] < 0.9
    assert fp32["plain_difference_wrong"] == 0  # differences much smaller than the weights are exact
    assert bf16["exact_delta_bytes"] < bf16["zstd_3_of_plain_difference_bytes"] < bf16["checkpoint_bytes"]


def test_ratios_are_taken_round_by_round(bench: ModuleType) -> None:
    from delta_cost import report
    from delta_cost.commands import COMMANDS

    def one(start_s: float, work_s: float, floor_s: float) -> dict:
        command = {"around_s": start_s, "work_s": work_s, "cpu_s": 1.0, "anonymous_bytes": 5, "floor_read_s": floor_s / 4}
        command |= {"floor_write_s": 3 * floor_s / 4, "input_bytes": 1, "output_bytes": 2}
        return {"start": {"cpu_s": 0.5, "anonymous_bytes": 3}} | dict.fromkeys(COMMANDS, command)

    record = {"rounds": [one(1, 2, 1), one(2, 6, 2), one(1, 8, 2)], "settings": {"largest_bytes": 100_000_000}}
    summary = record["summary"] = report.summarize_commands(record)
    assert summary["diff"]["ratios"] == [2, 3, 4] and summary["diff"]["ratio"] == 3
    assert summary["apply"]["work_s"] == 6 and summary["around_s"] == 1 and summary["apply"]["cpu_beyond_start_s"] == 0.5
    verdicts = report.command_verdicts(record)
    assert [v["met"] for v in verdicts] == [True] * 8 and verdicts[4]["limit"] == 700_000_000
    swaps = [{"weights": "fp32", "places": "blocks", "num_entries": 4, "swap_s": [4, 6], "write_s": [2, 1], "same_bits": True}]
    assert report.summarize_swaps(swaps)[0]["ratio"] == 4
    assert report.swap_verdicts({"summary": report.summarize_swaps(swaps)})[0]["met"] is False


def test_everything_once(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from delta_cost import sizes

    monkeypatch.setattr(sizes, "states", lambda: (*sizes.synthetic(width=64, blocks=1), "synthetic"))
    options = [
        "--sizes",
        "tiny",
        "--rounds",
        "1",
        "--swaps",
        "2",
        "--out",
        str(tmp_path / "out"),
        "--work",
        str(tmp_path / "work"),
    ]
    assert bench.main(options) == 0
    assert not (tmp_path / "work").exists()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"delta_{n}.json" for n in ("commands_tiny", "sizes", "swaps")}
    record = json.loads((tmp_path / "out" / "delta_commands_tiny.json").read_text())
    assert record["same_bits"] is True and len(record["rounds"]) == 1
    assert record["rounds"][0]["diff plain"]["output_bytes"] > record["rounds"][0]["diff"]["output_bytes"]
    assert record["rounds"][0]["apply"]["output_bytes"] == record["rounds"][0]["fingerprint"]["input_bytes"]
    swaps = json.loads((tmp_path / "out" / "delta_swaps.json").read_text())
    assert all(s["same_bits"] for s in swaps["summary"]) and len(swaps["summary"]) == 4
    capsys.readouterr()
    assert bench.main([*options, "--table"]) == 0
    told = capsys.readouterr().out
    assert "| diff |" in told and "| diff --compression none |" in told
    assert bench.main(options) == 0
    assert "finished on" in capsys.readouterr().out


def test_a_stopped_run_continues(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from delta_cost import commands, record

    ended = {c: {"around_s": 1.0, "work_s": 2.0} for c in (*commands.COMMANDS, "start")}
    calls = []
    monkeypatch.setattr(commands, "make", lambda folder, size: (folder / "base", folder / "tuned"))
    monkeypatch.setattr(commands, "same_bits", lambda *_: True)

    def one_round(base: Path, tuned: Path, folder: Path, number: int) -> dict:
        calls.append(number)
        if calls == [0, 0, 1]:
            raise KeyboardInterrupt
        return ended

    monkeypatch.setattr(commands, "one_round", one_round)
    path = tmp_path / "delta_commands_tiny.json"
    with pytest.raises(KeyboardInterrupt):
        commands.run("tiny", 3, tmp_path, path)
    found = commands.run("tiny", 3, tmp_path, path)
    assert calls == [0, 0, 1, 1, 2] and len(found["rounds"]) == 3  # the first only fills the page cache
    record.finish(path, found)
    assert not path.with_suffix(".partial.json").exists()
