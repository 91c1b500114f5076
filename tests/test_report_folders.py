"""``paring report`` of folders as the commands write them: their numbers are on the page, and what is missing is said."""

import base64
import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs the extra 'plot'")

import paring
from chromium import Page, chromium, found
from paring.cli.main import main
from paring.delta.inspect import summarise
from paring.report import ReportError, write_report
from paring.report.numbers import NOT_THERE
from report_task import (
    RUNS,
    Seen,
    bank,
    copied,
    deltas,
    demo_run,
    edit,
    merged,
    merged_bank,
    one_thread,
    probe_run,
    searched_merge,
    slim_report,
    stopped_run,
    transfer_report,
    tune_run,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def page(folder: Path, out: Path) -> Seen:
    return Seen(write_report(folder, out / "page.html").read_text())


def csvs(seen: Seen) -> dict[str, list[list[str]]]:
    """The downloads of a page."""
    found = {}
    for link in seen.tags["a"]:
        if name := link.get("download"):
            kind, _, content = (link["href"] or "").partition(",")
            assert kind == "data:text/csv;charset=utf-8;base64"
            found[name] = list(csv.reader(io.StringIO(base64.b64decode(content).decode(), newline="")))
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as opened:
        yield opened


@pytest.mark.skipif(found() is None, reason="needs a browser: apt-get install chromium")
@pytest.mark.parametrize("name", RUNS)
def test_every_page_runs_in_a_browser(name: str, tmp_path: Path, browser: Page) -> None:
    """Nothing goes to the console or out to the network, and what is drawn has a size; on a telephone no wider than it."""
    path = write_report(RUNS[name](), tmp_path / "page.html")
    for screen in ({}, {"dark": True}, {"width": 360}):
        browser.errors.clear()
        browser.requests.clear()
        browser.open(path, **screen)  # type: ignore[arg-type]
        drawn = "[...document.querySelectorAll('svg.plot, img')].filter(e => e.getClientRects().length)"
        sizes = browser.evaluate(drawn + ".map(e => Math.min(...['width', 'height'].map(s => e.getBoundingClientRect()[s])))")
        assert all(size > 50 for size in sizes)
        assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        asked = [address for address in browser.requests if not address.startswith("data:")]
        assert browser.errors == [] and asked == [path.as_uri()]


@pytest.mark.parametrize("name", RUNS)
def test_every_page_stands_alone_and_is_small(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = RUNS[name](), tmp_path / "page.html"
    before = sorted(p.name for p in folder.iterdir())
    capsys.readouterr()
    assert main(["report", str(folder), "--out", str(out)]) == 0
    assert f"Wrote {out}: {out.stat().st_size:,} bytes" in capsys.readouterr().out
    assert sorted(p.name for p in folder.iterdir()) == before and sorted(p.name for p in tmp_path.iterdir()) == ["page.html"]
    text = out.read_text()
    seen = Seen(text)
    assert out.stat().st_size < 1_000_000
    assert "default-src 'none'" in seen.tags["meta"][1]["content"]  # type: ignore[operator]
    addresses = [a for tags in seen.tags.values() for t in tags for a in (t.get("src"), t.get("href")) if a]
    assert addresses and all(a.startswith(("data:", "#")) for a in addresses)
    assert not [a for tags in seen.tags.values() for t in tags for a in t if a.startswith("on") or a == "style"]
    assert len({t["id"] for tags in seen.tags.values() for t in tags if "id" in t}) == text.count(' id="')  # each once
    config = folder / "paring-fuse.yml"  # on the page as it stands, paths and all
    assert str(folder.parent) not in text.replace(config.read_text() if config.exists() else "\0", "")
    assert write_report(folder, tmp_path / "again.html").read_text() == text
    for grid in seen.tags.get("table", []):
        assert grid["id"] in {(t.get("id") or "").removesuffix("-caption") for t in seen.tags["caption"]}
    for svg in seen.tags.get("svg", []):
        assert svg.get("aria-hidden") == "true" or svg.get("aria-label")


def test_tune(tmp_path: Path) -> None:
    folder = tune_run()
    results = json.loads((folder / "results.json").read_text())
    seen = page(folder, tmp_path)
    scores = {row[0]: row[1:] for row in seen.table("rows-and-scores")}
    assert scores["validation"] == [str(results["rows"]["validation"]), f"{results['scores']['validation']:.4f}"]
    assert results["versions"]["torch"] in seen.text and results["machine"] in seen.text
    assert "column slices of rank 8 that stay in place, 100 steps" in seen.text
    summary = summarise(folder / "model.delta.safetensors")
    layers = seen.table("holds-layer")
    assert [row[0] for row in layers[1:-1]] == [r.name for r in summary.rows]
    assert layers[-1][0] == "total" and layers[-1][3] == f"{sum(r.kept for r in summary.rows):,}"
    # The curve has an evaluation a step, not those after training, which have the last step's number.
    evaluated = [e for e in results["history"] if "eval_loss" in e]
    history = csvs(seen)["table-2-every-evaluation.csv"]
    assert [float(row[2]) for row in history[1:]] == [e["eval_loss"] for e in evaluated][: len(history) - 1]
    assert len({row[0] for row in history}) == len(history) and len(evaluated) > len(history) - 1
    assert "What is missing" not in seen.text


def test_a_tune_that_was_interrupted(tmp_path: Path) -> None:
    seen = page(stopped_run(), tmp_path)
    assert "There is no results.json: the run was interrupted" in seen.text and "--resume" in seen.text
    (last,) = re.findall(r"known by the last checkpoint, after step (\d+)", seen.text)
    assert int(last) >= 10 and [row[0] for row in seen.table("every-evaluation")[1:3]] == ["5", "10"]
    early = copied(stopped_run(), tmp_path / "early")
    shutil.rmtree(early / "checkpoints")
    assert "There is no checkpoint yet either" in page(early, tmp_path).text


def test_a_tune_whose_delta_is_gone_or_damaged(tmp_path: Path) -> None:
    folder = copied(tune_run(), tmp_path / "run")
    delta = folder / "model.delta.safetensors"
    delta.write_bytes(delta.read_bytes()[:200])
    seen = page(folder, tmp_path)
    assert "model.delta.safetensors cannot be read: " in seen.text and str(tmp_path) not in seen.text
    delta.unlink()
    assert "model.delta.safetensors, is not in the folder" in page(folder, tmp_path).text


def test_slim(tmp_path: Path) -> None:
    record = json.loads((slim_report() / "slim.json").read_text())
    seen = page(slim_report(), tmp_path)
    least = min(record["keeps"], key=lambda one: one["keep"])
    chosen = seen.table("written-at-each-keep")
    assert chosen[1][:3] == ["0.05", least["chosen"], f"{least['bytes']:,}"]
    assert f"{least['scores']['test']['accuracy']:.4f}" in chosen[1] and chosen[-1][1] == "the fine-tune"
    tried = csvs(seen)["table-2-keep-0-05.csv"]
    assert [row[0] for row in tried[1:]] == [t["label"] for t in least["tried"]]
    assert [float(row[-1]) for row in tried[1:]] == [t["seconds"] for t in least["tried"]]
    numbers = csvs(seen)["figure-2-numbers.csv"]  # of the search: every evaluation, and the best so far
    searched = next(t for t in least["tried"] if "history" in t)
    of = [row for row in numbers if row[:2] == ["Keep 0.05", searched["label"]]]
    count = len(searched["history"])
    assert [float(row[3]) for row in of[:count]] == searched["history"]
    assert [float(row[3]) for row in of[count:]] == [min(searched["history"][: i + 1]) for i in range(count)]
    assert paring.__version__ == record["versions"]["paring"] and record["machine"] in seen.text
    assert record["settings"]["steps"] == 3 and "report" not in record["settings"]
    assert "What is missing" not in seen.text


def test_slim_without_what_an_older_one_did_not_write(tmp_path: Path) -> None:
    folder = copied(slim_report(), tmp_path / "run")

    def older(record: dict) -> None:
        for key in ("versions", "machine", "settings"):
            del record[key]
        for one in [record, *record["keeps"]]:
            one.get("tuned", one.get("scores")).pop("test")

    edit(folder / "slim.json", older)
    seen = page(folder, tmp_path)
    assert "Versions of paring and PyTorch are not in the record" in seen.text and "No test rows were given" in seen.text


def test_bank_and_a_folder_of_deltas(tmp_path: Path) -> None:
    record = json.loads((bank() / "slim.json").read_text())
    seen = page(bank(), tmp_path)
    tasks = {row[0]: row for row in seen.table("every-task")}
    words = record["tasks"]["words"]
    assert tasks["words"][5:7] == [f"{words[k]['test']['accuracy']:.4f}" for k in ("tuned", "scores")]
    assert tasks["other"][5:] == [NOT_THERE] * 3 and "No rows were given for other" in seen.text
    both = record["base_bytes"] + sum(t["slim_bytes"] for t in record["tasks"].values())
    assert dict(seen.table("both-ways"))["base and deltas"] == f"{both:,}"
    assert record["versions"]["paring"] == paring.__version__ and record["settings"]["keep"] == [0.05]

    plain = page(deltas(), tmp_path)
    files = {row[0]: row for row in plain.table("delta-files")}
    assert files["keep-0.05"][1] == f"{(deltas() / 'keep-0.05.delta.safetensors').stat().st_size:,}"
    assert "There is no slim.json" in plain.text

    less = copied(bank(), tmp_path / "run")
    (less / "other.delta.safetensors").unlink()
    assert "Of other the delta file is not in the folder" in page(less, tmp_path).text


def test_transfer(tmp_path: Path) -> None:
    record = json.loads((transfer_report() / "transfer.json").read_text())
    seen = page(transfer_report(), tmp_path)
    whole = next(m for m in record["methods"] if m["method"] == "whole")
    rows = {row[0].removeprefix("▸ "): row for row in seen.table("best-lambda")}
    assert rows["whole"][3:] == [f"{whole[at][key]:.4f}" for at in ("best", "test") for key in ("tuned", "original", "h")]
    assert rows["the base"][3] == f"{record['ends']['base']['validation']['tuned']:.4f}"
    curve = [row for row in csvs(seen)["figure-1-numbers.csv"] if row[:2] == ["H-score", "whole"]]
    assert [float(row[3]) for row in curve[:3]] == [p["h"] for p in whole["path"]]
    assert record["settings"]["lambdas"] == [0, 0.5, 1] and "What is missing" not in seen.text


def test_fuse(tmp_path: Path) -> None:
    folder = merged()
    record = json.loads((folder / "paring-fuse.json").read_text())
    seen = page(folder, tmp_path)
    assert [row[-1] for row in seen.table("by-what-each")[1:]] == [m["fingerprint"] for m in record["models"]]
    assert (folder / "paring-fuse.yml").read_text() in seen.text
    total = seen.table("weights-layer")[-1]
    assert total[:2] == ["total", str(record["output"]["tensors"])]
    bare = copied(folder, tmp_path / "run")
    (bare / "model.safetensors").unlink()
    (bare / "paring-fuse.yml").unlink()
    seen = page(bare, tmp_path)
    assert "The weights: run cannot be read" in seen.text and "paring-fuse.yml, cannot be read" in seen.text


def test_a_merge_that_is_a_bank(tmp_path: Path) -> None:
    folder = merged_bank()
    output = json.loads((folder / "paring-fuse.json").read_text())["output"]
    seen = page(folder, tmp_path)
    rows = {row[0]: row for row in seen.table("each-task")}
    for name, told in output["tasks"].items():
        assert rows[name][1:3] == [f"{told['scale']:.4f}", f"{(folder / f'{name}.mask.safetensors').stat().st_size:,}"]
    summary = summarise(folder / "shared")
    assert seen.table("what-shared-holds")[-1][3] == f"{sum(r.kept for r in summary.rows):,}"
    assert "a mask and a scale for each of 2 tasks" in seen.text and "What is missing" not in seen.text
    less = copied(folder, tmp_path / "run")
    (less / "tuned1.mask.safetensors").unlink()
    assert "tuned1.mask.safetensors, the mask of a task, is not in the folder" in page(less, tmp_path).text
    (less / "paring-fuse.json").unlink()
    assert "a mask of the vector in shared/" in page(less, tmp_path).text


def test_a_merge_with_searched_weights(tmp_path: Path) -> None:
    folder = searched_merge()
    record = json.loads((folder / "paring-fuse-search.json").read_text())
    seen = page(folder, tmp_path)
    chosen = next(a for a in record["tried"] if a["label"] == record["chosen"])
    rows = {row[0].removeprefix("▸ "): row[1:] for row in seen.table("scores-on-test")}
    expected = [f"{chosen['scores']['test'][t]['accuracy']:.4f}" for t in chosen["scores"]["test"]]
    assert rows[record["chosen"]][:4] == [*expected, *(f"{chosen['shares']['test'][g]:.4f}" for g in ("mean", "worst"))]
    weights = {row[0]: row[1:] for row in seen.table("weights-by-task")[1:]}
    assert weights == {t: [f"{w:.4g}" for w in of.values()] for t, of in chosen["weights"].items()}
    assert "weights-layer" in str(seen.tables.keys())  # the checkpoint is there, too
    assert "Lambda" not in seen.text  # task arithmetic was searched without
    fitted = copied(folder, tmp_path / "fitted")  # and with the merge as configured instead of a search

    def fit(record: dict) -> None:
        of = next(a for a in record["tried"] if a["label"] == record["chosen"])
        of.update(
            weights=None, search=None, fit={"before": {"subject": 0.5}, "after": {"subject": 0.25}, "entries": 9, "steps": 4}
        )

    edit(fitted / "paring-fuse-search.json", fit)
    again = page(fitted, tmp_path)
    assert again.table("distance-to-the-fine-tunes")[-1] == ["subject", "0.5000", "0.2500"]
    assert "9 entries tuned on calibration rows for 4 steps" in again.text
    broken = copied(folder, tmp_path / "run")
    edit(broken / "paring-fuse-search.json", lambda r: r.update(chosen="luck"))
    with pytest.raises(ReportError, match="chosen is 'luck', which is not among what was tried"):
        page(broken, tmp_path)


def test_probe(tmp_path: Path) -> None:
    folder = probe_run()
    record = json.loads((folder / "probe.json").read_text())
    seen = page(folder, tmp_path)
    sentence = record["verdict"]["sentence"]
    assert sentence[0].upper() + sentence[1:] in seen.text and record["claim"] in seen.text
    assert "img" not in seen.tags  # its figure is drawn from the tables
    with (folder / "groups.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    columns, *rows = next(c for n, c in csvs(seen).items() if "groups" in n)
    assert [row[columns.index("layer")] for row in rows] == [w["layer"] for w in written]
    assert [float(row[columns.index("mean eigenvalue")]) for row in rows] == [float(w["mean_eigenvalue"]) for w in written]
    assert f"mean eigenvalue: {record['columns']['mean_eigenvalue']}" in seen.text

    bare = copied(folder, tmp_path / "run")
    (bare / "groups.csv").unlink()
    (bare / "profiles.csv").unlink()
    (image,) = page(bare, tmp_path).tags["img"]
    assert base64.b64decode((image["src"] or "").partition(",")[2]) == (folder / "figure.svg").read_bytes()
    (bare / "figure.svg").unlink()
    seen = page(bare, tmp_path)
    assert "There is no figure.svg" in seen.text and "groups.csv is not in the folder" in seen.text
    (bare / "matrices.csv").write_text((bare / "matrices.csv").read_text() + "," * 40 + "1\n")
    edit(bare / "probe.json", lambda r: r["verdict"]["numbers"].update(num_within=float("inf"), worst_ratio=float("nan")))
    seen = page(bare, tmp_path)
    assert "a row has more values than there are columns" in seen.text
    edit(bare / "probe.json", lambda r: r["tables"].update(matrices="../probe/matrices.csv"))
    with pytest.raises(ReportError, match=r"'matrices' is '\.\./probe/matrices.csv'; expected the name of a file"):
        page(bare, tmp_path)


def test_a_probe_that_was_stopped(tmp_path: Path) -> None:
    stopped = copied(probe_run(), tmp_path / "run")

    def running(record: dict) -> None:
        for key in ("verdict", "tables", "figures", "seconds"):
            del record[key]
        record["state"] = "running"

    edit(stopped / "probe.json", running)
    lines = (stopped / "cells.jsonl").read_bytes().splitlines(keepends=True)
    (stopped / "cells.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:50])
    seen = page(stopped, tmp_path)
    assert "The probe was stopped, or goes on still" in seen.text and "cells.jsonl, line 3, is cut off" in seen.text
    planned = json.loads((stopped / "probe.json").read_text())["num_planned"]
    assert planned == len(lines) and f"2 of {planned}" in seen.text
    assert "details" not in seen.tags or "Groups" not in str(seen.tags["details"][0])  # a table to look at is open
    first = json.loads(lines[0])
    rows = seen.table("groups")
    assert len(rows) - 1 == sum(len(json.loads(line)["tables"]["groups"]) for line in lines[:2])
    assert rows[1][0] == first["cell"]["layer"]


def test_demo(tmp_path: Path) -> None:
    record = json.loads((demo_run() / "demo.json").read_text())
    seen = Seen((demo_run() / "report.html").read_text())  # the demo wrote it itself
    for line in record["conclusions"]:
        assert line in seen.text
    accuracies = seen.table("test-accuracy")
    assert accuracies[0][1:3] == ["checkered", "unwoven"]
    for row, method in zip(accuracies[1:], record["methods"], strict=False):
        reached = [r["test_accuracy"] for r in record["results"] if r["method"] == method["name"]]
        assert row[:3] == [method["label"], *(f"{a:.4f}" for a in reached)]
    curves = csvs(seen)["figure-1-numbers.csv"]
    assert len(curves) - 1 == sum(len(r["curve"]) for r in record["results"])
    unwoven = next(t for t in seen.tags["svg"] if t.get("aria-label", "").startswith("unwoven, the task"))  # type: ignore[union-attr]
    assert unwoven["aria-label"] == "unwoven, the task: labels 9, 7, 5, 3, 1"

    fused = seen.table("full-fine-tunes-in")
    assert fused[0][1:3] == ["checkered", "unwoven"]
    for row, key in zip(fused[1:], ("fitted", "average", "ties"), strict=False):
        assert row[1:3] == [f"{r[key]:.4f}" for r in record["fused"]["results"]]
    kept = seen.table("what-they-take")
    assert [row[:2] for row in kept[1:]] == [[k["name"], f"{k['bytes']:,}"] for k in record["kept"]]
    path = csvs(seen)["figure-3-numbers.csv"]
    assert len(path) - 1 == 3 * sum(len(m["path"]) + 1 for m in record["transfer"]["methods"])
    assert "From the base to checkered" in seen.text

    older = copied(demo_run(), tmp_path / "run")
    (older / "deltas" / "unwoven-slim.delta.safetensors").unlink()
    (older / "fused" / "model.safetensors").unlink()
    assert "The fused model is not in fused/." in page(older, tmp_path).text
    edit(older / "demo.json", lambda r: r.update(fused=None))  # of one task
    alone = page(older, tmp_path).text
    assert "All in one model" not in alone and "What is kept" in alone and "The fused model" not in alone
    edit(older / "demo.json", lambda r: [t.pop("samples") for t in r["tasks"]])
    edit(older / "demo.json", lambda r: [r.pop(key) for key in ("fused", "kept", "transfer")])
    seen = page(older, tmp_path)
    assert "it fused nothing, and followed no path" in seen.text and "All in one model" not in seen.text
    assert "The samples of the tasks are not in demo.json" in seen.text
    assert "Of 10 delta files 1 are not in deltas/: unwoven-slim." in seen.text


@pytest.mark.parametrize(
    ("run", "file", "change", "message"),
    [
        ("demo", "demo.json", lambda r: r["results"].pop(), "'results' has not one result of full for each of its 2 tasks"),
        ("demo", "demo.json", lambda r: r["fused"]["results"].reverse(), "'results' are not of the tasks, one each in their"),
        (
            "demo",
            "demo.json",
            lambda r: r["tasks"][0]["samples"]["shown"].append("0z f"),
            "'shown' holds '0z f'; expected rows",
        ),
        ("slim", "slim.json", lambda r: r["keeps"][0].update(keep="much"), "keeps[0]: 'keep' is text; expected a number"),
        ("slim", "slim.json", lambda r: r["keeps"].clear(), "'keeps' is empty"),
        (
            "transfer",
            "transfer.json",
            lambda r: r.pop("ends"),
            "transfer.json has no 'ends'; it was written by another program",
        ),
        ("transfer", "transfer.json", lambda r: r["chosen"].update(method="luck"), "chosen is 'luck', which is not among"),
        ("tune", "results.json", lambda r: r.update(num_weights=True), "'num_weights' is true or false; expected a number"),
        ("fuse", "paring-fuse.json", lambda r: r.update(models={}), "'models' is an object; expected a list"),
    ],
)
def test_records_that_are_not_what_a_run_writes(
    run: str, file: str, change, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(RUNS[run](), tmp_path / "run")
    edit(folder / file, change)
    capsys.readouterr()
    assert main(["report", str(folder)]) == 2
    assert message in capsys.readouterr().err and not (folder / "report.html").exists()


def test_folders_that_are_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(folder: Path) -> str:
        assert main(["report", str(folder)]) == 2
        return capsys.readouterr().err

    assert "there is no such folder" in refused(tmp_path / "nowhere")
    assert "it is empty; expected what one of paring tune, " in refused(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert "it has notes.txt; expected" in refused(tmp_path)
    assert "notes.txt is a file; expected the folder of a run" in refused(tmp_path / "notes.txt")
    copied(tune_run(), tmp_path / "inner")
    assert f"there are runs inside of it, {tmp_path / 'inner'} (paring tune)" in refused(tmp_path)
    shutil.copy(slim_report() / "slim.json", tmp_path / "inner")
    assert "files of more than one run (paring tune, paring slim --report)" in refused(tmp_path / "inner")
    (tmp_path / "inner" / "slim.json").write_text("{}")
    (tmp_path / "inner" / "slim.json").write_text('{"keeps": [1')
    assert "slim.json is not JSON" in refused(tmp_path / "inner")
    (tmp_path / ".out.fuse").mkdir()
    (tmp_path / ".out.fuse" / "journal.jsonl").write_text("")
    assert "a paring fuse into it was stopped" in refused(tmp_path / "out")


def test_only_a_page_of_ours_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text("<p>mine</p>")
    with pytest.raises(FileExistsError, match="is there and is no page of paring's"):
        write_report(tune_run(), out)
    assert out.read_text() == "<p>mine</p>"
    with pytest.raises(FileExistsError, match="is a folder; expected a file"):
        write_report(tune_run(), tmp_path)
    out.unlink()
    write_report(tune_run(), out)
    out.write_text(out.read_text().replace("paring tune", "older"))
    write_report(tune_run(), out)
    assert "older" not in out.read_text()
    with pytest.raises(ReportError):
        write_report(tmp_path, out)
    assert Seen(out.read_text()).text  # what was there stays
