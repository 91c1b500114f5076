"""``paring fuse`` with calibration rows: what is written is what was scored, each task keeps its head, and what is refused."""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    ViTForImageClassification,
)

import paring
from fusion_task import TASKS, Two, two
from paring.cli.main import main
from paring.fuse.config import read_config
from paring.fuse.engine import fuse
from paring.fuse.inputs import FuseError
from paring.fusion.groups import Group
from paring.recipes.fusion.named import Weights, tasks_of, with_weights
from paring.recipes.fusion.problem import _refuse_nothing_right
from paring.recipes.fusion.settings import FusionSettings
from paring.recipes.scoring import Scores
from paring.tasks.digits import accuracy, load_splits
from transfer_task import TURNED, Digits, digits, tuning


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def of() -> Two:
    return two()


def right(model: nn.Module, base: Path, rows: Path) -> float:
    """The accuracy of a text classifier, counted here."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    with rows.open(newline="") as file:
        every = list(csv.DictReader(file))
    hits = 0
    for row in every:
        inputs = tokenizer(row["text"], truncation=True, max_length=7, return_tensors="pt")
        with torch.no_grad():
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        hits += model.config.id2label[int(logits.argmax())] == row["label"]  # type: ignore[union-attr]
    return hits / len(every)


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "paring-fuse-search.json").read_text())


def test_two_tasks_with_heads_of_their_own(of: Two, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, journal = tmp_path / "merged", tmp_path / "search"
    command = ["fuse", str(of.config(tmp_path / "m.yml")), str(out), *of.options("calibration", "validation", "test")]
    command += ["--budget", "24", "--layer-groups", "2", "--search", str(journal)]
    assert main(command) == 0
    said, record = capsys.readouterr().out, read(out)
    # Never worse on calibration rows than what it began with, be it equal weights or the search without groups.
    equal, tasks, layers = record["tried"]
    assert tasks["search"]["starts"][equal["label"]] == min(tasks["search"]["starts"].values())
    assert tasks["search"]["score"] <= min(tasks["search"]["starts"].values())
    assert set(layers["search"]["starts"]) == {equal["label"], tasks["label"]}
    assert layers["search"]["score"] <= tasks["search"]["score"]
    assert [a["search"]["num_evaluations"] for a in record["tried"]] == [24, 24, 24]
    for a in record["tried"]:  # the shares are those of the scores
        shares = [a["scores"]["calibration"][t]["accuracy"] / record["tuned"]["calibration"][t]["accuracy"] for t in TASKS]
        assert a["shares"]["calibration"]["mean"] == pytest.approx(sum(shares) / 2)
        assert a["shares"]["calibration"]["worst"] == min(shares)
    assert tasks["shares"]["calibration"]["mean"] == pytest.approx(1 - tasks["search"]["score"])
    # Chosen on validation rows, and reported on test rows.
    chosen = next(a for a in record["tried"] if a["label"] == record["chosen"])
    assert chosen["shares"]["validation"]["mean"] == max(a["shares"]["validation"]["mean"] for a in record["tried"])
    assert [a for a in record["tried"] if "test" in a["scores"]] == [chosen]
    assert f"Wrote {out}: {record['chosen']}" in said

    # Each task's model, made of the merge and its head by another command, scores what was said.
    assert sorted(p.name for p in (out / "heads").iterdir()) == [f"{t}.delta.safetensors" for t in sorted(TASKS)]
    for task, labels in zip(TASKS, (["column", "neither", "row"], ["long", "short"]), strict=True):
        assert main(["apply", str(out), str(out / "heads" / f"{task}.delta.safetensors"), str(tmp_path / task)]) == 0
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / task).eval()
        assert sorted(model.config.id2label.values()) == labels
        for split in ("calibration", "validation", "test"):
            assert right(model, of.base, of.rows(task, split)) == chosen["scores"][split][task]["accuracy"]
        tuned = paring.load_delta(of.folder / task / "model.delta.safetensors")
        head = paring.load_delta(out / "heads" / f"{task}.delta.safetensors")
        assert not head.names and set(head.new) == set(tuned.new) and head.facts["task"] == task
        assert all(torch.equal(head.change(n).values, tuned.change(n).values) for n in head.new)
        assert head.facts["scores"]["test"] == chosen["scores"]["test"][task]["accuracy"]

    # The configuration beside it makes it again, without rows.
    assert main(["fuse", str(out / "paring-fuse.yml"), str(tmp_path / "again"), "--allow", "extra"]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    card = (out / "README.md").read_text()
    assert "## Weights found by search" in card and "each its own fine-tune" in card and "weight:" in card

    # The same command goes on with the journals, and writes the same; what it replaces was ours.
    before = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    lines = (journal / "weights" / "search.jsonl").read_bytes()
    assert main(command) == 2 and "is there already" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert (journal / "weights" / "search.jsonl").read_bytes() == lines
    assert {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []
    (out / "heads" / "notes.txt").write_text("mine")
    assert main([*command, "--overwrite"]) == 2 and (out / "heads" / "notes.txt").is_file()


def test_nps_prunes_each_then_searches_weights(of: Two, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "merged"
    config = of.config(tmp_path / "m.yml", "nps")
    command = ["fuse", str(config), str(out), *of.options("calibration", "validation")]
    assert main(["fuse", str(config), str(out), "--allow", "extra"]) == 2
    assert "nps searches on rows of the tasks; give --calibration NAME=FILE" in capsys.readouterr().err
    assert (
        main(
            [
                *command,
                "--budget",
                "10",
                "--keep",
                "0.2",
                "--subspaces",
                "layer",
                "--parts",
                "3",
                "--search",
                str(tmp_path / "s"),
            ]
        )
        == 0
    )
    assert {p.parent.name for p in (tmp_path / "s").rglob("search.jsonl")} == {*TASKS, "weights"}
    bank = tmp_path / "merged.pruned"
    for task in TASKS:
        whole, left = (
            paring.load_delta(p) for p in (of.folder / task / "model.delta.safetensors", bank / f"{task}.delta.safetensors")
        )
        entries = sum(whole.changes[n].shape.numel() for n in whole.names)
        assert sum(left.change(n).places.count for n in left.names) == -(-entries // 5)
        assert left.facts["method"] == "nps" and left.facts["keep"] == 0.2 and left.new == whole.new
    plain = yaml.safe_load((out / "paring-fuse.yml").read_text())
    assert plain["merge_method"] == "task_arithmetic"
    assert [m["model"] for m in plain["models"]] == [str(bank / f"{t}.delta.safetensors") for t in TASKS]
    record = read(out)
    chosen = next(a for a in record["tried"] if a["label"] == record["chosen"])
    assert [m["parameters"]["weight"] for m in plain["models"]] == [chosen["weights"][t]["all"] for t in TASKS]
    merged, base = load_file(out / "model.safetensors"), load_file(of.base / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    expected = base[name].clone()
    for task in TASKS:  # the sum, from the files
        expected += paring.load_delta(bank / f"{task}.delta.safetensors")[f"bert.{name}"] * chosen["weights"][task]["all"]
    torch.testing.assert_close(merged[name], expected)
    assert record["prune"] == "nps" and record["keep"] == 0.2
    for task in TASKS:
        assert main(["apply", str(out), str(out / "heads" / f"{task}.delta.safetensors"), str(tmp_path / task)]) == 0
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / task).eval()
        assert right(model, of.base, of.rows(task, "validation")) == chosen["scores"]["validation"][task]["accuracy"]


@pytest.mark.parametrize("method", ["ties", "dare_linear"])
def test_what_is_written_is_what_was_scored(of: Two, tmp_path: Path, method: str) -> None:
    """Thresholds, lambda, and draws: by a method's own means, with weights by layers and pruning in front."""
    out = tmp_path / "merged"
    config = of.config(tmp_path / "m.yml", method, parameters={"density": 0.5}, seed=3)
    more = ["--budget", "8", "--layer-groups", "2", "--objective", "worst", "--by", "loss", "--most", "3"]
    pruning = ["--prune", "rescaled", "--keep", "0.5"] if method == "ties" else []
    assert main(["fuse", str(config), str(out), *of.options("calibration", "validation"), *more, *pruning]) == 0
    record = read(out)
    assert record["objective"] == "worst" and record["by"] == "loss"
    last = record["tried"][-1]
    assert (last["lambda"] is not None) == (method == "ties")
    assert list(last["weights"]["subject"]) == ["layer 0", "layer 1", "outside"]
    # Whatever was chosen: written from the weights that were tried last, too.
    plain = yaml.safe_load((out / "paring-fuse.yml").read_text())
    read_back = read_config(out / "paring-fuse.yml")
    groups = [Group("0", ("encoder.layer.0.",)), Group("1", ("encoder.layer.1.",)), Group("outside")]
    models = {t: m["model"] for t, m in zip(TASKS, plain["models"], strict=True)}
    by_layers = with_weights(
        read_back, Weights({t: list(last["weights"][t].values()) for t in TASKS}, groups, last["lambda"], models)
    )
    assert len(yaml.safe_load(by_layers.text)["models"][0]["parameters"]["weight"]) == 3
    (tmp_path / "layers.yml").write_text(by_layers.text)
    for config, called in ((out / "paring-fuse.yml", record["chosen"]), (tmp_path / "layers.yml", last["label"])):
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        assert main(["fuse", str(config), str(tmp_path / "again"), "--allow", "extra"]) == 0
        attempt = next(a for a in record["tried"] if a["label"] == called)
        for task in TASKS:
            model = with_head(of, tmp_path / "again", task)
            assert right(model, of.base, of.rows(task, "calibration")) == attempt["scores"]["calibration"][task]["accuracy"]


