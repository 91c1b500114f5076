"""The demo's picture: for each task, what it shows the model and how each way of tuning learns it; and what comes of it."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from paring.demo.outcome import bars, path
from paring.demo.samples import samples
from paring.tasks.digits import Shift
from paring.tasks.extras import require

# By method: colour-blind safe (Okabe and Ito), and told apart by line style too.
_STYLES = {
    "head": {"color": "#7f7f7f", "linestyle": ":"},
    "static": {"color": "#E69F00", "linestyle": "--"},
    "moving": {"color": "#0072B2", "linestyle": "-"},
    "full": {"color": "#222222", "linestyle": "-."},
}


def picture(record: Mapping[str, Any], shifts: Sequence[Shift]) -> bytes:
    """A PNG with one column a task: upright digits over what the task makes of them, and validation curves below. Under them
    what is left of the fine-tunes, slim and fused, and the way from the base to the first.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure_module = require("matplotlib.figure", "the demo's picture")
    # A figure of its own, not pyplot's: no global state, no window, no backend chosen for the caller.
    figure = figure_module.Figure(figsize=(max(3.0 * len(shifts), 8.0), 8.6), dpi=130, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 0.98))  # the tasks' names stand above what the layout knows of
    upper, lower = figure.subfigures(2, 1, height_ratios=(5.1, 3.5))
    _learning(upper, record, shifts)
    left, right = lower.subplots(1, 2, width_ratios=(3, 2) if len(shifts) > 2 else (2, 3))
    bars(left, record)
    path(right, record)
    for axis in (left, right):
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _learning(figure: Any, record: Mapping[str, Any], shifts: Sequence[Shift]) -> None:
    """The columns of the tasks."""
    axes = figure.subplots(2, len(shifts), squeeze=False, height_ratios=(1, 2.1))
    labels = {method["name"]: method["label"] for method in record["methods"]}
    floor = _floor(record)
    for column, shift in enumerate(shifts):
        top, bottom = axes[0, column], axes[1, column]
        _samples(top, shift, sides=("before", "task") if not column else ("", ""))
        for result in record["results"]:
            if result["task"] == shift.name:
                name, (steps, accuracies) = result["method"], zip(*result["curve"], strict=True)
                label = None if column else labels[name]  # one legend for all columns
                bottom.plot(steps, accuracies, label=label, linewidth=1.8, **_STYLES[name])
        bottom.set(ylim=(floor, 1.0), xlim=(0, record["settings"]["steps"]), xlabel="optimizer steps")
        bottom.grid(alpha=0.25)
        bottom.spines[["top", "right"]].set_visible(False)
        if column:
            bottom.tick_params(labelleft=False)
    axes[1, 0].set_ylabel("validation accuracy")
    figure.legend(loc="outside lower center", ncols=len(labels), frameon=False)


def _samples(axis: Any, shift: Shift, sides: tuple[str, str]) -> None:
    """Upright digits in the upper row, the same as the task shows them in the lower, their labels beneath.

    Args:
        sides: what is written beside the two rows.
    """
    images, shifted, labels = samples(shift)
    sheet = torch.cat([_row(images), _row(shifted)], dim=0)
    axis.imshow(sheet.numpy(), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    # the name, and the summary in two short lines under it: as wide as the panel, not wider
    summary = textwrap.fill(shift.summary, 46)
    axis.set_title(summary + "\n" * (1 - summary.count("\n")), fontsize=7.5, color="#444444", pad=4)
    axis.text(0.5, 1.42, shift.name, transform=axis.transAxes, ha="center", fontweight="bold", fontsize=11)
    ticks = [9 * i + 3.5 for i in range(len(images))]
    axis.set_xticks(ticks, [str(int(label)) for label in labels])
    axis.set_yticks([3.5, 12.5], sides)
    axis.tick_params(length=0, labelsize=8)
    axis.spines[:].set_visible(False)


def _row(images: Tensor) -> Tensor:
    """Images ``[n, 1, 8, 8]`` side by side with a gap, ``[9, 9n - 1]``; the gap is not drawn (NaN)."""
    padded = torch.nn.functional.pad(images[:, 0], (0, 1, 0, 1), value=float("nan"))
    return padded.transpose(0, 1).reshape(9, -1)[:, :-1]


def _floor(record: Mapping[str, Any]) -> float:
    """The lower end of the accuracy axes: the least accuracy drawn, rounded down to a tenth."""
    least = min(accuracy for result in record["results"] for _, accuracy in result["curve"])
    return int(least * 10) / 10
