"""``paring slim`` with rows of the task: what is searched, selected, scored, written, and what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import paring
from paring import DeltaError
from paring.cli.main import main
from paring.recipes.calibration import Files
from paring.recipes.scoring import Scores
from paring.recipes.slim import problem as problems
from paring.recipes.slim.run import slim
from paring.recipes.slim.settings import SlimSettings
from paring.search.settings import NoScoreError, SearchError
from slim_task import Tuned, tuned
from small_text import save_base, texts, tokenizer, write_rows

FEW = ("--method", "nps", "--subspaces", "magnitude", "--keep", "0.03", "--budget", "20")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def of() -> Tuned:
    return tuned()


def accuracy(of: Tuned, delta: Path, rows: Path) -> float:
    """As a user would find it."""
    torch.manual_seed(7)
    model = AutoModelForSequenceClassification.from_pretrained(of.base, config=AutoConfig.from_pretrained(of.folder)).eval()
    paring.load_delta(delta, model).apply(model)
    pairs = [line.rsplit(",", 1) for line in rows.read_text().splitlines()[1:]]
    batch = tokenizer()([text for text, _ in pairs], padding=True, truncation=True, max_length=7, return_tensors="pt")
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        guesses = model(**batch).logits.argmax(-1).tolist()
    return sum(model.config.id2label[g] == label for g, (_, label) in zip(guesses, pairs, strict=True)) / len(pairs)


def test_from_a_run_to_a_slim_file(of: Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, before = tmp_path / "small.delta.safetensors", of.delta.read_bytes()
    hard = ("--method", "nps", "--keep", "0.01", "--budget", "20")
    assert main(of.slim(out, *hard, "--test", str(of.test), "--values", "int8")) == 0
    said = capsys.readouterr().out
    small = paring.load_delta(out)
    assert small.facts["method"] == "nps" and small.facts["keep"] == 0.01 and small.facts["objective"] == "loss"
    assert small.facts["calibration"]["rows"] == 60 and small.facts["tried"] == ["nps magnitude*kind"]
    whole = paring.load_delta(of.delta)
    entries = sum(whole.changes[n].shape.numel() for n in whole)
    kept = sum(small.change(n).places.count for n in small)
    assert kept == -(-entries // 100)
    assert f"Kept {kept:,} of {entries:,} entries (nps magnitude*kind)" in said
    assert re.search(r"nps magnitude\*kind, keep 0\.01 +20 of 20   best loss 0\.\d{4} \(.+\)   0 s left", said)
    # The score that is said is that of the file, and the fine-tune's that of its own.
    score, fine = accuracy(of, out, of.test), accuracy(of, of.delta, of.test)
    assert small.facts["scores"]["test"] == score and small.facts["tuned_scores"]["test"] == fine
    assert fine == json.loads((of.folder / "results.json").read_text())["scores"].get("test", fine)
    assert f"Test accuracy {score:.4f}, the fine-tune's {fine:.4f} ({100 * score / fine:.1f} % of it)" in said
    assert 0.5 < score < fine  # of three classes
    assert of.delta.read_bytes() == before
    assert main(of.slim(out, *hard)) == 2
    refused = capsys.readouterr()
    assert "is there already" in refused.err and refused.out == ""  # before anything is searched


def test_scores_are_those_of_the_coded_values(of: Tuned, tmp_path: Path) -> None:
    """A sign and a scale: far from what the search scored."""
    out = tmp_path / "small.delta.safetensors"
    settings = SlimSettings(keep=(0.05,), method="magnitude", values="sign")
    record = slim(of.delta, out, settings, base=str(of.base), files=Files(str(of.calibration)), say=lambda line: None)
    model = AutoModelForSequenceClassification.from_pretrained(of.base, config=AutoConfig.from_pretrained(of.folder)).eval()
    paring.load_delta(out, model).apply(model)
    pairs = [line.rsplit(",", 1) for line in of.calibration.read_text().splitlines()[1:]]
    batch = tokenizer()([text for text, _ in pairs], padding=True, truncation=True, max_length=7, return_tensors="pt")
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        loss = float(model(**batch, labels=torch.tensor([model.config.label2id[label] for _, label in pairs])).loss)
    assert record["keeps"][0]["scores"]["calibration"]["loss"] == pytest.approx(loss, rel=1e-4)
    assert record["keeps"][0]["tried"][0]["scores"]["calibration"]["loss"] == pytest.approx(loss, rel=1e-4)


def test_a_method_without_search_is_scored_too(of: Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.delta.safetensors"
    assert main(of.slim(out, "--keep", "0.05", "--method", "rescaled", "--validation", str(of.validation))) == 0
    facts = paring.load_delta(out).facts
    assert facts["method"] == "rescaled" and facts["scores"]["validation"] == accuracy(of, out, of.validation)
    assert re.search(
        rf"rescaled +[\d,]+ +[\d.]+ .* {facts['scores']['validation']:.4f}$", capsys.readouterr().out, re.MULTILINE
    )


def test_by_itself_what_is_kept_is_refitted(of: Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, rescaled = tmp_path / "small.delta.safetensors", tmp_path / "rescaled.delta.safetensors"
    assert main(of.slim(out, "--keep", "0.01", "--steps", "60", "--test", str(of.test))) == 0
    said = capsys.readouterr().out
    facts = paring.load_delta(out).facts
    assert facts["method"] == "fitted" and facts["tried"] == ["fitted"] and facts["refit"]["steps"] == 60
    assert facts["refit"]["distance"][1] < facts["refit"]["distance"][0]
    assert re.search(r"fitted, keep 0\.01   step +60 of 60   distance \d\.\d{4}   0 s left", said)
    assert facts["scores"]["test"] == accuracy(of, out, of.test)
    assert main(of.slim(rescaled, "--keep", "0.01", "--method", "rescaled")) == 0
    assert facts["scores"]["test"] > accuracy(of, rescaled, of.test)
    for more, what in ((["--search", str(tmp_path / "s")], "--search"), (["--workers", "2"], "--workers")):
        assert main(of.slim(tmp_path / "none", "--keep", "0.01", *more)) == 2
        assert f"{what} is of nps and auto, and the method is fitted: leave it out, or" in capsys.readouterr().err
    assert not (tmp_path / "none").exists() and not (tmp_path / "s").exists()


def test_auto_selects_on_validation(of: Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, report = tmp_path / "small", tmp_path / "report"
    more = (
        "--keep",
        "0.2,0.02",
        "--method",
        "auto",
        "--budget",
        "14",
        "--steps",
        "20",
        "--subspaces",
        "kind",
        "random",
        "--parts",
        "3",
    )
    assert main(of.slim(out, *more, "--report", str(report), "--test", str(of.test))) == 0
    said = capsys.readouterr().out
    assert "no --validation: 15 of 60 calibration rows are held out to select on (seed 0)" in said
    record = json.loads((report / "slim.json").read_text())
    assert [one["keep"] for one in record["keeps"]] == [0.2, 0.02]
    assert record["rows"] == {"calibration": 45, "validation": 15, "test": 48}
    for one in record["keeps"]:
        tried = {a["label"]: a for a in one["tried"]}
        assert list(tried) == ["magnitude", "rescaled", "dare", "della", "nps kind", "nps random", "fitted"]
        keys = {
            label: (-a["scores"]["validation"]["accuracy"], a["scores"]["validation"]["loss"]) for label, a in tried.items()
        }
        assert keys[one["chosen"]] == min(keys.values())
        path = out / f"keep-{one['keep']:g}.delta.safetensors"
        facts = paring.load_delta(path).facts
        assert facts["tried"] == list(tried) and path.stat().st_size == one["bytes"]
        assert one["scores"]["test"]["accuracy"] == accuracy(of, path, of.test)
        for label in ("nps kind", "nps random"):
            # What a search begins with, and never ends worse than (before the values are coded).
            starts = tried[label]["starts"]
            assert len(tried[label]["history"]) == 14 and tried[label]["score"] <= min(starts.values())
            assert starts["magnitude"] == pytest.approx(tried["magnitude"]["scores"]["calibration"]["loss"], rel=1e-2)
        for label in tried:
            assert re.search(rf"^{re.escape(label)}{' <-' if label == one['chosen'] else '  '}", said, re.MULTILINE)
    assert sorted(p.name for p in report.iterdir()) == ["keep.png", "keep.svg", "search.png", "search.svg", "slim.json"]
    assert (report / "keep.png").read_bytes().startswith(b"\x89PNG")
    svg = (report / "search.svg").read_text()
    assert svg.startswith("<?xml") and "nps random" not in svg[:200]
    assert main(["bank", "ls", str(out)]) == 0  # several keeps are a folder of deltas
    assert "keep-0.02" in capsys.readouterr().out


def test_killed_and_gone_on_with(of: Tuned, tmp_path: Path) -> None:
    """By the system's own kill; the result is bitwise that of a search never cut off."""
    more = ("--method", "nps", "--keep", "0.03", "--budget", "120", "--search", str(tmp_path / "search"))
    journal = tmp_path / "search" / "nps-magnitude-by-kind-keep-0.03" / "search.jsonl"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.Popen([sys.executable, "-m", "paring", *of.slim(tmp_path / "a.delta.safetensors", *more)], env=environment)
    while not journal.is_file() or len(journal.read_text().splitlines()) < 8:
        assert run.poll() is None, "it ended before it made seven evaluations"
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait(timeout=60)
    made = len(journal.read_text().splitlines()) - 1
    assert 7 <= made < 120 and not (tmp_path / "a.delta.safetensors").exists()
    kept = journal.read_text().splitlines()[: made + 1]
    assert main(of.slim(tmp_path / "a.delta.safetensors", *more)) == 0
    assert journal.read_text().splitlines()[: made + 1] == kept and len(journal.read_text().splitlines()) == 121
    assert main(of.slim(tmp_path / "b.delta.safetensors", *more[:-2])) == 0
    assert (tmp_path / "a.delta.safetensors").read_bytes() == (tmp_path / "b.delta.safetensors").read_bytes()