def with_head(of: Two, merged: Path, task: str, head: Path | None = None) -> nn.Module:
    """A task's model from a merged encoder and a head, by hand; that of its fine-tune, or what lies in a delta."""
    delta = paring.load_delta(head or of.folder / task / "model.delta.safetensors")
    made = BertForSequenceClassification(BertConfig(**delta.facts["config"])).eval()
    state = {f"bert.{n}": t for n, t in load_file(merged / "model.safetensors").items()}
    state |= {n: delta.change(n).values.view(delta.changes[n].shape) for n in delta.new}
    assert not made.load_state_dict(state, strict=False).unexpected_keys
    return made


def test_a_head_that_the_base_has_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Digits, all with a head of ten classes: merged with the rest, or each task's own. One is a delta, one a checkpoint."""
    of: Digits = digits()
    base = ViTForImageClassification.from_pretrained(of.base)
    tuning(base, steps=25).save_pretrained(tmp_path / "briefly")
    shutil.copy(of.whole, tmp_path / "long.delta.safetensors")
    (tmp_path / "m.yml").write_text(
        yaml.safe_dump(
            {
                "merge_method": "task_arithmetic",
                "base_model": str(of.base),
                "models": [
                    {"model": str(tmp_path / "long.delta.safetensors"), "parameters": {"weight": 0.7}},
                    {"model": str(tmp_path / "briefly"), "parameters": {"weight": 0.2}},
                ],
            }
        )
    )
    rows = [
        a for s in ("calibration", "validation") for a in (f"--{s}", *(f"{t}={of.turned / s}" for t in ("long", "briefly")))
    ]
    for own in (False, True):
        out = tmp_path / f"merged-{own}"
        command = ["fuse", str(tmp_path / "m.yml"), str(out), *rows, "--budget", "6", *(["--own-heads"] if own else [])]
        assert main(command) == 0
        record = read(out)
        assert "as configured" in record["tried"][1]["search"]["starts"]
        chosen = next(a for a in record["tried"] if a["label"] == record["chosen"])
        model = ViTForImageClassification.from_pretrained(out).eval()
        assert (out / "heads").is_dir() == own
        fine = {
            "long": paring.load_delta(of.whole, base).applied_to(base.state_dict()),
            "briefly": load_file(tmp_path / "briefly" / "model.safetensors"),
        }
        for task, state in fine.items():
            if own:
                assert (
                    main(["apply", str(out), str(out / "heads" / f"{task}.delta.safetensors"), str(tmp_path / f"own-{task}")])
                    == 0
                )
                model = ViTForImageClassification.from_pretrained(tmp_path / f"own-{task}").eval()
                assert torch.equal(model.classifier.weight, state["classifier.weight"])
            assert on_digits(model) == chosen["scores"]["validation"][task]["accuracy"], (own, task)
        if own:  # side by side, since all heads are of one shape
            bank = paring.Bank(ViTForImageClassification.from_pretrained(out).eval(), out / "heads")
            with bank.use("briefly") as served:
                assert on_digits(served) == chosen["scores"]["validation"]["briefly"]["accuracy"]
    assert "paring:" not in capsys.readouterr().out


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
@pytest.mark.parametrize("fit", [[], ["--fit", "--fit-steps", "30", "--fit-rate", "0.4"]])
def test_own_heads_by_any_method(tmp_path: Path, method: str, fit: list[str]) -> None:
    """Of a base with a head of the same classes: nothing of it is on a task's model, tuned or not, and what is written is what
    was scored."""
    of: Digits = digits()
    base = ViTForImageClassification.from_pretrained(of.base)
    for name, steps in (("briefly", 25), ("long", 60)):
        tuning(base, steps=steps).save_pretrained(tmp_path / name)
    weight = (0.3 if method == "linear" else 0.05) if fit else 0.5  # far from both
    plain = {
        "merge_method": method,
        "models": [{"model": str(tmp_path / t), "parameters": {"weight": weight}} for t in ("long", "briefly")],
        "base_model": str(of.base),
        "parameters": {"normalize": False} if method == "linear" else {},
    }
    (tmp_path / "m.yml").write_text(yaml.safe_dump(plain, sort_keys=False))
    splits = ("calibration", "validation")
    rows = [a for s in splits for a in (f"--{s}", *(f"{t}={of.turned / s}" for t in ("long", "briefly")))]
    out = tmp_path / "merged"
    assert main(["fuse", str(tmp_path / "m.yml"), str(out), *rows, "--own-heads", *(fit or ["--budget", "6"])]) == 0
    record = read(out)
    chosen = next(a for a in record["tried"] if a["label"] == record["chosen"])
    assert bool(chosen["fit"]) == bool(fit)
    for task in ("long", "briefly"):
        whole = tmp_path / f"own-{task}"
        assert main(["apply", str(out), str(out / "heads" / f"{task}.delta.safetensors"), str(whole)]) == 0
        model = ViTForImageClassification.from_pretrained(whole).eval()
        own = load_file(tmp_path / task / "model.safetensors")["classifier.weight"]
        assert torch.equal(model.classifier.weight, own) == (not fit)
        assert on_digits(model) == chosen["scores"]["validation"][task]["accuracy"], task


