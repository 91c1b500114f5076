"""The page of a probe draws what its tables hold, of every kind; without them, the picture that lies in the folder."""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="needs the extra 'plot'")

from paring.report.document import Document, Figure, Panel, Picture, Series
from paring.report.readers.probe import read
from paring.report.readers.probe_figures import probe_figure
from probe_task import task
from report_task import one_thread

_TRAINED: dict[str, Any] = {"steps": 4, "batch_size": 8, "seeds": (0, 1), "rates": (0.01,), "threads": 1}
_SLICES = _TRAINED | {"rank": 2, "axes": ("column",)}
GIVEN: dict[str, dict[str, Any]] = {
    "spectra": {"groups": 4},
    "energy": {"seeds": (0, 1)},
    "gradient": {"seeds": (0, 1), "rank": 4},
    "complexity": {"methods": ("row", "column", "full", "lora", "ia3")},
    "rank": _TRAINED | {"ranks": (1, 2, 4)},
    "position": _SLICES | {"positions": 3},
    "importance": _SLICES | {"rows": 32},
    "tickets": _SLICES | {"whole_rate": 1e-3, "rounds": 1, "sources": ("rewound",)},
    "schedule": _TRAINED | {"rank": 2, "vary": ("interval",), "intervals": (1, 2)},
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def figures(page: Document) -> list[Figure | Picture]:
    return [block for section in page.sections for block in section.blocks if isinstance(block, Figure | Picture)]


def series(panel: Panel, name: str, shape: str = "line", faint: bool = False) -> Series:
    (found,) = [s for s in panel.series if (s.name, s.shape, s.faint) == (name, shape, faint)]
    return found


@pytest.mark.parametrize("kind", GIVEN)
def test_every_kind_is_drawn_from_its_tables(kind: str, tmp_path: Path) -> None:
    tables = task().probe(kind, tmp_path / "run", **GIVEN[kind], figure=True).tables
    (figure,) = figures(read(tmp_path / "run"))
    assert isinstance(figure, Figure)
    first = figure.panels[0]
    if kind == "spectra":
        rows = [r for r in tables["matrices"] if (r["axis"], r["matrix"]) == ("row", "trained")]
        drawn = series(first, "trained")
        assert sorted(r["energy_ratio"] for r in rows) == [y for _, y in drawn.points]
        assert sorted(drawn.labels) == sorted(r["layer"] for r in rows) and len(figure.panels) == 4
    elif kind == "energy":
        shown = series(first, "pretrained, class means").points
        for k, share in shown:
            of = [r for r in tables["curves"] if (r["model"], r["layer"], r["k"]) == ("pretrained", 2, k)]
            assert len(of) == 2 and share == pytest.approx(fmean(r["class_mean"] for r in of))
        assert len(shown) > 4 and [p.title for p in figure.panels][1:] == [
            "Directions that hold 90 % of the class means",
            "Variance between classes, adjusted",
        ]
    elif kind == "gradient":
        drawn = series(first, "row slices", "step")
        assert [x for x, _ in drawn.points] == sorted(r["relative_norm"] for r in tables["slices"] if r["axis"] == "row")
        assert drawn.points[-1][1] == 1 and drawn.labels[0].rpartition(", ")[2].isdigit()
        least, most = (s for s in figure.panels[1].series if s.name == "row slices" and s.faint)
        for layer, (_, low), (_, high) in zip(least.labels, least.points, most.points, strict=True):
            of = [r["relative_norm"] for r in tables["slices"] if (r["axis"], r["layer"]) == ("row", layer)]
            assert (low, high) == (min(of), max(of))
    elif kind == "complexity":
        for row in tables["methods"]:
            if row["refused"] is None:
                assert series(first, row["method"], "dots").points == [(row["num_trainable"], row["total_bytes"] / 1e6)]
    elif kind == "rank":
        for schedule in ("static", "moving"):
            runs = [r for r in tables["runs"] if r["schedule"] == schedule]
            for rank, mean in series(first, f"{schedule}, test").points:
                assert mean == pytest.approx(fmean(r["test"] for r in runs if r["rank"] == rank))
            dots = series(first, f"{schedule}, test", "dots", faint=True)
            assert sorted(dots.points) == sorted((r["rank"], r["test"]) for r in runs)
            assert set(dots.labels) == {"seed 0", "seed 1"}
    elif kind == "position":
        means = [(r["position"], r["test"]) for r in tables["positions"]]
        assert first.title == "column slices" and series(first, "mean of the seeds").points == means
        (level,) = series(first, "mean of all positions", "level").points
        assert (
            level[1] == pytest.approx(fmean(y for _, y in means)) and len(series(first, "one seed", "dots", True).points) == 6
        )
    elif kind == "importance":
        for row in tables["categories"]:
            assert series(first, row["category"], "dots").points == [(row["score"], row["test"])]
            runs = [r["test"] for r in tables["runs"] if r["category"] == row["category"]]
            assert [y for _, y in series(first, row["category"], "dots", True).points] == runs
    elif kind == "tickets":
        shown = [s.points for s in first.series if not s.faint]
        assert shown == [[(row["overlap"], row["test"])] for row in tables["choices"]] and len(shown) == 2
        for kept, mean in series(figure.panels[1], "rewound: the ticket").points:
            assert mean == pytest.approx(fmean(r["test"] for r in tables["tickets"] if r["kept"] == kept))
    else:
        assert kind == "schedule"
        for row in tables["variants"]:
            away = 100 * row["over_static"]
            if row["interval"] is None:
                assert series(first, row["variant"], "level").points == [(0, away)]
            else:
                assert series(first, row["variant"], "dots").points == [(row["interval"], pytest.approx(away))]


def test_tables_that_do_not_hold_it(tmp_path: Path) -> None:
    task().probe("spectra", tmp_path / "run", groups=2, figure=True)
    table = tmp_path / "run" / "profiles.csv"
    whole = table.read_text()
    table.write_text(whole.replace("place", "elsewhere", 1))
    (picture,) = figures(read(tmp_path / "run"))
    assert isinstance(picture, Picture) and picture.svg == (tmp_path / "run" / "figure.svg").read_bytes()
    assert probe_figure("another", "", {}) is None
    assert probe_figure("position", "", {"positions": []}) is None
