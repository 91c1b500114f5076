"""Plots of what ``paring slim`` records: the score against evaluations, and against keep. No number is made here."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paring.files import replacing_folder
from paring.recipes.slim.output import REPORT
from paring.tasks.extras import require

Record = Mapping[str, Any]
NUMBERS = "slim.json"
_FORMATS = ("svg", "png")
# Colour-blind safe (Okabe and Ito). Without a search: grey or broken lines; with one: solid.
_STYLES: dict[str, dict[str, Any]] = {
    "magnitude": {"color": "#999999", "linestyle": ":", "marker": "v"},
    "rescaled": {"color": "#555555", "linestyle": "--", "marker": "^"},
    "dare": {"color": "#E69F00", "linestyle": "--", "marker": "s"},
    "della": {"color": "#CC79A7", "linestyle": "-.", "marker": "D"},
    "nps magnitude": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "nps layer": {"color": "#009E73", "linestyle": "-", "marker": "P"},
    "nps kind": {"color": "#D55E00", "linestyle": "-", "marker": "X"},
    "nps magnitude*kind": {"color": "#56B4E9", "linestyle": "-", "marker": "*"},
    "fitted": {"color": "#CC3311", "linestyle": "-", "marker": "D"},
    "nps random": {"color": "#000000", "linestyle": "-", "marker": "h"},
}
_OTHER = {"color": "#222222", "linestyle": "-", "marker": "."}


def write_report(record: Record, folder: Path, overwrite: bool) -> list[str]:
    """Writes the numbers, and the plots that they are enough for, into a folder; the names of its files.

    Raises:
        ImportError: matplotlib is missing. FileExistsError: the folder is there and ``overwrite`` is False.
    """
    plots = {}
    if any("history" in a for k in record["keeps"] for a in k["tried"]):
        plots["search"] = against_evaluations
    if len(record["keeps"]) > 1 and record["tuned"]:
        plots["keep"] = against_keep
    content = {NUMBERS: (json.dumps(record, indent=2) + "\n").encode()}
    for name, plot in plots.items():
        content |= {f"{name}.{kind}": drawn(plot(record), kind) for kind in _FORMATS}
    with replacing_folder(folder, overwrite, empty=True, ours=REPORT) as temporary:
        for name, data in content.items():
            (temporary / name).write_bytes(data)
    return list(content)


def drawn(figure: Any, kind: str) -> bytes:
    """A figure as a file's bytes; ``kind`` is "svg" or "png"."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def against_evaluations(record: Record) -> Any:
    """A figure with a panel a keep: every evaluation as a dot, the best so far as a line; the fine-tune's score across.

    The axis holds the lines; evaluations far worse than any of them lie outside.
    """
    keeps, goal = record["keeps"], record["objective"]
    whole = record["tuned"]["calibration"][goal]
    figure, axes = _panels(len(keeps), 3.6 * len(keeps))
    for axis, one in zip(axes, keeps, strict=True):
        lines = [whole]
        for tried in (a for a in one["tried"] if "history" in a):
            scores = [_shown(score, goal) for score in tried["history"]]
            color, numbers = _style(tried["label"])["color"], range(1, len(scores) + 1)
            axis.plot(numbers, scores, ".", color=color, alpha=0.3, markersize=4)
            best = _best_so_far(scores, goal)
            axis.step(numbers, best, where="post", label=tried["label"], color=color, linewidth=1.8)
            lines += best
        _dress(axis, f"keep {one['keep']:g}", "evaluations", f"calibration {goal}", whole)
        there = [score for score in lines if score is not None]
        margin = 0.2 * (max(there) - min(there))
        if margin:
            axis.set_ylim(max(0.0, min(there) - margin), max(there) + margin)
    return _with_legend(figure, axes[0])


def against_keep(record: Record) -> Any:
    """A figure of the task's metric of every method at every keep, on validation rows (without any: on calibration rows)."""
    split = "validation" if "validation" in record["tuned"] else "calibration"
    metric = "accuracy" if "accuracy" in record["tuned"][split] else "loss"
    figure, (axis,) = _panels(1, 7.0)
    keeps = sorted(record["keeps"], key=lambda one: one["keep"])
    for i, tried in enumerate(keeps[0]["tried"]):
        scores = [one["tried"][i]["scores"][split][metric] for one in keeps]  # every keep tries the same
        label = tried["label"]
        axis.plot([one["keep"] for one in keeps], scores, label=label, linewidth=1.8, markersize=6, **_style(label))
    axis.set_xscale("log")
    axis.set_xticks([one["keep"] for one in keeps], [f"{one['keep']:g}" for one in keeps])
    axis.minorticks_off()
    _dress(axis, "", "keep: share of the entries", f"{split} {metric}", record["tuned"][split][metric])
    return _with_legend(figure, axis)


def _panels(count: int, width: float) -> tuple[Any, list[Any]]:
    # A figure of its own, not pyplot's: no global state, no window, no backend chosen for the caller.
    figure_module = require("matplotlib.figure", "--report")
    figure = figure_module.Figure(figsize=(max(width, 5.0) + 2.0, 4.0), dpi=130, layout="constrained")  # 2 for the legend
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _dress(axis: Any, title: str, x: str, y: str, whole: float | None) -> None:
    if whole is not None:
        axis.axhline(whole, color="#000000", linewidth=0.8, linestyle=(0, (6, 3)), label="the fine-tune")
    axis.set(title=title, xlabel=x, ylabel=y)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _with_legend(figure: Any, axis: Any) -> Any:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure


def _best_so_far(scores: Sequence[float | None], goal: str) -> list[float | None]:
    best: float | None = None
    out = []
    for score in scores:
        if score is not None and (best is None or (score < best if goal == "loss" else score > best)):
            best = score
        out.append(best)
    return out


def _style(label: str) -> dict[str, Any]:
    return _STYLES.get(label, _OTHER)


def _shown(score: float | None, goal: str) -> float | None:
    """What the search made small, as what a reader knows."""
    return score if score is None or goal == "loss" else 1 - score