def test_ctrl_c_says_how_to_go_on(of: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    calls = []

    def stop(*_: object) -> float:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return 0.5

    monkeypatch.setattr("paring.recipes.scoring.Objective.__call__", stop)
    assert main(of.slim(tmp_path / "a.delta.safetensors", *FEW, "--search", str(tmp_path / "s"))) == 130
    assert f"stopped; the same command goes on with the evaluations in {tmp_path / 's'}" in capsys.readouterr().out


def test_a_search_folder_of_another_run(of: Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = tmp_path / "search"
    assert main(of.slim(tmp_path / "a.delta.safetensors", *FEW, "--search", str(search))) == 0
    before = {p: p.read_bytes() for p in search.rglob("*") if p.is_file()}
    head = json.loads((search / "nps-magnitude-keep-0.03" / "search.jsonl").read_text().splitlines()[0])
    assert set(head["problem"]) >= {"calibration", "objective"}
    capsys.readouterr()
    other = write_rows(tmp_path / "other.csv", texts(30, 5))
    cases = {
        "calibration is": ("--calibration", str(other)),
        "seed is 0 there, 1 asked for": ("--seed", "1"),
        "objective is 'loss' there, 'accuracy' asked for": ("--objective", "accuracy"),
        "parts is 8 there, 4 asked for": ("--parts", "4"),
        "calibration is '": ("--max-length", "5"),  # the same rows, cut elsewhere
    }
    for message, more in cases.items():
        arguments = of.slim(tmp_path / "b.delta.safetensors", *FEW, "--search", str(search), *more)
        if "--calibration" in more:
            arguments = [a for i, a in enumerate(arguments) if arguments[max(i - 1, 0)] != "--calibration" or a == str(other)]
            arguments = [a for i, a in enumerate(arguments) if a != "--calibration" or arguments[i + 1] == str(other)]
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert "holds the search of another run" in error and message in error
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert main(of.slim(tmp_path / "b.delta.safetensors", *FEW, "--search", str(tmp_path / "mine"))) == 2
    assert "is there and holds no search; take a new folder" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in search.rglob("*") if p.is_file()} == before
    assert not (tmp_path / "b.delta.safetensors").exists() and len(list((tmp_path / "mine").iterdir())) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--keep", "0"), "keep is 0.0; expected the share of entries kept, in (0, 1]"),
        (("--keep", "0.1,1.5"), "keep is 1.5; expected"),
        (("--keep", "0.1,0.1"), "keep is (0.1, 0.1); expected every share once"),
        (("--parts", "1"), "parts is 1; expected a whole number, at least 2"),
        (("--method", "nps", "--subspaces", "magnitude", "--parts", "100000"), "100000 subspaces of "),
        (
            ("--method", "nps", "--subspaces", "kind", "--parts", "4"),
            "are as many as there are kinds; leave parts out, or take",
        ),
        (("--method", "nps", "--subspaces", "random", "--parts", "5000"), "5000 subspaces for "),
        (("--subspaces", "kind", "layer"), "expected one; several with the method 'auto' alone"),
        (("--budget", "1"), "budget is 1; expected a whole number, at least 2"),
        (("--label-column", "lable"), "has no column 'lable'; it has text, label; nearest: 'label' (--label-column)"),
        (("--text-column", "body"), "has no column 'body'; it has text, label"),
        (("--max-length", "99"), "max_length is 99; the model takes 8 tokens"),
        (
            ("--method", "nps", "--task", "causal-lm", "--objective", "accuracy"),
            "objective is 'accuracy', and causal-lm has none",
        ),
        (("--budget", "50"), "--budget is of nps and auto, and the method is fitted: leave it out, or take --method nps"),
        (("--scope", "tensor"), "--scope is of magnitude and rescaled and auto, and the method is fitted"),
        (("--method", "nps", "--steps", "9"), "--steps is of fitted and auto, and the method is nps"),
        (("--method", "nps", "--subspaces", "random", "--budget", "2"), "budget is 2; expected at least 3: a search of random"),
        (("--validation", "SAME"), "--calibration and --validation share 60 row(s): "),
        (("--test", "SAME"), "line 2 is "),
    ],
)
def test_bad_settings(
    of: Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "small.delta.safetensors"
    given = [str(of.calibration) if text == "SAME" else text for text in more]
    keep = [] if "--keep" in more else ["--keep", "0.03"]
    assert main(of.slim(out, *keep, *given)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("paring: error:") == 1, error
    assert list(tmp_path.iterdir()) == []


def test_bad_files(of: Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.delta.safetensors"
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(of.delta.read_bytes()[:-7] + b"surgery")
    empty, unknown = write_rows(tmp_path / "empty.csv", []), write_rows(tmp_path / "unknown.csv", [("thin row", "diagonal")])
    plain = ["--keep", "0.03", "--calibration", str(of.calibration)]
    cases = [
        (["--base", str(save_base(tmp_path / "other", seed=3)), *plain], "is not the base of this delta: the values of"),
        (["--base", str(of.base / "model.safetensors"), *plain], "is a file; to score on data, give the model's folder"),
        (["--base", str(tmp_path / "nowhere"), *plain], "nowhere"),
        (plain, "--method fitted with data needs the model that the delta was made on; give its folder with --base"),
        (["--base", str(of.base), *plain[:3], str(empty)], "--calibration: " + f"{empty} has no rows"),
        (["--base", str(of.base), *plain[:3], str(unknown)], "the model knows no label 'diagonal'"),
        (["--base", str(of.base), "--keep", "0.03", "--test", str(of.test)], "--test without --calibration"),
        (["--base", str(of.base), "--keep", "0.03", "--method", "nps"], "works on rows of the task; give some with --calib"),
        (["--base", str(of.base), *plain, "--calibration", str(of.test)], "--calibration is given 2 times; expected once"),
    ]
    for arguments, message in cases:
        assert main(["slim", str(of.delta), str(out), *arguments]) == 2
        assert message in capsys.readouterr().err, message
    assert main(["slim", str(damaged), str(out), "--base", str(of.base), *plain]) == 2
    assert "hash" in capsys.readouterr().err
    assert main(["slim", str(of.delta), "--base", str(of.base), *plain]) == 2
    assert "got 1 path(s); expected DELTA OUT, or with --bank DIR any number of deltas" in capsys.readouterr().err
    assert not out.exists()


def test_nan_loses_and_nothing_but_nan_is_an_error(of: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = problems.Objective.__call__
    calls = []

    def often(self: Any, model: torch.nn.Module) -> float:
        calls.append(1)
        return float("nan") if len(calls) % 3 == 0 else real(self, model)

    monkeypatch.setattr("paring.recipes.scoring.Objective.__call__", often)
    settings, files = SlimSettings(keep=(0.03,), method="nps", budget=20), Files(str(of.calibration))
    record = slim(of.delta, tmp_path / "a.delta.safetensors", settings, base=str(of.base), files=files, say=lambda line: None)
    tried = record["keeps"][0]["tried"][0]
    assert tried["history"].count(None) == 6 and tried["score"] == min(s for s in tried["history"] if s is not None)
    monkeypatch.setattr("paring.recipes.scoring.Objective.__call__", lambda self, model: float("nan"))
    with pytest.raises(ValueError, match="has a finite score"):
        slim(of.delta, tmp_path / "b.delta.safetensors", settings, base=str(of.base), files=files, say=lambda line: None)
    assert not (tmp_path / "b.delta.safetensors").exists()


def test_a_result_that_gives_no_number_is_not_written(of: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = Scores(float("nan"), 0.25)
    monkeypatch.setattr("paring.recipes.scoring.Scoring.scores", lambda self, model: nan)
    settings, files = SlimSettings(keep=(0.03,), method="rescaled"), Files(str(of.calibration))
    with pytest.raises(DeltaError, match="rescaled, keep 0.03: the loss on calibration rows is not a number"):
        slim(of.delta, tmp_path / "a.delta.safetensors", settings, base=str(of.base), files=files, say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_auto_goes_on_without_a_method_that_comes_to_nothing(
    of: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error: SearchError = NoScoreError("no candidate has a finite score")

    def none(*arguments: Any, **more: Any) -> Any:
        raise error

    monkeypatch.setattr("paring.recipes.slim.methods.prune_nps", none)
    settings = SlimSettings(keep=(0.1,), method="auto", steps=2, subspaces=("magnitude",), budget=4)
    said: list[str] = []
    files = Files(str(of.calibration), str(of.validation))
    record = slim(of.delta, tmp_path / "a.delta.safetensors", settings, base=str(of.base), files=files, say=said.append)
    assert any("nps magnitude, keep 0.1: no score is a number; it is out" in line for line in said)
    assert [t["label"] for t in record["keeps"][0]["tried"]] == ["magnitude", "rescaled", "dare", "della", "fitted"]
    error = SearchError("another process is searching there")  # says nothing about the method
    with pytest.raises(SearchError, match="another process is searching there"):
        slim(of.delta, tmp_path / "b.delta.safetensors", settings, base=str(of.base), files=files, say=said.append)
    assert not (tmp_path / "b.delta.safetensors").exists()


def test_deltas_of_other_origin(of: Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of ``paring diff`` knows its configuration, from which the task follows; one of two state dicts knows nothing."""
    model = AutoModelForSequenceClassification.from_pretrained(of.base, config=AutoConfig.from_pretrained(of.folder))
    base = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("classifier")}
    paring.load_delta(of.delta, model).apply(model)
    model.save_pretrained(tmp_path / "whole")
    assert main(["diff", str(of.base), str(tmp_path / "whole"), str(tmp_path / "d.delta.safetensors")]) == 0
    paring.save_delta(paring.diff(base, model), tmp_path / "e.delta.safetensors")
    plain = ["--base", str(of.base), "--calibration", str(of.calibration), *FEW]

    def slimmed(name: str, *more: str) -> int:
        out = tmp_path / f"small-{name}.delta.safetensors"
        return main(["slim", str(tmp_path / f"{name}.delta.safetensors"), str(out), *plain, *more])

    assert slimmed("d", "--max-length", "7") == 0
    capsys.readouterr()
    assert slimmed("e") == 2
    error = capsys.readouterr().err
    assert "the delta does not say what it is for" in error and "architectures: ['BertModel']" in error
    assert slimmed("e", "--task", "text-classification") == 2  # of two labels, as transformers makes it
    assert "the model knows no label" in capsys.readouterr().err
    assert slimmed("e", "--max-length", "7", "--config", str(tmp_path / "whole")) == 0
    assert slimmed("e", "--config", str(tmp_path), "--overwrite") == 2
    assert f"there is no config.json in {tmp_path}" in capsys.readouterr().err
    assert main(of.slim(tmp_path / "small-t.delta.safetensors", *FEW)) == 0
    scores = [paring.load_delta(tmp_path / f"small-{name}.delta.safetensors").facts["scores"] for name in "det"]
    assert scores[0] == scores[1] == scores[2]


def test_an_empty_folder_may_be_the_output(of: Tuned, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    more = ("--keep", "0.1,0.2", "--method", "magnitude")
    assert main(of.slim(tmp_path / "out", *more)) == 0
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert main(of.slim(tmp_path / "out", *more)) == 2


def test_by_ray_workers_the_same(of: Tuned, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'paring[ray]')")
    environment = os.environ | {"OMP_NUM_THREADS": "2"}  # one for each worker
    more = ("--method", "nps", "--keep", "0.03", "--budget", "16", "--search", str(tmp_path / "search"), "--workers", "2")
    command = [sys.executable, "-m", "paring", *of.slim(tmp_path / "ray.delta.safetensors", *more)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    journal = (tmp_path / "search" / "nps-magnitude-by-kind-keep-0.03" / "search.jsonl").read_text().splitlines()
    assert len({json.loads(line)["worker"]["pid"] for line in journal[1:]}) == 2
    assert main(of.slim(tmp_path / "one.delta.safetensors", "--method", "nps", "--keep", "0.03", "--budget", "16")) == 0
    small = [paring.load_delta(tmp_path / f"{name}.delta.safetensors") for name in ("ray", "one")]
    assert small[0].facts["weights"] == small[1].facts["weights"]
    assert all(torch.equal(small[0][name], small[1][name]) for name in small[1])
