"""The demo: its methods give the model back, its words come from its numbers, its files are whole."""

import copy
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import assert_same_bits, bits
from paring import demo
from paring.cli.main import main
from paring.delta.inspect import summarise
from paring.demo.methods import METHODS
from paring.demo.picture import picture
from paring.demo.table import conclusions, table
from paring.tasks.digits import fit, load_splits, named_shifts
from paring.tasks.digits.vit import new_model

# Slices of rank 8, in columns: each of four blocks has four layers with 96 rows in attention, then 384 and 96; and the head.
SLICED = 8 * 4 * (4 * 96 + 384 + 96) + 970
ALL = ["turned", "checkered", "scrambled", "outlined", "unwoven"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """A few steps of a small model gain nothing from more, and on a busy machine lose much."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole run on one task, and where it went."""
    out = tmp_path_factory.mktemp("demo") / "made" / "when-missing"
    return demo.run(out, steps=3, tasks=["checkered"], pretraining_steps=3) | {"out": out}


def test_the_files_are_there_and_whole(record: dict[str, Any]) -> None:
    out: Path = record["out"]
    assert sorted(path.name for path in out.iterdir()) == ["deltas", "demo.json", "demo.png", "report.html"]
    read = json.loads((out / "demo.json").read_text())
    assert set(read) == set(record) - {"out"}
    assert read["conclusions"] == record["conclusions"]
    png = (out / "demo.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and png.rstrip().endswith(b"IEND\xaeB`\x82")


def test_the_numbers_of_a_run(record: dict[str, Any]) -> None:
    size = record["base"]["num_weights"]
    results = {result["method"]: result for result in record["results"]}
    trained = {name: result["num_trainable"] for name, result in results.items()}
    assert trained == {"head": 970, "static": SLICED, "moving": SLICED, "full": size}
    for name, result in results.items():
        path = record["out"] / "deltas" / f"checkered-{name}.delta.safetensors"
        assert result["kept_bytes"] == path.stat().st_size and result["delta"] == f"checkered-{name}"
        if name != "full":  # three steps are too few for a slice to move; where fp32 steps are too small, nothing is kept
            assert 0.9 * trained[name] < sum(r.kept for r in summarise(path).rows) <= trained[name]
    bank = record["bank"]
    assert bank["same_accuracy"] == bank["num_deltas"] == 5
    (slim,) = record["slim"]["results"]
    small = record["out"] / "deltas" / "checkered-slim.delta.safetensors"
    assert slim["num_bytes"] == small.stat().st_size < slim["of_bytes"] == results["full"]["kept_bytes"]
    assert sum(r.kept for r in summarise(small).rows) == -(-size // 100) and record["slim"]["keep"] == 0.01
    assert 0 <= slim["test_accuracy"] <= 1 and 0 <= slim["magnitude_accuracy"] <= 1
    assert bank["bytes"] == 4 * size + sum(r["kept_bytes"] for r in results.values()) + slim["num_bytes"]
    assert bank["checkpoint_bytes"] == 5 * 4 * size
    for result in results.values():
        assert [step for step, _ in result["curve"]] == [0, 3]
        assert 0 <= result["test_accuracy"] <= 1
        assert result["seconds"] > 0
        assert result["curve"][0] == results["full"]["curve"][0]  # all start from the same weights
    assert record["base"]["bitwise_intact"] is True
    assert record["splits"] == {"train": 900, "calibration": 256, "validation": 256, "test": 385}
    assert {"paring", "torch", "transformers", "python"} <= set(record["versions"])


def test_two_runs_give_the_same_in_processes_too(record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    again = demo.run(tmp_path, steps=3, tasks=["checkered"], pretraining_steps=3, workers=2)
    for one, other in zip(record["results"], again["results"], strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    assert again["slim"] == record["slim"]
    printed = capsys.readouterr().out
    assert table(again) in printed
    assert all(line in printed for line in again["conclusions"])
    assert str(tmp_path / "demo.png") in printed
    assert printed.splitlines()[-1].startswith(f"Wrote {tmp_path / 'report.html'}: ")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_the_model_back(name: str) -> None:
    model = new_model(0)
    frozen = model.vit.embeddings.cls_token
    frozen.requires_grad_(False)
    before, flags = bits(model), [p.requires_grad for p in model.parameters()]

    def tune(fail: bool) -> None:
        with METHODS[name].prepare(model) as tuning:
            fit(model, tuning.parameters, load_splits()["train"], steps=2, rate=1e-2, seed=0, after_step=tuning.after_step)
            assert tuning.num_trainable == sum(p.numel() for p in tuning.parameters)
            assert not bits(model)["classifier.weight"].equal(before["classifier.weight"])
            if fail:
                raise RuntimeError("in the middle")

    tune(fail=False)
    assert_same_bits(bits(model), before)
    with pytest.raises(RuntimeError, match="in the middle"):
        tune(fail=True)
    assert_same_bits(bits(model), before)
    assert [p.requires_grad for p in model.parameters()] == flags


def test_only_the_head_is_trained() -> None:
    model = new_model(0)
    before = bits(model)
    with METHODS["head"].prepare(model) as tuning:
        fit(model, tuning.parameters, load_splits()["train"], steps=1, rate=1e-2, seed=0)
        changed = {name for name, tensor in bits(model).items() if not tensor.equal(before[name])}
        assert all(p.grad is None for p in model.vit.parameters())
    assert changed == {"classifier.weight", "classifier.bias"}


def made_up() -> dict[str, Any]:
    """A record of two tasks with round numbers."""
    numbers = {
        "head": (10, 40, (0.5, 0.3)),
        "static": (50, 200, (0.7, 0.7)),
        "moving": (50, 400, (0.7, 0.8)),
        "full": (1000, 4000, (0.8, 0.8)),
    }
    return {
        "settings": {"steps": 20},
        "splits": {"calibration": 256},
        "slim": {
            "keep": 0.01,
            "results": [
                {"test_accuracy": 0.7, "magnitude_accuracy": 0.1, "num_bytes": 30_000, "of_bytes": 1_000_000},
                {"test_accuracy": 0.8, "magnitude_accuracy": 0.3, "num_bytes": 50_000, "of_bytes": 2_000_000},
            ],
        },
        "base": {"num_weights": 1000, "bitwise_intact": True},
        "bank": {
            "num_deltas": 8,
            "same_accuracy": 8,
            "bytes": 13_280_000,
            "checkpoint_bytes": 32_000_000,
            "median_swap_seconds": 0.0012,
        },
        "tasks": [{"name": "turned", "untuned_test_accuracy": 0.1}, {"name": "outlined", "untuned_test_accuracy": 0.2}],
        "methods": [{"name": name, "label": METHODS[name].label} for name in numbers],
        "results": [
            {
                "task": task,
                "method": name,
                "test_accuracy": accuracies[i],
                "num_trainable": trained,
                "kept_bytes": kept,
                "seconds": 1.0 + i,
                "curve": [(0, 0.1), (20, accuracies[i])],
            }
            for i, task in enumerate(("turned", "outlined"))
            for name, (trained, kept, accuracies) in numbers.items()
        ],
    }


def test_the_table() -> None:
    assert table(made_up()).splitlines() == [
        "test accuracy     turned  outlined   mean  entries trained  bytes to keep  seconds",
        "----------------------------------------------------------------------------------",
        "not tuned          0.100     0.200  0.150                0              0",
        "head only          0.500     0.300  0.400               10             40      1.5",
        "static slices      0.700     0.700  0.700               50            200      1.5",
        "moving slices      0.700     0.800  0.750               50            400      1.5",
        "full fine-tuning   0.800     0.800  0.800            1,000          4,000      1.5",
        "entries trained: at any one time, of 1,000. bytes to keep: the delta file. seconds: training, a task.",
    ]


def test_the_conclusions_are_computed() -> None:
    assert conclusions(made_up()) == [
        "Static slices reach 87.5% of full fine-tuning's mean accuracy (0.700 of 0.800) while training 5.0% of its entries "
        "at a time, and keep 5.0% of its bytes.",
        "Moving slices reach 93.8% of full fine-tuning's mean accuracy (0.750 of 0.800) while training 5.0% of its entries "
        "at a time, and keep 10.0% of its bytes.",
        "Head only reaches 50.0% (0.400) with 1.0% of the entries.",
        "Moving the slices is better than leaving them in place on 1 of 2 tasks, equal on 1; mean difference +0.050.",
        "Slim: 1% of a full fine-tune's entries, fitted on 256 calibration images, keep 93.8% of its mean accuracy in 40 kB "
        "instead of 1500 kB; those of largest magnitude alone keep 25.0%.",
        "Back from a bank of 8 delta files on one base, every one gives the accuracy it had. Base and deltas take 13.3 MB, "
        "as many checkpoints would take 32.0 MB; a swap takes 1.2 ms.",
        "After all 8 runs on one model, its base is bitwise as it was.",
    ]


def test_the_conclusions_do_not_flatter() -> None:
    worse = copy.deepcopy(made_up())
    worse["base"]["bitwise_intact"] = False
    worse["bank"]["same_accuracy"] = 7
    for result in worse["results"]:
        if result["method"] == "moving":
            result["test_accuracy"] = 0.4
    said = conclusions(worse)
    assert said[1].startswith("Moving slices reach 50.0%")
    assert said[3].endswith("on 0 of 2 tasks; mean difference -0.300.")
    assert "only 7 of them give" in said[5]
    assert "NOT" in said[6]


def test_the_picture_draws_every_task() -> None:
    def width(png: bytes) -> int:
        return int.from_bytes(png[16:20], "big")

    one, two, five = (picture(made_up(), named_shifts(list(names))) for names in (ALL[:1], ["turned", "outlined"], ALL))
    assert width(one) <= width(two) < width(five)


def test_bad_input_is_refused_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paring.demo.compare.pretrained", None)
    with pytest.raises(ValueError, match="tasks: got 'turn'"):
        demo.run(tmp_path / "out", tasks=["turn"])
    with pytest.raises(ValueError, match="demo: steps is 0; expected at least 1"):
        demo.run(tmp_path / "out", steps=0)
    with pytest.raises(ValueError, match="demo: workers is 0; expected at least 1"):
        demo.run(tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        demo.run(tmp_path / "file")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"picture needs the package 'matplotlib'.*pip install 'paring\[train,plot\]'"):
        demo.run(tmp_path / "out")


def test_the_command_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(demo, "run", lambda *args, **kwargs: calls.append((args, kwargs)))
    assert main(["demo"]) == 0
    assert (
        main(["demo", "--out", "here", "--steps", "7", "--seed", "2", "--workers", "3", "--tasks", "turned", "outlined"]) == 0
    )
    cores = len(os.sched_getaffinity(0))
    assert calls == [
        (("demo-out",), {"seed": 0, "steps": 300, "tasks": None, "workers": cores}),
        (("here",), {"seed": 2, "steps": 7, "tasks": ["turned", "outlined"], "workers": 3}),
    ]


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert main(["demo", "--out", str(tmp_path / "out"), "--tasks", "nonsense"]) == 2
    assert "got 'nonsense'" in capsys.readouterr().err


def test_a_model_of_the_digits_has_a_head_that_is_found() -> None:
    assert isinstance(new_model(0).classifier, nn.Linear)
    assert torch.equal(new_model(3).classifier.weight, new_model(3).classifier.weight)
