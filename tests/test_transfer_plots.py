"""What the plots of ``paring transfer`` show is what the record says."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="needs the extra 'plot'")

from paring.recipes.transfer.plots import curves, front, write_report


def place(lam: float, tuned: float | None, original: float | None, h: float | None) -> dict[str, Any]:
    return {"lambda": lam, "tuned": tuned, "original": original, "h": h}


def record() -> dict[str, Any]:
    whole = [place(0.0, 0.1, 0.8, 0.18), place(0.5, 0.5, 0.6, 0.55), place(1.0, None, 0.2, None)]
    nps = [place(0.0, 0.1, 0.8, 0.18), place(0.5, 0.4, 0.7, 0.51), place(1.0, 0.7, 0.5, 0.58)]
    return {
        "methods": [{"method": "whole", "path": whole, "best": whole[1]}, {"method": "nps", "path": nps, "best": nps[2]}],
        "ends": {"base": {"validation": whole[0]}, "tuned": {"validation": nps[2]}},
        "pareto": [
            {"method": "whole", "lambda": 0.0},
            {"method": "nps", "lambda": 0.5},
            {"method": "whole", "lambda": 0.5},
            {"method": "nps", "lambda": 1.0},
        ],
    }


def test_curves_of_both_scores_and_h() -> None:
    axes = curves(record()).axes
    assert [axis.get_title() for axis in axes] == ["tuned task", "original tasks", "H-score"]
    for axis, key in zip(axes, ("tuned", "original", "h"), strict=True):
        lines = {line.get_label(): line for line in axis.get_lines()}
        for method in record()["methods"]:
            line = lines[method["method"]]
            assert list(line.get_xdata()) == [0.0, 0.5, 1.0] and list(line.get_ydata()) == [p[key] for p in method["path"]]
        marked = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.get_lines() if len(line.get_xdata()) == 1]
        assert marked == [(m["best"]["lambda"], m["best"][key]) for m in record()["methods"]]


def test_the_front_is_a_staircase_below_which_all_places_lie() -> None:
    (axis,) = front(record()).axes
    lines = {line.get_label(): line for line in axis.get_lines()}
    stair = lines["Pareto front"]
    assert list(stair.get_xdata()) == [0.8, 0.7, 0.6, 0.5] and list(stair.get_ydata()) == [0.1, 0.4, 0.5, 0.7]
    assert stair.get_drawstyle() == "steps-post"  # from the right: level to the next place, then up
    assert list(lines["nps"].get_xdata()) == [0.8, 0.7, 0.5] and list(lines["nps"].get_ydata()) == [0.1, 0.4, 0.7]
    assert {text.get_text() for text in axis.texts} == {"the base", "the fine-tune"}


def test_ends_without_numbers_are_left_out(tmp_path: Path) -> None:
    given = record()
    given["ends"]["tuned"]["validation"] = given["methods"][0]["path"][2]
    (axis,) = front(given).axes
    assert [text.get_text() for text in axis.texts] == ["the base"]
    write_report(given, tmp_path / "a", False)


def test_files(tmp_path: Path) -> None:
    names = ["transfer.json", "curves.svg", "curves.png", "pareto.svg", "pareto.png"]
    assert write_report(record(), tmp_path / "a", False) == names
    assert (tmp_path / "a" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a" / "pareto.svg").read_text().startswith("<?xml")
    write_report(record(), tmp_path / "b", False)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() or name.endswith("svg")
    with pytest.raises(FileExistsError):
        write_report(record(), tmp_path / "a", False)
