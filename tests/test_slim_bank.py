"""``paring slim --bank``: fine-tunes of one base made small in one folder, their bytes and their scores."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import paring
from paring.cli.main import main
from paring.recipes.slim.many import named
from slim_task import Tuned, tuned
from small_text import save_base


@pytest.fixture(scope="module")
def of() -> Tuned:
    return tuned()


@pytest.fixture
def other(of: Tuned, tmp_path: Path) -> Path:
    """A second fine-tune of the same base: the whole of a run's folder but for its name."""
    model = AutoModelForSequenceClassification.from_pretrained(of.base, config=AutoConfig.from_pretrained(of.folder))
    vector = paring.load_delta(of.delta, of.base)
    (tmp_path / "other").mkdir()
    paring.save_delta(0.5 * vector, tmp_path / "other" / "model.delta.safetensors", dict(vector.facts))
    assert isinstance(model, torch.nn.Module)
    return tmp_path / "other"


def test_two_tasks_of_one_base(of: Tuned, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = tmp_path / "bank"
    rows = ["--calibration", f"words={of.calibration}", "--test", f"words={of.test}"]
    given = [f"words={of.folder}", str(other), "--bank", str(bank), "--base", str(of.base), *rows]
    assert main(["slim", *given, "--keep", "0.05", "--steps", "20", "--values", "int8"]) == 0
    said = capsys.readouterr().out
    record = json.loads((bank / "slim.json").read_text())
    assert set(record["tasks"]) == {"words", "other"}
    words, plain = record["tasks"]["words"], record["tasks"]["other"]
    # With rows refitted and scored; without them neither.
    assert words["method"] == "fitted" and words["scores"].keys() == {"calibration", "test"}
    assert plain["method"] == "rescaled" and plain["scores"] == {}
    assert "What the task loses by it is not known without data" in said

    base = AutoModelForSequenceClassification.from_pretrained(of.base, config=AutoConfig.from_pretrained(of.folder))
    weights = {n: t for n, t in base.state_dict().items() if not n.startswith("classifier")}
    num_bytes = sum(t.numel() * t.itemsize for t in weights.values())
    head = sum(t.numel() * t.itemsize for n, t in base.state_dict().items() if n.startswith("classifier"))
    sizes = [(bank / f"{name}.delta.safetensors").stat().st_size for name in ("words", "other")]
    assert record["base_bytes"] == num_bytes and words["checkpoint_bytes"] == num_bytes + head
    assert [words["slim_bytes"], plain["slim_bytes"]] == sizes
    slim, whole = num_bytes + sum(sizes), 2 * (num_bytes + head)
    assert f"2 delta(s): {slim:,} bytes; 2 checkpoint(s): {whole:,} bytes, {whole / slim:.2f} times as many" in said
    score = words["scores"]["test"]["accuracy"]
    assert f"{words['tuned']['test']['accuracy']:.4f}  {score:.4f}" in said and "test accuracy" in said

    opened = paring.Bank(base, bank)
    assert opened.list() == ["other", "words"]
    with opened.use("words"):
        small = paring.load_delta(bank / "words.delta.safetensors")
        assert small.facts["method"] == "fitted" and small.facts["scores"]["test"] == score
    opened.close()
    assert main(["bank", "verify", str(bank), "--base", str(of.base)]) == 0
    assert main(["slim", *given, "--keep", "0.05"]) == 2
    assert "--bank: " in capsys.readouterr().err


def test_what_a_bank_refuses(of: Tuned, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = tmp_path / "bank"
    foreign = save_base(tmp_path / "foreign", seed=4)
    weights = {n: t.clone() for n, t in AutoModelForSequenceClassification.from_pretrained(foreign).state_dict().items()}
    paring.save_delta(
        paring.diff(weights, {n: t + 0.1 for n, t in weights.items()}, allow=()), tmp_path / "foreign.delta.safetensors"
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    here = ["--base", str(of.base), "--keep", "0.1"]
    cases = [
        (
            [str(of.folder), str(tmp_path / "foreign.delta.safetensors"), *here],
            "in one bank: the two were made on different base",
        ),
        ([str(of.folder), str(of.folder), *here], "two deltas are called 'tuned'; name them: NAME=FILE"),
        ([f"a/b={of.folder}", *here], "'a/b' is no name for a delta; expected letters, digits"),
        ([str(of.folder), *here[:2], "--keep", "0.1,0.2"], "expected one share: a bank holds one delta of each name"),
        ([str(of.folder), *here, "--calibration", str(of.calibration)], "expected NAME=FILE, with --bank"),
        ([str(of.folder), *here, "--calibration", f"x={of.calibration}"], "rows are given for 'x', and there is no such delta"),
        ([str(of.folder), *here, "--test", f"tuned={of.test}"], "--test without --calibration for 'tuned'"),
        ([str(of.folder), str(other), *here, "--method", "nps", "--calibration", f"other={of.calibration}"], "method is 'nps'"),
        ([str(of.folder), *here, "--report", str(tmp_path / "r")], "--report is for one delta"),
        ([str(tmp_path), *here], "holds no model.delta.safetensors; expected a delta, or the folder of a `paring tune`"),
    ]
    for arguments, message in cases:
        assert main(["slim", *arguments, "--bank", str(bank)]) == 2
        assert message in capsys.readouterr().err, message
    assert main(["slim", str(of.folder), *here, "--bank", str(tmp_path / "mine")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert not bank.exists() and (tmp_path / "mine" / "thesis.tex").exists()


def test_what_the_last_lacks_is_said_before_the_first_ones_work(
    of: Tuned, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paring.recipes.slim.many.try_all", None)
    rows = ["--calibration", f"tuned={of.calibration}", "--calibration", f"other={tmp_path / 'gone.csv'}"]
    given = [str(of.folder), f"other={other}", "--base", str(of.base), "--keep", "0.1", "--bank", str(tmp_path / "bank")]
    assert main(["slim", *given, *rows]) == 2
    assert "gone.csv" in capsys.readouterr().err and not (tmp_path / "bank").exists()


def test_overwriting_a_bank_keeps_deltas_that_it_did_not_write(
    of: Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank, mine = tmp_path / "bank", tmp_path / "mine"
    given = ["slim", f"a={of.delta}", "--base", str(of.base), "--keep", "0.1", "--overwrite", "--bank"]
    for _ in range(2):
        assert main([*given, str(bank)]) == 0, capsys.readouterr().err
    mine.mkdir()
    for name in ("a", "b"):
        (mine / f"{name}.delta.safetensors").write_bytes(of.delta.read_bytes())
    assert main([*given, str(mine)]) == 2  # no bank of this command's
    assert "holds a.delta.safetensors, b.delta.safetensors, which overwriting" in capsys.readouterr().err
    (bank / "b.delta.safetensors").write_bytes(of.delta.read_bytes())
    assert main([*given, str(bank)]) == 2
    assert "holds b.delta.safetensors, which overwriting it would remove" in capsys.readouterr().err
    (bank / "b.delta.safetensors").unlink()
    assert main(["slim", f"a={bank / 'a.delta.safetensors'}", *given[2:], str(bank)]) == 2
    assert f"{bank} holds the delta that is made small" in capsys.readouterr().err


def test_names(of: Tuned, tmp_path: Path) -> None:
    assert named(str(of.folder)) == ("tuned", str(of.delta))
    assert named(str(of.delta)) == ("tuned", str(of.delta))
    assert named(f"a={of.folder}") == ("a", str(of.delta))
    odd = tmp_path / "x=y.delta.safetensors"
    odd.write_bytes(of.delta.read_bytes())
    assert named(str(odd)) == ("x=y", str(odd))