@pytest.mark.parametrize("prune", [False, True])
def test_own_heads_and_a_threshold_over_all_tensors(tmp_path: Path, prune: bool) -> None:
    """Heads that are not merged still count among the largest differences: what is written is what was scored."""
    of: Digits = digits()
    base = ViTForImageClassification.from_pretrained(of.base)
    for name, steps in (("briefly", 25), ("long", 60)):
        tuned = tuning(base, steps=steps)
        with torch.no_grad():
            tuned.classifier.weight.sub_(base.classifier.weight).mul_(20).add_(base.classifier.weight)
        tuned.save_pretrained(tmp_path / name)
    head, entries = base.classifier.weight.numel(), sum(p.numel() for p in base.parameters())
    plain = {
        "merge_method": "ties",
        "models": [
            {"model": str(tmp_path / t), "parameters": {"weight": 1.0, "density": 3 * head / entries}}
            for t in ("long", "briefly")
        ],
        "base_model": str(of.base),
        "scope": "global",
    }
    (tmp_path / "m.yml").write_text(yaml.safe_dump(plain, sort_keys=False))
    rows = [
        a for s in ("calibration", "validation") for a in (f"--{s}", *(f"{t}={of.turned / s}" for t in ("long", "briefly")))
    ]
    out = tmp_path / "merged"
    options = ["--own-heads", "--budget", "6", *(["--prune", "magnitude", "--keep", "0.5"] if prune else [])]
    assert main(["fuse", str(tmp_path / "m.yml"), str(out), *rows, *options]) == 0
    record = read(out)
    chosen = next(a for a in record["tried"] if a["label"] == record["chosen"])
    for task in ("long", "briefly"):
        whole = tmp_path / f"own-{task}"
        assert main(["apply", str(out), str(out / "heads" / f"{task}.delta.safetensors"), str(whole)]) == 0
        model = ViTForImageClassification.from_pretrained(whole).eval()
        assert on_digits(model) == chosen["scores"]["validation"][task]["accuracy"], task


