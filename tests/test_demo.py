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
from transformers import ViTForImageClassification

from conftest import assert_same_bits, bits
from paring import demo
from paring.cli.main import main
from paring.delta.files import load_delta, save_delta
from paring.delta.inspect import summarise
from paring.demo import compare, fusing
from paring.demo.conclusions import conclusions
from paring.demo.methods import METHODS
from paring.demo.picture import picture
from paring.demo.runs import each
from paring.demo.table import kept, table
from paring.tasks.digits import accuracy, fit, load_splits, named_shifts, pretrained
from paring.tasks.digits.vit import new_model
from paring.transfer.scores import h_score

# Slices of rank 8, in columns: each of four blocks has four layers with 96 rows in attention, then 384 and 96; and the head.
SLICED = 8 * 4 * (4 * 96 + 384 + 96) + 970
ALL = ["turned", "checkered", "scrambled", "outlined", "unwoven"]
TWO = ["checkered", "unwoven"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """A few steps of a small model gain nothing from more, and on a busy machine lose much."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole run on two tasks, and where it went."""
    out = tmp_path_factory.mktemp("demo") / "made" / "when-missing"
    return demo.run(out, steps=3, tasks=TWO, pretraining_steps=3) | {"out": out}


def test_the_files_are_there_and_whole(record: dict[str, Any]) -> None:
    out: Path = record["out"]
    assert sorted(path.name for path in out.iterdir()) == ["deltas", "demo.json", "demo.png", "fused", "report.html"]
    read = json.loads((out / "demo.json").read_text())
    assert set(read) == set(record) - {"out"}
    assert read["conclusions"] == record["conclusions"]
    png = (out / "demo.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and png.rstrip().endswith(b"IEND\xaeB`\x82")
    fused = sorted(str(path.relative_to(out / "fused")) for path in (out / "fused").rglob("*") if path.is_file())
    assert fused == ["config.json", *(f"heads/{task}.delta.safetensors" for task in TWO), "model.safetensors"]


def test_the_numbers_of_a_run(record: dict[str, Any]) -> None:
    size = record["base"]["num_weights"]
    results = {(result["task"], result["method"]): result for result in record["results"]}
    trained = {"head": 970, "static": SLICED, "moving": SLICED, "full": size}
    assert list(results) == [(task, name) for task in TWO for name in trained]
    for (task, name), result in results.items():
        path = record["out"] / "deltas" / f"{task}-{name}.delta.safetensors"
        assert result["num_trainable"] == trained[name]
        assert result["kept_bytes"] == path.stat().st_size and result["delta"] == f"{task}-{name}"
        if name != "full":  # three steps are too few for a slice to move; where fp32 steps are too small, nothing is kept
            assert 0.9 * trained[name] < sum(r.kept for r in summarise(path).rows) <= trained[name]
        assert [step for step, _ in result["curve"]] == [0, 3]
        assert 0 <= result["test_accuracy"] <= 1
        assert result["seconds"] > 0
        assert result["curve"][0] == results[task, "full"]["curve"][0]  # all start from the same weights
    bank = record["bank"]
    assert bank["same_accuracy"] == bank["num_deltas"] == 10
    for task, slim in zip(TWO, record["slim"]["results"], strict=True):
        small = record["out"] / "deltas" / f"{task}-slim.delta.safetensors"
        assert slim["num_bytes"] == small.stat().st_size < slim["of_bytes"] == results[task, "full"]["kept_bytes"]
        assert sum(r.kept for r in summarise(small).rows) == -(-size // 100) and record["slim"]["keep"] == 0.01
        assert 0 <= slim["test_accuracy"] <= 1 and 0 <= slim["magnitude_accuracy"] <= 1
    slims = sum(slim["num_bytes"] for slim in record["slim"]["results"])
    assert bank["bytes"] == 4 * size + sum(r["kept_bytes"] for r in results.values()) + slims
    assert bank["checkpoint_bytes"] == 10 * 4 * size
    assert record["base"]["bitwise_intact"] is True
    assert record["splits"] == {"train": 900, "calibration": 256, "validation": 256, "test": 385}
    assert {"paring", "torch", "transformers", "python"} <= set(record["versions"])
    assert [line["bytes"] for line in record["kept"]] == [
        2 * 4 * size,
        *(4 * size + sum(results[task, name]["kept_bytes"] for task in TWO) for name in ("full", "moving")),
        4 * size + slims,
        record["fused"]["num_bytes"],
    ]


def reached(model: nn.Module, task: str) -> float:
    test = named_shifts([task])[0](load_splits()["test"])
    return accuracy(model, test.images, test.labels)


def test_the_fused_model_is_what_its_files_hold(record: dict[str, Any]) -> None:
    fused, folder = record["fused"], record["out"] / "fused"
    base = pretrained(0, steps=3)
    tuned = {}
    for task in TWO:
        model = copy.deepcopy(base)
        load_delta(record["out"] / "deltas" / f"{task}-full.delta.safetensors", base=model).apply(model)
        tuned[task] = model
    for task, result in zip(TWO, fused["results"], strict=True):
        whole = ViTForImageClassification.from_pretrained(folder).eval()
        head = load_delta(folder / "heads" / f"{task}.delta.safetensors", base=whole)
        assert set(head.names) <= {"classifier.weight", "classifier.bias"}
        head.apply(whole)
        own = tuned[task].classifier.weight  # tuned with the body, for three steps
        assert not torch.equal(whole.classifier.weight, own)
        torch.testing.assert_close(whole.classifier.weight, own, atol=0.02, rtol=0)
        assert not torch.equal(whole.vit.layers[0].mlp.fc1.weight, base.vit.layers[0].mlp.fc1.weight)
        assert result["task"] == task and result["fitted"] == reached(whole, task)

        average = copy.deepcopy(tuned[task])
        with torch.no_grad():
            for name, tensor in average.vit.named_parameters():
                tensor.copy_(sum(dict(m.vit.named_parameters())[name] for m in tuned.values()) / len(tuned))
        assert result["average"] == pytest.approx(reached(average, task), abs=0.003)
    files = [folder / "model.safetensors", *(folder / "heads").iterdir()]
    assert fused["num_bytes"] == sum(path.stat().st_size for path in files)
    before, after = fused["distance"]
    assert 0 < after < before and fused["rate"] > 0 and fused["steps"] == 3


def test_the_path_ends_at_the_base_and_the_fine_tune(record: dict[str, Any]) -> None:
    found = record["transfer"]
    assert found["task"] == "checkered"
    assert [m["method"] for m in found["methods"]] == ["whole", "magnitude", "nps"]
    base, tuned = (found["ends"][name]["test"] for name in ("base", "tuned"))
    full = next(r for r in record["results"] if (r["task"], r["method"]) == ("checkered", "full"))
    assert base["original"] == record["base"]["upright_test_accuracy"]
    assert base["tuned"] == record["tasks"][0]["untuned_test_accuracy"]
    assert tuned["tuned"] == full["test_accuracy"]
    size = record["base"]["num_weights"]
    for m in found["methods"]:
        assert [place["lambda"] for place in m["path"]] == [i / 10 for i in range(13)]
        assert m["best"]["h"] == max(place["h"] for place in m["path"])
        assert m["num_kept"] <= (size if m["method"] == "whole" else -(-size // 10))
        assert m["test"]["lambda"] == m["best"]["lambda"]


def test_two_runs_give_the_same_in_processes_too(record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    again = demo.run(tmp_path, steps=3, tasks=TWO, pretraining_steps=3, workers=2)
    for one, other in zip(record["results"], again["results"], strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    assert again["fused"] | {"seconds": 0} == record["fused"] | {"seconds": 0}
    assert (again["slim"], again["transfer"], again["kept"]) == (record["slim"], record["transfer"], record["kept"])
    printed = capsys.readouterr().out
    assert table(again) in printed
    assert all(line in printed for line in again["conclusions"])
    assert f"{tmp_path / 'demo.png'}, {tmp_path}/deltas/ and {tmp_path}/fused/." in printed
    assert f"Wrote {tmp_path / 'report.html'}: " in printed.splitlines()[-2]


def test_of_one_task_nothing_is_fused(record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "deltas").symlink_to(record["out"] / "deltas")
    ended, intact = compare._ended(pretrained(0, steps=3), named_shifts(["checkered"]), tmp_path, 3, 0, 1)
    assert ended["fused"] is None and intact
    assert ended["transfer"] == record["transfer"]
    assert [path.name for path in tmp_path.iterdir()] == ["deltas"]
    assert "There is one task, so nothing to fuse." in capsys.readouterr().out


def test_a_fused_model_that_cannot_be_written_leaves_what_was_there(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fused").mkdir()
    (tmp_path / "fused" / "config.json").write_text("old")
    model = pretrained(0, steps=3)
    before, heads = bits(model), []

    def full(*arguments: Any, **_: Any) -> int:
        heads.append(arguments[1])
        if len(heads) == 2:
            raise OSError("the disk is full")
        return save_delta(*arguments)

    monkeypatch.setattr(fusing, "save_delta", full)
    with pytest.raises(OSError, match="the disk is full"):
        fusing.fused(model, named_shifts(TWO), tmp_path, record["out"] / "deltas", 2, 0)
    assert [path.name for path in tmp_path.rglob("*")] == ["fused", "config.json"]
    assert_same_bits(bits(model), before)


def test_a_part_that_changes_the_model_is_noticed() -> None:
    model = new_model(0)
    with torch.no_grad():
        found = list(each([lambda m: m.classifier.bias.sum(), lambda m: m.classifier.bias.add_(1).sum()], model, 1))
    assert [same for _, same in found] == [True, False]


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
    made: dict[str, Any] = {
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
                "kept_bytes": size,
                "seconds": 1.0 + i,
                "curve": [(0, 0.1), (20, accuracies[i])],
            }
            for i, task in enumerate(("turned", "outlined"))
            for name, (trained, size, accuracies) in numbers.items()
        ],
        "fused": {
            "num_bytes": 4_100_000,
            "steps": 20,
            "rate": 0.4,
            "results": [
                {"task": "turned", "fitted": 0.72, "average": 0.2, "ties": 0.1},
                {"task": "outlined", "fitted": 0.76, "average": 0.4, "ties": 0.1},
            ],
        },
        "transfer": {
            "task": "turned",
            "keep": 0.1,
            "chosen": {"method": "whole"},
            "ends": {"base": {"test": place(0.0, 0.1, 0.9)}, "tuned": {"test": place(1.0, 0.8, 0.2)}},
            "methods": [
                {"method": name, "path": [place(0.0, 0.1, 0.9), best, place(1.0, 0.8, 0.2)], "best": best, "test": best}
                for name, best in (("whole", place(0.5, 0.6, 0.6)), ("nps", place(0.4, 0.4, 0.6)))
            ],
        },
    }
    return made | {"kept": kept(made)}


def place(lam: float, tuned: float, original: float) -> dict[str, float]:
    return {"lambda": lam, "tuned": tuned, "original": original, "h": h_score(tuned, original)}


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
        "",
        "one model for all         turned  outlined   mean  of the fine-tunes'",
        "---------------------------------------------------------------------",
        "fine-tunes, a model each   0.800     0.800  0.800",
        "fitted merge               0.720     0.760  0.740               92.5%",
        "weight average             0.200     0.400  0.300               37.5%",
        "TIES                       0.100     0.100  0.100               12.5%",
        "",
        "kept of all 2 tasks                     bytes  mean test accuracy",
        "-----------------------------------------------------------------",
        "full fine-tunes, a checkpoint each  8,000,000               0.800",
        "base, deltas of full fine-tuning    4,008,000               0.800",
        "base, deltas of moving slices       4,000,800               0.750",
        "base, slim deltas                   4,080,000               0.750",
        "one fused model, a head each        4,100,000               0.740",
        "",
        "base + lambda * delta (turned)  lambda  test turned  test upright  H-score",
        "--------------------------------------------------------------------------",
        "the base                           0.0        0.100         0.900    0.180",
        "the fine-tune                      1.0        0.800         0.200    0.320",
        "whole                              0.5        0.600         0.600    0.600",
        "nps, keep 0.1                      0.4        0.400         0.600    0.480",
    ]
    alone = made_up() | {"fused": None}
    assert "one model for all" not in table(alone) and "fused model" not in str(kept(alone))


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
        "Fuse: the 2 full fine-tunes in one model, each with its own head, fitted in 20 steps on the calibration images "
        "without their labels, keep 92.5% of their mean accuracy (worst turned, 90.0%); merged without data 37.5% (weight "
        "average) and 12.5% (TIES).",
        "What 2 tasks take, and the mean accuracy: 8.00 MB as full fine-tunes, a checkpoint each (0.800); 4.01 MB as base, "
        "deltas of full fine-tuning (0.800); 4.00 MB as base, deltas of moving slices (0.750); 4.08 MB as base, slim deltas "
        "(0.750); 4.10 MB as one fused model, a head each (0.740).",
        "Transfer: on the way from the base to turned, whole at lambda 0.5 is the best for both: H-score 0.600 (turned 0.600, "
        "upright 0.600), where the base has 0.180 and the fine-tune 0.320; nps 0.480 (pruned to 10% where not whole).",
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
    worse["fused"]["rate"] = 0.0
    worse["transfer"]["chosen"]["method"] = "nps"
    said = conclusions(worse)
    assert said[1].startswith("Moving slices reach 50.0%")
    assert said[3].endswith("on 0 of 2 tasks; mean difference -0.300.")
    assert "the weight average, which 20 steps on the calibration images brought no nearer to the fine-tunes" in said[5]
    assert "nps at lambda 0.4 is the best for both: H-score 0.480" in said[7] and "; whole 0.600 (" in said[7]
    assert "only 7 of them give" in said[8]
    assert "NOT" in said[9]
    assert len(conclusions(made_up() | {"fused": None})) == len(said) - 1


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
    for i, (mine, named) in enumerate((("notes.txt", "notes.txt"), ("heads/plot.png", "plot.png"), ("mine/a", "mine/"))):
        path = tmp_path / f"out{i}" / "fused" / mine
        path.parent.mkdir(parents=True)
        path.write_text("")
        with pytest.raises(FileExistsError, match=f"holds {named}, which overwriting it would remove"):
            demo.run(tmp_path / f"out{i}")
        assert path.exists()
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
