"""The framework of probes: folders, resuming, what is refused, the command."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from scipy import stats

import paring
from paring.cli.main import main
from paring.probe import registry
from paring.probe.bench import Bench
from paring.probe.intervals import bootstrap_interval, mean_interval, share_interval, student_t
from paring.probe.kind import Cell, Kind, Plan, Tables, Verdict
from paring.probe.runner import run
from probe_task import task

MEASURED: list[int] = []
FAILS_AT: list[int] = []
NOTED: dict[int, str] = {}  # by cell, what comes up while it is measured


@dataclass(frozen=True, kw_only=True)
class _Settings:
    count: int = 4
    seeds: tuple[int, ...] = (0,)


@contextmanager
def _plan(bench: Bench, settings: _Settings) -> Iterator[Plan]:
    def measure(cell: Cell) -> Tables:
        number = int(cell.what["number"])  # type: ignore[arg-type]
        if number in FAILS_AT:
            raise KeyboardInterrupt
        MEASURED.append(number)
        if number in NOTED:
            bench.note(NOTED[number])
        return {"squares": [{"square": number * number, "inverse": float("inf") if number == 0 else 1 / number}]}

    yield Plan([Cell({"number": i}) for i in range(settings.count)], measure, {"count": settings.count}, {"any": 1}, ("hello",))


KIND = Kind(
    name="squares",
    title="Squares",
    claim="Squares grow",
    source="nowhere",
    settings=_Settings,
    needs="checkpoint",
    plan=_plan,
    columns={"number": "a number", "square": "its square", "inverse": "one by it"},
    verdict=lambda tables, settings: Verdict(
        True, f"in {len(tables['squares'])} cells", {"sum": sum(int(r["square"]) for r in tables["squares"])}
    ),
    figure="none",
)


@pytest.fixture(autouse=True)
def _squares(monkeypatch: pytest.MonkeyPatch) -> None:
    MEASURED.clear()
    FAILS_AT.clear()
    NOTED.clear()
    monkeypatch.setitem(registry.KINDS, "squares", __name__)


def test_a_probe_writes_what_it_found(tmp_path: Path) -> None:
    result = task().probe("squares", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert (record["state"], record["kind"], record["num_cells"], record["facts"]) == ("finished", "squares", 4, {"any": 1})
    assert record["verdict"] == {"holds": True, "sentence": "holds in 4 cells", "measured": None, "numbers": {"sum": 14}}
    assert record["columns"] == KIND.columns and record["tables"] == {"squares": "squares.csv"} and record["figures"] == []
    assert record["notes"] == ["hello"] and record["settings"] == {"count": 4, "seeds": [0]}
    with (tmp_path / "out" / "squares.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"number": "0", "square": "0", "inverse": ""} and rows[3]["square"] == "9"
    assert (tmp_path / "out" / "verdict.txt").read_text() == "Squares grow (nowhere)\nholds in 4 cells\n"
    assert result.verdict.sentence == "holds in 4 cells" and result.tables["squares"][2]["square"] == 4


def test_finished_cells_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    FAILS_AT.append(2)
    with pytest.raises(KeyboardInterrupt):
        task().probe("squares", out)
    assert MEASURED == [0, 1] and json.loads((out / "probe.json").read_text())["state"] == "running"
    with (out / "cells.jsonl").open("ab") as file:
        file.write(b'{"key": "half a li')
    FAILS_AT.clear()
    task().probe("squares", out)
    assert MEASURED == [0, 1, 2, 3]
    lines = [json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()]
    assert [line["cell"]["number"] for line in lines] == [0, 1, 2, 3]
    said: list[str] = []
    record = json.loads((out / "probe.json").read_text()) | {"finished": "an hour ago"}
    (out / "probe.json").write_text(json.dumps(record))
    again = run("squares", str(task().model), out=out, figure=False, say=said.append)
    assert MEASURED == [0, 1, 2, 3] and again.record["num_cells"] == 4
    assert again.record["finished"] == "an hour ago"  # nothing was measured since
    assert "4 of 4 cells are there already and are kept" in said


def test_other_folders_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    task().probe("squares", out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(ValueError, match=r"holds another probe.*settings.count is 4 there, 5 asked for"):
        task().probe("squares", out, count=5)
    with pytest.raises(ValueError, match=r'holds another probe.*kind is "squares" there, "spectra" asked for'):
        task().probe("spectra", out)
    with pytest.raises(ValueError, match=r"subject.exclude is \[\] there"):
        task().probe("squares", out, exclude=("query",))
    other = tmp_path / "other.safetensors"
    from safetensors.torch import save_file

    save_file({"a.weight": torch.ones(2, 2)}, other)
    with pytest.raises(ValueError, match=r"holds another probe.*model is \"[0-9a-f]{32}\" there"):
        run("squares", str(other), out=out, figure=False)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds thesis.txt and no probe.json; expected a new or empty folder"):
        task().probe("squares", foreign)
    (foreign / "probe.json").write_text("{}")
    with pytest.raises(ValueError, match="is no record of this version"):
        task().probe("squares", foreign)
    with pytest.raises(ValueError, match="is a file; expected"):
        task().probe("squares", foreign / "thesis.txt")


def test_what_comes_up_while_cells_are_measured_is_said_and_kept(tmp_path: Path) -> None:
    NOTED.update({1: "texts were cut", 3: "texts were cut"})
    said: list[str] = []
    result = run("squares", str(task().model), out=tmp_path, figure=False, say=said.append)
    assert said[:3] == ["paring: hello", "4 of 4 cells to measure, first number 0", "paring: texts were cut"]
    assert said.count("paring: texts were cut") == 1 and result.record["notes"] == ["hello", "texts were cut"]
    NOTED.clear()
    assert task().probe("squares", tmp_path).record["notes"] == ["hello", "texts were cut"]  # of cells that are kept


def test_cells_of_other_versions_are_told_apart(tmp_path: Path) -> None:
    result = task().probe("squares", tmp_path)
    there = result.record["versions"]
    record = json.loads((tmp_path / "probe.json").read_text())
    (tmp_path / "probe.json").write_text(json.dumps(record | {"versions": there | {"torch": "1.0"}}))
    assert task().probe("squares", tmp_path).record["versions"]["torch"] == "1.0"  # nothing was measured with this one
    cells = tmp_path / "cells.jsonl"
    cells.write_text("".join(cells.read_text().splitlines(keepends=True)[:3]))
    found = task().probe("squares", tmp_path).record
    said = f'torch is "1.0" there, "{there["torch"]}" asked for'
    assert found["versions"] == there and any("cells of an earlier run are kept" in n and said in n for n in found["notes"])


def test_a_model_is_known_by_its_configuration_too(tmp_path: Path) -> None:
    from shutil import copytree

    model = copytree(task().model, tmp_path / "model")
    given = {"data": str(task().data), "task": "text-classification", "max_length": 7, "rows": 8, "seeds": (0,)}
    first = run("gradient", str(model), out=tmp_path / "out", figure=False, say=lambda line: None, **given)
    assert first.record["places"]["model"] == "model"  # no folder of anyone's
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(ValueError, match=r"holds another probe.*config is \"[0-9a-f]{32}\" there"):
        run("gradient", str(model), out=tmp_path / "out", figure=False, say=lambda line: None, **given)


def test_rows_that_are_chosen_and_reported_on(tmp_path: Path) -> None:
    from shutil import copytree

    data = copytree(task().data, tmp_path / "rows")
    shared = (data / "validation.csv").read_text().splitlines(keepends=True)[1]
    with (data / "test.csv").open("a") as file:
        file.write(shared)
    with pytest.raises(ValueError, match=r"data: 1 of 31 test rows of .*rows stand in validation too; expected none"):
        task().probe("gradient", tmp_path / "out", data=str(data))
    assert not (tmp_path / "out").exists()


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    task().probe("squares", tmp_path)
    cells = tmp_path / "cells.jsonl"
    lines = cells.read_text().splitlines(keepends=True)
    cells.write_text(lines[0] + "nonsense\n" + "".join(lines[2:]))
    with pytest.raises(ValueError, match=r"cells.jsonl, line 2, is not what a probe writes"):
        task().probe("squares", tmp_path)
    cells.write_text(lines[0] + "".join(lines[2:]))  # as the message says
    MEASURED.clear()
    task().probe("squares", tmp_path)
    assert MEASURED == [1]
    assert [r["number"] for r in task().probe("squares", tmp_path).tables["squares"]] == [0, 1, 2, 3]


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    import fcntl

    task().probe("squares", tmp_path)
    with (tmp_path / "cells.jsonl").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is probing in"):
            task().probe("squares", tmp_path)


def test_unknown_names(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"there is no probe 'spectre'; did you mean 'spectra'\?"):
        task().probe("spectre", tmp_path / "out")
    with pytest.raises(ValueError, match=r"probe spectra: there is no setting 'group'; did you mean 'groups'\?"):
        task().probe("spectra", tmp_path / "out", group=3)
    with pytest.raises(ValueError, match="probe spectra looks at weights alone"):
        task().probe("spectra", tmp_path / "out", data="rows", task="causal-lm")
    with pytest.raises(ValueError, match="data is None; expected the rows"):
        run("gradient", str(task().model), out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"task is None; expected .*--task"):
        run("gradient", str(task().model), out=tmp_path / "out", data="rows")
    assert not (tmp_path / "out").exists()
    assert main(["probe", "spectra", str(tmp_path / "nowhere.safetensors"), "--out", str(tmp_path / "out")]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_undescribed_columns_are_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(KIND.columns, dict)
    monkeypatch.delitem(KIND.columns, "inverse")
    with pytest.raises(AssertionError, match="do not tell what inverse is"):
        task().probe("squares", tmp_path / "out")


def test_the_room_is_loaded_when_it_is_used() -> None:
    from test_package import HEAVY, loaded_by

    assert not loaded_by("import paring.probe") & {*HEAVY, "torch", "numpy"}
    assert not loaded_by("import paring; paring.probe.run; paring.probe.run.__name__; paring.probe.KINDS") & {
        "matplotlib",
        "peft",
    }
    assert paring.probe.KINDS is registry.KINDS
    with pytest.raises(AttributeError, match=r"module 'paring.probe' has no attribute 'spectrum'; it has KINDS"):
        paring.probe.spectrum  # noqa: B018


def test_intervals() -> None:
    for freedom in (1, 2, 3, 4, 9, 30):
        assert student_t(0.95, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)
    mean, half = mean_interval([1.0, 2.0, 4.0])
    expected = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1, 2, 4]))
    assert (mean - half, mean + half) == pytest.approx(expected)
    assert mean_interval([3.0]) == (3.0, float("inf"))
    for cases, total in ((0, 20), (3, 20), (20, 20)):
        found = stats.binomtest(cases, total).proportion_ci(0.95, "wilson")
        assert share_interval(cases, total) == pytest.approx((found.low, found.high), abs=1e-12)
    assert share_interval(0, 0) == (0.0, 1.0)
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)).double().numpy()
    low, high = bootstrap_interval(values)
    width = stats.t.ppf(0.975, 199) * stats.sem(values)
    assert (low, high) == pytest.approx((values.mean() - width, values.mean() + width), abs=0.15 * width)
    assert bootstrap_interval(values) == (low, high) != bootstrap_interval(values, seed=1)
    for call in (lambda: mean_interval([]), lambda: bootstrap_interval([])):
        with pytest.raises(ValueError, match="expected at least one"):
            call()
