"""``paring transfer``: scores as a user would find them, what is chosen, what is written, and what is refused."""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ViTForImageClassification

import paring
from conftest import assert_same_bits, bits
from paring.cli.main import main
from paring.recipes.scoring import Scores
from paring.recipes.transfer.originals import Original
from paring.recipes.transfer.problem import problem
from paring.recipes.transfer.rows import TaskFiles
from paring.recipes.transfer.settings import TransferSettings
from paring.tasks.digits import accuracy, load_splits
from small_text import save_base, texts, write_rows
from transfer_task import TURNED, Digits, digits

FEW = ("--lambda", "0,0.4,1")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def of() -> Digits:
    return digits()


def right(model: nn.Module, split: str, turned: bool, shift: int = 0) -> float:
    """The accuracy on the digits as the image folders hold them; ``shift``: by how many the outputs are rolled."""
    examples = load_splits()[split]
    examples = TURNED(examples) if turned else examples
    images = ((examples.images + 1) * 127.5).round() / 127.5 - 1
    return accuracy(model, images, (examples.labels + shift) % 10)


def loaded(of: Digits) -> nn.Module:
    return ViTForImageClassification.from_pretrained(of.base).eval()


def test_scores_are_those_of_the_interpolated_model(of: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, out = tmp_path / "report", tmp_path / "best.delta.safetensors"
    more = ("--methods", "whole", "dare", "--report", str(report), "--out", str(out), "--values", "fp32")
    assert main(of.command(of.whole, *FEW, *more)) == 0
    said = capsys.readouterr().out
    record = json.loads((report / "transfer.json").read_text())
    whole, dare = record["methods"]
    model, tuned = loaded(of), paring.load_delta(of.whole, loaded(of))
    for place in whole["path"]:
        with (place["lambda"] * tuned).apply(model):
            t, o = right(model, "validation", True), right(model, "validation", False)
        assert (place["tuned"], place["original"]) == (t, o)
        assert place["h"] == pytest.approx(2 * t * o / (t + o))
    assert whole["path"][0]["original"] == right(model, "validation", False) > 0.4  # the base can do something
    assert whole["path"][2]["tuned"] > whole["path"][0]["tuned"] + 0.1  # and has learnt another
    for m in (whole, dare):
        assert m["best"]["h"] == max(p["h"] for p in m["path"])
        assert sorted(m["test"]) == sorted(m["best"]) and m["test"]["lambda"] == m["best"]["lambda"]
    assert dare["num_kept"] < whole["num_kept"] / 9
    # What is written is lambda times the delta, as it was scored.
    chosen = next(m for m in record["methods"] if m["method"] == record["chosen"]["method"])
    assert chosen["best"]["h"] == max(m["best"]["h"] for m in record["methods"])
    with paring.load_delta(out).apply(model):
        assert right(model, "test", True) == chosen["test"]["tuned"]
        assert right(model, "test", False) == chosen["test"]["original"]
    facts = paring.load_delta(out).facts
    assert facts["lambda"] == chosen["best"]["lambda"] and facts["h_scores"]["test"] == chosen["test"]["h"]
    assert f"Best on validation rows: {chosen['method']} at lambda {chosen['best']['lambda']:.4g}" in said
    assert f"{chosen['test']['h']:.4f}" in said and "the fine-tune" in said
    assert sorted(p.name for p in report.iterdir()) == ["curves.png", "curves.svg", "pareto.png", "pareto.svg", "transfer.json"]
    assert main(of.command(of.whole, *FEW, *more)) == 2
    assert "is there already" in capsys.readouterr().err


def test_what_is_written_carries_its_own_scores(of: Digits, tmp_path: Path) -> None:
    """A sign and a scale score otherwise than the numbers they stand for."""
    out, report = tmp_path / "best.delta.safetensors", tmp_path / "report"
    more = ("--methods", "whole", "--out", str(out), "--values", "sign", "--report", str(report))
    assert main(of.command(of.whole, "--lambda", "0.4,1", *more)) == 0
    record = json.loads((report / "transfer.json").read_text())
    facts, model = paring.load_delta(out).facts, loaded(of)
    with paring.load_delta(out).apply(model):
        for split in ("validation", "test"):
            assert facts["scores"][split] == right(model, split, True) == record["stored"][split]["tuned"]
            assert facts["original_scores"][split] == right(model, split, False)
    assert facts["scores"]["validation"] != record["methods"][0]["best"]["tuned"]
    assert facts["lambda"] == record["chosen"]["lambda"] == record["stored"]["test"]["lambda"]


@pytest.mark.parametrize("own", [False, True])
def test_two_heads_and_one(of: Digits, tmp_path: Path, own: bool) -> None:
    """A new head is the tuned task's, whole at every lambda; the original one keeps the base's. So it is with --own-head."""
    report, given = tmp_path / "report", of if own else replace(of, turned=of.named)
    delta, more = (of.whole, ["--own-head"]) if own else (of.headed, [])
    command = given.command(delta, *FEW, "--methods", "whole", *more, "--report", str(report), splits=("validation",))
    assert main(command) == 0
    path = json.loads((report / "transfer.json").read_text())["methods"][0]["path"]
    base, tuned = loaded(of), paring.load_delta(of.whole, loaded(of))
    head = {n: t for n, t in tuned.applied_to(base.state_dict()).items() if n.startswith("classifier")}
    body = tuned.only(*(n for n in tuned if not n.startswith("classifier")))
    for place in path:
        model = loaded(of)
        (place["lambda"] * body).apply(model)
        assert place["original"] == right(model, "validation", False)
        model.load_state_dict(model.state_dict() | head)
        assert place["tuned"] == right(model, "validation", True)
    assert path[0]["original"] == right(base, "validation", False)


def test_searched_methods_and_the_base_afterwards(of: Digits, tmp_path: Path) -> None:
    """NPS, fitted and joint; the models share one body, and in the end all are bitwise as they were."""
    report = tmp_path / "report"
    calibration = ("--original-calibration", str(of.upright / "calibration"))
    more = (
        "--methods",
        "nps",
        "fitted",
        "joint",
        "--budget",
        "8",
        "--subspaces",
        "magnitude",
        "--parts",
        "3",
        "--steps",
        "4",
        "--search",
        str(tmp_path / "s"),
    )
    assert main(of.command(of.whole, *FEW, *more, *calibration, "--report", str(report))) == 0
    record = json.loads((report / "transfer.json").read_text())
    nps, fitted, joint = record["methods"]
    assert nps["num_evaluations"] == joint["num_evaluations"] == 8 and nps["num_kept"] == fitted["num_kept"] == 45073
    assert joint["score"] <= min(joint["starts"].values()) and "nps" in joint["starts"]
    assert joint["searched_lambda"] in [p["lambda"] for p in joint["path"]]
    assert {(tmp_path / "s" / m / "search.jsonl").is_file() for m in ("nps", "joint")} == {True}
    first = (report / "transfer.json").read_bytes()
    assert main(of.command(of.whole, *FEW, *more, *calibration, "--report", str(report), "--overwrite")) == 0
    assert (report / "transfer.json").read_bytes() == first

    files = TaskFiles(str(of.turned / "validation"))
    about = problem(
        str(of.base),
        of.headed,
        replace(files, validation=str(of.named / "validation")),
        {"upright": Original(TaskFiles(str(of.upright / "validation")))},
        TransferSettings(),
    )
    (side,) = about.originals
    assert side.model is not about.tuned.model
    ours, theirs = side.model.state_dict(keep_vars=True), about.tuned.model.state_dict(keep_vars=True)
    assert {n for n in ours if ours[n] is not theirs[n]} == {"classifier.weight", "classifier.bias"}
    before = bits(about.tuned.model), bits(side.model)
    about.trace(about.vector, (0.5, 1.0), "validation")
    assert_same_bits(bits(about.tuned.model), before[0])
    assert_same_bits(bits(side.model), before[1])
    assert_same_bits(before[1], bits(loaded(of)))


def test_a_head_of_another_delta(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A base without a head can be given one for its original task."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    base = save_base(tmp_path / "base")

    def headed(seed: int, name: str, body: float) -> tuple[Path, nn.Module]:
        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(base, num_labels=3, id2label={0: "column", 1: "neither", 2: "row"})
        model = AutoModelForSequenceClassification.from_pretrained(base, config=config).eval()
        state = {n: t + body * torch.randn(t.shape) if t.is_floating_point() and body else t for n, t in bits(model).items()}
        vector = paring.diff(base, state)
        facts = {"settings": {"task": "text-classification", "max_length": 7}, "config": model.config.to_dict()}
        paring.save_delta(vector, tmp_path / f"{name}.delta.safetensors", facts)
        return tmp_path / f"{name}.delta.safetensors", model

    (tuned, _), (head, model) = headed(1, "tuned", 0.1), headed(2, "head", 0.0)
    rows = [str(write_rows(tmp_path / f"{i}.csv", texts(40, i))) for i in range(2)]
    command = [
        "transfer",
        str(base),
        str(tuned),
        "--validation",
        rows[0],
        "--original-validation",
        f"mail={rows[1]}",
        "--lambda",
        "0,1",
    ]
    command += ["--lambda", "0,1", "--methods", "whole", "--report", str(tmp_path / "report")]
    refused(capsys, command, "the original task 'mail': the base", "does not say what it is for", "or a delta with a head")
    command += ["--original-task", "mail=text-classification"]
    refused(capsys, command, "has no 'classifier.bias', so it cannot do text-classification as it is")
    assert main([*command, "--original-head", f"mail={head}"]) == 0
    path = json.loads((tmp_path / "report" / "transfer.json").read_text())["methods"][0]["path"]
    from small_text import tokenizer

    pairs = texts(40, 1)
    batch = dict(tokenizer()([t for t, _ in pairs], padding=True, truncation=True, max_length=7, return_tensors="pt"))
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        guesses = [model.config.id2label[i] for i in model(**batch).logits.argmax(-1).tolist()]
    assert path[0]["scores"]["mail"]["accuracy"] == sum(g == label for g, (_, label) in zip(guesses, pairs, strict=True)) / 40
    command += ["--overwrite"]
    refused(capsys, [*command, "--original-head", f"mail={tuned}"], "of the base; expected a head alone")


def refused(capsys: pytest.CaptureFixture[str], command: list[str], *messages: str) -> None:
    assert main(command) == 2
    said = capsys.readouterr().err
    for message in messages:
        assert message in said, said


def test_bad_settings_are_refused_before_anything_is_read(of: Digits, tmp_path: Path, capsys: Any) -> None:
    none = replace(of, base=tmp_path / "none", turned=tmp_path / "none", upright=tmp_path / "none")
    few = none.command(none.whole, splits=("validation",))
    refused(capsys, [*few, "--lambda", "0:1:0.3"], "lambda is '0:1:0.3', which ends at 0.9, not at 1")
    refused(capsys, [*few, "--lambda", "1:0:0.1"], "expected a START below STOP")
    refused(capsys, [*few, "--lambda", "a:b:c"], "'a' is no finite number")
    refused(capsys, [*few, "--keep", "0"], "keep is 0.0; expected the share of entries kept, in (0, 1]")
    refused(capsys, [*few, "--methods", "nps"], "method 'nps' works on rows of the tuned task; give some with --calibration")
    refused(capsys, [*few, "--methods", "whole", "whole"], "methods is ('whole', 'whole'); expected at least one, each once")
    refused(capsys, [*few, "--calibration", "x", "--methods", "joint"], "on rows of the original tasks, too")
    refused(capsys, [*few, "--lambda", "1", "--methods", "joint"], "a range, within which the method 'joint' searches")
    refused(capsys, [*few, "--original-test", "mail=x"], "no --original-validation of 'mail'; there are 'original'")
    refused(capsys, [*few, "--original-test", "x", "y"], "--original-test is given twice for 'original'")
    refused(capsys, [*few, "--test", "x"], "test rows are given without --original-test original; expected those of every task")
    refused(capsys, [*few, "--original-test", "x"], "test rows are given without --test")
    refused(capsys, [*few, "--original-max-length", "short"], "--original-max-length of 'original' is 'short'")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    refused(capsys, [*few, "--report", str(tmp_path / "there")], "--report:", "is there already")


def test_rows_in_two_splits_are_refused(of: Digits, tmp_path: Path, capsys: Any) -> None:
    """Of one task, of the other, and across the two; the same split of both may share rows."""
    row = next((of.turned / "calibration" / "3").iterdir())
    for name, where, options in (
        ("turned", "validation", ("--calibration and --validation share 1 row(s)",)),
        ("turned", "test", ("--calibration and --test share 1 row(s)",)),
        ("upright", "test", ("--calibration and --original-test original share 1 row(s)", str(row.name))),
    ):
        folder = tmp_path / f"{name}-{where}"
        shutil.copytree(getattr(of, name), folder)
        shutil.copy(row, folder / where / "3" / "again.png")
        refused(capsys, replace(of, **{name: folder}).command(of.whole, *FEW, "--methods", "whole"), *options)
    folder = tmp_path / "upright-own"
    shutil.copytree(of.upright, folder)
    shutil.copy(next((folder / "validation" / "5").iterdir()), folder / "test" / "5" / "again.png")
    command = replace(of, upright=folder).command(of.whole, *FEW, "--methods", "whole")
    refused(capsys, command, "--original-validation original and --original-test original share 1 row(s)")


def test_what_is_missing_or_another_is_named(of: Digits, tmp_path: Path, capsys: Any) -> None:
    few = (*FEW, "--methods", "whole")
    refused(capsys, of.command(tmp_path / "no.safetensors", *few), "no.safetensors")
    refused(capsys, replace(of, upright=tmp_path / "no").command(of.whole, *few), "--original-validation original: ", "no")
    refused(capsys, replace(of, turned=tmp_path / "no").command(of.whole, *few), "--calibration: ")
    other = loaded(of)
    with torch.no_grad():
        other.vit.layernorm.bias[0] += 1
    other.save_pretrained(tmp_path / "other")
    refused(
        capsys,
        replace(of, base=tmp_path / "other").command(of.whole, *few),
        "is not the base of this delta",
        "vit.layernorm.bias",
    )
    refused(capsys, replace(of, turned=of.named).command(of.whole, *few), "the model knows no label 'd0'")


def test_scores_that_are_no_numbers(of: Digits, tmp_path: Path, capsys: Any) -> None:
    """A lambda that overflows is never best; where all do, it is said, and nothing is written."""
    model = loaded(of)
    state = bits(model)
    state["vit.layernorm.weight"] = state["vit.layernorm.weight"] + 3e38
    paring.save_delta(paring.diff(model, state), tmp_path / "far.safetensors", {"config": model.config.to_dict()})
    out, report = tmp_path / "out.safetensors", tmp_path / "report"
    given = ("--methods", "whole", "--out", str(out), "--report", str(report))
    command = of.command(tmp_path / "far.safetensors", *given, splits=("validation",))
    assert main([*command, "--lambda", "0,1"]) == 0
    (method,) = json.loads((report / "transfer.json").read_text())["methods"]
    assert method["best"]["lambda"] == 0 and method["path"][1]["h"] is None and method["path"][1]["tuned"] is None
    assert json.loads((report / "transfer.json").read_text())["pareto"] == [{"method": "whole", "lambda": 0.0}]
    capsys.readouterr()
    shutil.rmtree(report)
    out.unlink()
    refused(capsys, [*command, "--lambda", "0.9,1"], "whole: none of 2 places on the path has scores that are numbers")
    assert not out.exists() and not report.exists()


def test_a_task_without_accuracy_is_scored_by_likelihood() -> None:
    from paring.recipes.transfer.problem import Place, score_of

    assert score_of(Scores(math.log(4), None)) == pytest.approx(0.25)
    assert score_of(Scores(0.1, 0.7)) == 0.7 and math.isnan(score_of(Scores(math.nan, 0.7)))
    point = Place(0.5, Scores(math.log(2), None), (Scores(math.log(4), None),)).point
    assert point.h == pytest.approx(1 / 3) and point.likelihood == pytest.approx(1 / 3)  # of perplexities 2 and 4


def test_a_split_of_the_digits_that_is_none(tmp_path: Path) -> None:
    from paring.tasks.digits.folders import write_image_folder

    with pytest.raises(ValueError, match="splits: got 'valid'; expected some of train, calibration, validation, test"):
        write_image_folder(None, tmp_path / "digits", ["test", "valid"])  # type: ignore[list-item]
    assert not (tmp_path / "digits").exists()
