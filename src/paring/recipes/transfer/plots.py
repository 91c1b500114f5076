"""Plots of what ``paring transfer`` records: scores along the path, and the Pareto front. No number is made here."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paring.files import replacing_folder
from paring.recipes.slim.output import REPORT
from paring.recipes.slim.plots import drawn
from paring.tasks.extras import require

Record = Mapping[str, Any]
NUMBERS = "transfer.json"
_FORMATS = ("svg", "png")
# Colour-blind safe (Okabe and Ito).
_STYLES: dict[str, dict[str, Any]] = {
    "whole": {"color": "#000000", "linestyle": "-", "marker": "s"},
    "magnitude": {"color": "#999999", "linestyle": ":", "marker": "v"},
    "rescaled": {"color": "#555555", "linestyle": "--", "marker": "^"},
    "dare": {"color": "#E69F00", "linestyle": "--", "marker": "D"},
    "della": {"color": "#CC79A7", "linestyle": "-.", "marker": "P"},
    "nps": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "fitted": {"color": "#009E73", "linestyle": "-", "marker": "X"},
    "joint": {"color": "#D55E00", "linestyle": "-", "marker": "*"},
}
_PANELS = (("tuned", "tuned task"), ("original", "original tasks"), ("h", "H-score"))


def write_report(record: Record, folder: Path, overwrite: bool) -> list[str]:
    """Writes the numbers, and the plots that they are enough for, into a folder; the names of its files.

    Raises:
        ImportError: matplotlib is missing. FileExistsError: the folder is there and ``overwrite`` is False.
    """
    content = {NUMBERS: (json.dumps(record, indent=2) + "\n").encode()}
    for name, plot in (("curves", curves), ("pareto", front)):
        content |= {f"{name}.{kind}": drawn(plot(record), kind) for kind in _FORMATS}
    with replacing_folder(folder, overwrite, empty=True, ours=REPORT) as temporary:
        for name, data in content.items():
            (temporary / name).write_bytes(data)
    return list(content)


def curves(record: Record) -> Any:
    """A figure of both scores and H against lambda, on validation rows: a line a method, its best lambda marked."""
    figure = _figure(13.0)
    for axis, (key, title) in zip(figure.subplots(1, 3), _PANELS, strict=True):
        for m in record["methods"]:
            style = _STYLES[m["method"]]
            line = {k: v for k, v in style.items() if k != "marker"}
            axis.plot([p["lambda"] for p in m["path"]], [p[key] for p in m["path"]], label=m["method"], linewidth=1.8, **line)
            axis.plot([m["best"]["lambda"]], [m["best"][key]], color=style["color"], marker=style["marker"], markersize=8)
        axis.set_title(title)
        axis.set(xlabel="lambda", ylabel="validation score")
        _plain(axis)
    return _with_legend(figure, figure.axes[0])


def front(record: Record) -> Any:
    """A figure of the tuned task's score against the original tasks': every place of every path, and those no other beats."""
    figure = _figure(8.0)
    axis = figure.subplots()
    places = {(m["method"], p["lambda"]): p for m in record["methods"] for p in m["path"]}
    for m in record["methods"]:
        style = {**_STYLES[m["method"]], "linestyle": ""}
        axis.plot([p["original"] for p in m["path"]], [p["tuned"] for p in m["path"]], label=m["method"], alpha=0.7, **style)
    best = [places[one["method"], one["lambda"]] for one in record["pareto"]]
    xs, ys = [p["original"] for p in best], [p["tuned"] for p in best]
    axis.step(xs, ys, where="post", color="#000000", linewidth=1.0, label="Pareto front", zorder=0)
    for name, marker in (("base", "the base"), ("tuned", "the fine-tune")):
        end = record["ends"][name]["validation"]
        if end["h"] is not None:
            axis.annotate(marker, (end["original"], end["tuned"]), textcoords="offset points", xytext=(6, 6), fontsize=8)
    axis.set(xlabel="original tasks, validation score", ylabel="tuned task, validation score")
    _plain(axis)
    return _with_legend(figure, axis)


def _figure(width: float) -> Any:
    # A figure of its own, not pyplot's: no global state, no window, no backend chosen for the caller.
    return require("matplotlib.figure", "--report").Figure(figsize=(width, 4.0), dpi=130, layout="constrained")


def _plain(axis: Any) -> None:
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _with_legend(figure: Any, axis: Any) -> Any:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure
