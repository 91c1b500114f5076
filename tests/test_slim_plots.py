"""What the plots of ``paring slim`` show is what the record says."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="needs the extra 'plot'")

from paring.recipes.slim.plots import against_evaluations, against_keep, drawn, write_report


def record(goal: str = "loss") -> dict[str, Any]:
    def tried(label: str, loss: float, accuracy: float, history: list[float | None] | None = None) -> dict[str, Any]:
        found = {"label": label, "scores": {"validation": {"loss": loss, "accuracy": accuracy}}}
        return found if history is None else found | {"history": history}

    return {
        "objective": goal,
        "tuned": {split: {"loss": 0.2, "accuracy": 0.9} for split in ("calibration", "validation")},
        "keeps": [
            {"keep": 0.1, "tried": [tried("dare", 0.5, 0.8), tried("nps kind", 0.3, 0.85, [0.6, 0.4, None, 0.45, 0.3])]},
            {"keep": 0.01, "tried": [tried("dare", 0.9, 0.5), tried("nps kind", 0.6, 0.7, [None, 0.7, 0.8, 0.65, 9.0])]},
        ],
    }


def lines(axis: Any) -> dict[str, list[Any]]:
    return {line.get_label(): list(line.get_ydata()) for line in axis.get_lines() if not line.get_label().startswith("_")}


def test_the_best_so_far_and_every_evaluation() -> None:
    axes = against_evaluations(record()).axes
    assert [axis.get_title() for axis in axes] == ["keep 0.1", "keep 0.01"]
    assert lines(axes[0])["nps kind"] == [0.6, 0.4, 0.4, 0.4, 0.3]
    assert lines(axes[1])["nps kind"] == [None, 0.7, 0.7, 0.65, 0.65]
    assert lines(axes[0])["the fine-tune"] == [0.2, 0.2]
    assert [list(line.get_ydata()) for line in axes[0].get_lines() if line.get_marker() == "."] == [[0.6, 0.4, None, 0.45, 0.3]]
    low, high = axes[1].get_ylim()
    assert 0 <= low < 0.2 and 0.7 < high < 1  # what is far off does not flatten the rest


def test_accuracy_grows() -> None:
    (axis, _) = against_evaluations(record("accuracy")).axes
    assert lines(axis)["nps kind"] == pytest.approx([0.4, 0.6, 0.6, 0.6, 0.7])  # the search made 1 - accuracy small
    assert axis.get_ylabel() == "calibration accuracy" and lines(axis)["the fine-tune"] == [0.9, 0.9]


def test_against_keep() -> None:
    (axis,) = against_keep(record()).axes
    assert lines(axis) == {"dare": [0.5, 0.8], "nps kind": [0.7, 0.85], "the fine-tune": [0.9, 0.9]}
    assert next(list(line.get_xdata()) for line in axis.get_lines()) == [0.01, 0.1]
    assert axis.get_ylabel() == "validation accuracy" and axis.get_xscale() == "log"


def test_files_are_the_same_each_time(tmp_path: Path) -> None:
    whole = ["slim.json", "search.svg", "search.png", "keep.svg", "keep.png"]
    assert write_report(record(), tmp_path / "a", False) == whole
    assert drawn(against_keep(record()), "png") == (tmp_path / "a" / "keep.png").read_bytes()
    one = record() | {"keeps": record()["keeps"][:1]}
    assert write_report(one, tmp_path / "b", False) == whole[:3]
    without = one | {"keeps": [{"keep": 0.1, "tried": one["keeps"][0]["tried"][:1]}]}
    assert write_report(without, tmp_path / "c", False) == whole[:1]
    with pytest.raises(FileExistsError):
        write_report(one, tmp_path / "a", False)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(whole)