def on_digits(model: nn.Module) -> float:
    """Of turned digits of the validation split, as their image files hold them."""
    examples = TURNED(load_splits()["validation"])
    return accuracy(model, ((examples.images + 1) * 127.5).round() / 127.5 - 1, examples.labels)


def test_a_fitted_merge(of: Two, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Written as scored; and where its values follow from no configuration, that is said."""
    out, config = tmp_path / "merged", of.config(tmp_path / "m.yml")
    options = [*of.options("calibration", "validation", "test"), "--fit", "--fit-steps", "30", "--fit-rate", "0.3"]
    options += ["--fit-head-rate", "0.2"]
    assert main(["fuse", str(config), str(out), *options]) == 0
    said, record = capsys.readouterr().out, read(out)
    *merges, last = record["tried"]
    assert [a["label"] for a in merges] == ["equal 0.5", "equal 0.3", "equal 1"]
    assert all(a["search"] is None and a["fit"] is None for a in merges)
    assert record["chosen"] == last["label"] and last["label"] in {f"{a['label']}, fitted" for a in merges}
    begun = next(a for a in merges if last["label"] == f"{a['label']}, fitted")
    assert last["shares"]["validation"]["mean"] > begun["shares"]["validation"]["mean"]
    assert begun["shares"]["validation"]["mean"] == max(a["shares"]["validation"]["mean"] for a in merges)
    assert [a for a in record["tried"] if "test" in a["scores"]] == [last]
    fit = last["fit"]
    assert {k: fit[k] for k in ("steps", "rate", "head_rate", "mix", "hidden", "seed")} == {
        "steps": 30, "rate": 0.3, "head_rate": 0.2, "mix": 0.15, "hidden": 0.3, "seed": 0,
    }  # fmt: skip
    assert all(fit["after"][t] < 0.8 * fit["before"][t] for t in TASKS)
    assert re.fullmatch("[0-9a-f]{32,}", record["calibration"]["size"].rpartition(":")[2])
    heads = {task: out / "heads" / f"{task}.delta.safetensors" for task in TASKS}
    for split in ("calibration", "validation", "test"):
        for task in TASKS:
            found = right(with_head(of, out, task, heads[task]), of.base, of.rows(task, split))
            assert found == last["scores"][split][task]["accuracy"]
    assert f"and {fit['head_entries']:,} of the tasks' heads, tuned for 30 steps" in said
    for task, head in heads.items():
        own, tuned = paring.load_delta(of.folder / task / "model.delta.safetensors"), paring.load_delta(head)
        assert tuned.new == own.new and tuned.new
        assert not any(torch.equal(tuned.change(n).values, own.change(n).values) for n in own.new)
    every = [change.shape.numel() for head in heads.values() for change in paring.load_delta(head).changes.values()]
    assert fit["head_entries"] == sum(every)
    assert main(["apply", str(out), str(heads["subject"]), str(tmp_path / "subject")]) == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "subject").eval()
    assert right(model, of.base, of.rows("subject", "test")) == last["scores"]["test"]["subject"]["accuracy"]

    # The configuration beside it makes the merge that it began with: other values, the same names, types and shapes.
    assert main(["fuse", str(out / "paring-fuse.yml"), str(tmp_path / "again"), "--allow", "extra"]) == 0
    fitted, merged = (load_file(p / "model.safetensors") for p in (out, tmp_path / "again"))
    assert {n: (t.dtype, t.shape) for n, t in fitted.items()} == {n: (t.dtype, t.shape) for n, t in merged.items()}
    assert sum(not torch.equal(fitted[n], merged[n]) for n in merged) > 10
    for task in TASKS:
        model = with_head(of, tmp_path / "again", task)
        assert right(model, of.base, of.rows(task, "validation")) == begun["scores"]["validation"][task]["accuracy"]
    told = json.loads((out / "paring-fuse.json").read_text())["output"]
    assert told["fitted"]["tensors"] == fit["tensors"] and "fitted" not in (tmp_path / "again" / "paring-fuse.json").read_text()
    card = (out / "README.md").read_text()
    assert "Each task keeps its own head, tuned with the body: " in card
    assert all(paring.load_delta(head).facts["fitted"] for head in heads.values())
    assert "## Chosen on rows" in card and f"tuned for {fit['steps']} steps to answer as the fine-tunes do" in card
    assert "as it was before" in card and "makes it again, byte for byte" not in card
    assert "This makes the merge that was fitted" in (out / "paring-fuse.yml").read_text()
    assert "makes the merge that was fitted, not its values" in said

    # The same again, in place of the first; and nothing where it ends in an error.
    before = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert main(["fuse", str(config), str(out), *options, "--overwrite"]) == 0
    assert {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_fitted_values_are_those_of_the_output(of: Two, tmp_path: Path) -> None:
    config = read_config(of.config(tmp_path / "m.yml", parameters={"weight": 0.5}))
    name, out = "embeddings.LayerNorm.bias", tmp_path / "merged"
    value = torch.arange(load_file(of.base / "model.safetensors")[name].numel(), dtype=torch.float32)
    for wrong, message in (
        ({"pooler": value}, "fitted: 'pooler' is no merged tensor of the output"),
        (
            {name: value[1:]},
            f"fitted: '{name}' is [{len(value) - 1}] torch.float32; the output's is [{len(value)}] torch.float32",
        ),
        ({name: value.half()}, "torch.float16; the output's is"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            fuse(config, out, allow=["extra"], fitted=wrong)
    with pytest.raises(FuseError, match=rf"'{name}'.*the merged value is nan at entry 3"):
        fuse(config, out, allow=["extra"], fitted={name: torch.where(value == 3, torch.nan, value)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.yml"]

    def stop(done: int, total: int) -> None:
        if done > 0.9 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # with other values nothing of it is kept, with the same most is
        fuse(config, out, allow=["extra"], fitted={name: value + 1}, threads=1, report=stop)
    assert fuse(config, out, allow=["extra"], fitted={name: value}, threads=1).kept == 0
    assert torch.equal(load_file(out / "model.safetensors")[name], value)
    with pytest.raises(KeyboardInterrupt):
        fuse(config, out, allow=["extra"], fitted={name: value + 1}, threads=1, report=stop, overwrite=True)
    assert fuse(config, out, allow=["extra"], fitted={name: value + 1}, threads=1, overwrite=True).kept > 0
    assert torch.equal(load_file(out / "model.safetensors")[name], value + 1)


def test_what_is_fitted(of: Two, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A method without weights, weights as configured, searched or pruned ones; nothing, where no values come nearer."""
    rows, few = of.options("calibration", "validation"), ["--fit", "--fit-steps", "4"]

    def fitted(name: str, config: Path, *options: str) -> dict[str, Any]:
        assert main(["fuse", str(config), str(tmp_path / name), *rows, *few, *options]) == 0
        return read(tmp_path / name)

    weights = [
        {"model": str(of.folder / t), "parameters": {"weight": w}} for t, w in zip(TASKS, (0.5, [0.1, 0.5]), strict=True)
    ]
    for name, config in (
        ("sce", of.config(tmp_path / "sce.yml", "sce")),
        ("layers", of.config(tmp_path / "layers.yml", models=weights)),
    ):
        record = fitted(name, config)
        assert [a["label"] for a in record["tried"]] == ["as configured", "as configured, fitted"] and not record["searched"]
        assert [a["weights"] for a in record["tried"]] == [None, None]
        plain = yaml.safe_load((tmp_path / name / "paring-fuse.yml").read_text())
        assert plain == yaml.safe_load(config.read_text())
    record = fitted("searched", of.config(tmp_path / "m.yml"), "--budget", "6")
    assert record["searched"] and record["tried"][1]["search"]["num_evaluations"] == 6
    *merges, last = record["tried"]
    assert last["label"].endswith(", fitted") and last["weights"] in [a["weights"] for a in merges]
    record = fitted("pruned", tmp_path / "layers.yml", "--prune", "magnitude", "--keep", "0.001")
    assert [a["label"] for a in record["tried"]] == ["as configured", "as configured, fitted"]
    assert all(a["fit"]["head_entries"] > 0 for a in record["tried"][1:])
    before = record["tried"][1]["fit"]["before"]  # nearly the base: far from whole fine-tunes, not from pruned ones
    assert all(distance > 0.1 for distance in before.values())
    models = [m["model"] for m in yaml.safe_load((tmp_path / "pruned" / "paring-fuse.yml").read_text())["models"]]
    assert models == [str(tmp_path / "pruned.pruned" / f"{t}.delta.safetensors") for t in TASKS]
    record = fitted("kept", of.config(tmp_path / "m.yml"), "--fit-head-rate", "0", "--fit-steps", "20", "--fit-rate", "0.3")
    assert record["chosen"].endswith(", fitted")
    assert [(a["fit"]["head_entries"], a["fit"]["head_rate"]) for a in record["tried"] if a["fit"]] == [(0, 0)]
    assert "Each task keeps its own head: " in (tmp_path / "kept" / "README.md").read_text()
    for task in TASKS:  # heads as the fine-tunes have them
        own = paring.load_delta(of.folder / task / "model.delta.safetensors")
        kept = paring.load_delta(tmp_path / "kept" / "heads" / f"{task}.delta.safetensors")
        assert all(torch.equal(kept.change(n).values, own.change(n).values) for n in own.new)
    capsys.readouterr()
    record = fitted("none", tmp_path / "layers.yml", "--fit-rate", "1e20")
    assert [a["label"] for a in record["tried"]] == ["as configured"]
    assert "no values came nearer to the fine-tunes than those of the merge" in capsys.readouterr().out
    assert "makes it again, byte for byte" in (tmp_path / "none" / "README.md").read_text()


def test_workers_find_the_same(of: Two, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'paring[ray]')")
    import warnings

    found = []
    for number in (0, 1):
        out = tmp_path / f"by-{number}"
        command = ["fuse", str(of.config(tmp_path / "m.yml", "ties", parameters={"density": 0.5})), str(out)]
        command += [*of.options("calibration", "validation"), "--budget", "6", "--workers", str(number)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="ray")
            assert main(command) == 0
        found.append((read(out)["tried"], (out / "model.safetensors").read_bytes()))
    assert found[0] == found[1]


def test_rows_are_held_out_to_choose_on(of: Two, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same ones by tasks of the same texts: else one would be searched on what the other is chosen on."""
    out = tmp_path / "merged"
    assert main(["fuse", str(of.config(tmp_path / "m.yml")), str(out), *of.options("calibration"), "--budget", "5"]) == 0
    first, second = (read(out)["rows"][t] for t in TASKS)
    assert first == second and first["calibration"] + first["validation"] == 40 and 10 <= first["validation"] <= 20
    assert f"subject: no --validation: {first['validation']} of 40 calibration rows are held out" in capsys.readouterr().out


def test_dry_run_searches_nothing(of: Two, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "merged"
    command = [
        "fuse",
        str(of.config(tmp_path / "m.yml", "nps")),
        str(out),
        *of.options("calibration"),
        "--budget",
        "7",
        "--dry-run",
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "prune   2 searches of 7 candidates" in said and "search  7 merges" in said
    assert [p.name for p in tmp_path.iterdir()] == ["m.yml"]
    assert main([*command[:-1], "--layer-groups", "2", "--dry-run"]) == 0 and "search  14 merges" in capsys.readouterr().out
    assert main(["fuse", str(of.config(tmp_path / "m.yml", "sce")), *command[2:-3], "--fit", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "fit     " in said and "search  " not in said and [p.name for p in tmp_path.iterdir()] == ["m.yml"]


def refused(
    of: Two, path: Path, capsys: pytest.CaptureFixture[str], *options: str, method: str = "task_arithmetic", **more: Any
) -> str:
    """What is said; nothing is left."""
    config = of.config(path / "m.yml", method, **more)
    before = sorted(p.name for p in path.iterdir())
    assert main(["fuse", str(config), str(path / "merged"), *options]) == 2
    assert sorted(p.name for p in path.iterdir()) == before
    return capsys.readouterr().err


def test_what_is_refused(of: Two, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = of.options("calibration")
    subject, size = (str(of.rows(t, "calibration")) for t in TASKS)

    def said(*options: str, **more: Any) -> str:
        return refused(of, tmp_path, capsys, *options, **more)

    there = of.config(tmp_path / "m.yml", "task_arithmetic")
    assert main(["fuse", str(there), str(of.folder / "subject"), "--overwrite", *both]) == 2
    assert "expected an output apart from its inputs" in capsys.readouterr().err
    half = ("--test", f"subject={of.rows('subject', 'test')}")
    assert "--test is given for 'subject' and not for 'size'; expected test rows of every task" in said(*both, *half)
    assert "--keep is of a merge with rows of the tasks; give --calibration NAME=FILE" in said("--keep", "0.1")
    assert "no --calibration of 'size'" in said("--calibration", f"subject={subject}", "--validation", f"size={size}")
    assert "no rows of 'size': a search needs those of every task" in said("--calibration", f"subject={subject}")
    assert "no model is called 'sise'; expected NAME=FILE, NAME one of subject, size" in said("--calibration", f"sise={size}")
    assert "--calibration is given twice for 'size'" in said("--calibration", f"size={size}", f"size={size}")
    assert "sce has no weight for each model, so there is nothing to search" in said(*both, method="sce")
    assert "merges are scored in the base's type: leave dtype out" in said(*both, dtype="bfloat16")
    assert "weights are searched for models of one vocabulary; leave tokenizer_source out" in said(
        *both, tokenizer_source="base"
    )
    assert "emr writes a bank, and values are fitted for one merged model" in said(*both, "--fit", method="emr")
    assert "--fit-steps is of a fit; give --fit, too" in said(*both, "--fit-steps", "3")
    assert "--fit-head-rate is of a fit; give --fit, too" in said(*both, "--fit-head-rate", "0")
    assert "head_rate is -0.5; expected a number, at least 0" in said(*both, "--fit", "--fit-head-rate", "-0.5")
    assert "steps is 0; expected a whole number, at least 1" in said(*both, "--fit", "--fit-steps", "0")
    assert "--pruned is for pruned task vectors, and nothing is pruned" in said(*both, "--pruned", str(tmp_path / "p"))
    assert "layer_groups is 9, and the tasks change 2 layers" in said(*both, "--layer-groups", "9", "--budget", "4")
    other = (f"subject={subject}", f"size={of.rows('size', 'train')}")
    shared = (f"subject={of.rows('subject', 'validation')}", f"size={size}")
    assert "--calibration subject and --validation size share 40 row" in said("--calibration", *other, "--validation", *shared)
    assert "keep is 0.0; expected the share of entries kept" in said(*both, "--keep", "0")
    missing = [{"model": str(of.folder / "subject")}, {"model": str(tmp_path / "size")}]
    assert "line 5: there is no" in said(*both, models=missing)
    weights = [
        {"model": str(of.folder / t), "parameters": {"weight": w}} for t, w in zip(TASKS, (0.5, [0.1, 0.5]), strict=True)
    ]
    assert "weight has several values; a search begins with one for each model" in said(*both, models=weights)
    del weights[1]["parameters"]
    assert "some models have a weight and others none" in said(*both, models=weights)


def test_a_fine_tune_that_gets_nothing_right_is_said_before_the_search() -> None:
    good, bad = Scores(1.0, 0.5), Scores(3.0, 0.0)
    _refuse_nothing_right({"calibration": {"a": good, "b": good}, "test": {"a": good, "b": Scores(3.0, None)}})
    with pytest.raises(
        ValueError, match="--validation b: the fine-tune of 'b' has accuracy 0 on these rows, of which no share"
    ):
        _refuse_nothing_right({"calibration": {"a": good, "b": good}, "validation": {"a": good, "b": bad}})


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_an_error_while_writing_leaves_nothing(of: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paring.recipes.fusion.written.save_delta", full)
    config = of.config(tmp_path / "m.yml", "nps")
    assert main(["fuse", str(config), str(tmp_path / "merged"), *of.options("calibration"), "--budget", "4"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["m.yml"]


def test_an_error_brings_back_what_was_to_be_overwritten(
    of: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fuse", str(of.config(tmp_path / "m.yml", "task_arithmetic")), str(tmp_path / "merged")]
    command += [*of.options("calibration"), "--budget", "4", "--prune", "magnitude", "--keep"]
    bank = tmp_path / "merged.pruned"

    def there() -> dict[str, bytes]:
        return {str(p.relative_to(tmp_path)): p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}

    assert main([*command, "0.1"]) == 0
    before = there()
    for failing in ("paring.recipes.fusion.written.save_delta", "paring.recipes.fusion.bank.save_delta"):
        with monkeypatch.context() as patch:
            patch.setattr(failing, full)
            assert main([*command, "0.3", "--overwrite"]) == 2
        assert there() == before
    assert main([*command, "0.3", "--overwrite"]) == 0
    after = there()
    assert after.keys() == before.keys() and all(after[n] != before[n] for n in before if bank.name in n)
    (bank / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert main([*command, "0.3", "--overwrite"]) == 2
    assert f"{bank} holds notes.txt, which overwriting it would remove" in capsys.readouterr().err


def test_pruned_task_vectors_replace_no_input(of: Two, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Deltas that are called as a bank's are, in the folder that is to be the bank."""
    bank = tmp_path / "bank"
    bank.mkdir()
    config = of.config(tmp_path / "m.yml", "task_arithmetic")
    text = yaml.safe_load(config.read_text())
    for model, task in zip(text["models"], TASKS, strict=True):
        shutil.copyfile(of.folder / task / "model.delta.safetensors", bank / f"{task}.delta.safetensors")
        model["model"] = str(bank / f"{task}.delta.safetensors")
    config.write_text(yaml.safe_dump(text))
    before = {p: p.read_bytes() for p in bank.iterdir()}
    command = ["fuse", str(config), str(tmp_path / "merged"), *of.options("calibration"), "--budget", "4"]
    assert main([*command, "--prune", "magnitude", "--keep", "0.1", "--pruned", str(bank), "--overwrite"]) == 2
    error = capsys.readouterr().err
    assert f"{bank} holds {bank / TASKS[0]}.delta.safetensors, which" in error and "apart from its inputs" in error
    assert {p: p.read_bytes() for p in bank.iterdir()} == before and not (tmp_path / "merged").exists()


def test_weights_in_a_configuration(tmp_path: Path) -> None:
    """Whatever is said beside them stays, a weight for all models does not."""
    text = """merge_method: ties
base_model: base
models:
  - {model: base}
  - model: {model: {path: a}, lora: {path: b}}
    parameters: {density: 0.3, weight: 0.9}
  - model: org/c
parameters: {weight: 0.5, normalize: true, lambda: 0.8}
seed: 5
"""
    (tmp_path / "m.yml").write_text(text)
    config = read_config(tmp_path / "m.yml")
    names = [*tasks_of(config)]
    assert len(names) == 2 and names[0] == "b"
    made = with_weights(config, Weights({names[0]: [0.25], names[1]: [0.75]}, [Group("all")], 1.25), "found\nby search")
    assert made.text.startswith("# found\n# by search\nmerge_method: ties\n")
    assert yaml.safe_load(made.text) == {
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            {"model": "base"},
            {"model": {"model": {"path": "a"}, "lora": {"path": "b"}}, "parameters": {"density": 0.3, "weight": 0.25}},
            {"model": "org/c", "parameters": {"weight": 0.75}},
        ],
        "parameters": {"normalize": True, "lambda": 1.25},
        "seed": 5,
    }


def test_settings_are_checked() -> None:
    for wrong, message in (
        ({"objective": "best"}, "objective is 'best'; expected one of mean, worst"),
        ({"prune": "ties"}, "prune is 'ties'; expected one of magnitude, rescaled"),
        ({"layer_groups": 0}, "layer_groups is 0; expected a whole number, at least 1"),
        ({"most": 0.0}, "most is 0.0; expected a number above 0"),
        ({"held_out": 1.0}, "held_out is 1.0; expected a share between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            FusionSettings(**wrong)  # type: ignore[arg-type]
