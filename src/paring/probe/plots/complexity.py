"""Complexity: what every method trains, adds and holds."""

from collections.abc import Mapping
from typing import Any

from paring.probe.plots.drawing import COLORS, blank, plain

_OURS = ("row", "column", "recommended")
_PARTS = (
    ("activation_bytes", "kept for backward"),
    ("optimizer_bytes", "optimizer state"),
    ("gradient_bytes", "gradients"),
    ("trained_bytes", "trained parameters"),
)


def figure(record: Mapping[str, Any], tables: Mapping[str, list[dict[str, Any]]]) -> Any:
    """Two panels with a line a method, of the first seed, by the bytes it holds: entries trained and added; bytes by what they
    are for."""
    seed = record["settings"]["seeds"][0]
    rows = [row for row in tables["methods"] if row["refused"] is None and row["seed"] == seed]
    rows.sort(key=lambda row: -row["total_bytes"])
    drawing = blank(11.0, 1.6 + 0.21 * len(rows))
    left, right = drawing.subplots(1, 2, sharey=True)
    at = range(len(rows))
    left.plot([row["num_trainable"] for row in rows], at, "o", color=COLORS[0], label="trained")
    added = [(row["num_added"], i) for row, i in zip(rows, at, strict=True) if row["num_added"] > 0]
    left.plot([n for n, _ in added], [i for _, i in added], "x", color=COLORS[1], label="added (none: no mark)")
    left.set_xscale("log")
    left.set_ylim(-0.7, len(rows) - 0.3)
    left.set_yticks(at, [row["method"] for row in rows], fontsize=8)
    for label, row in zip(left.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row["method"] in _OURS else "normal")
    start = [0.0] * len(rows)
    for (name, title), color in zip(_PARTS, COLORS, strict=False):
        width = [row[name] / 1e6 for row in rows]
        right.barh(at, width, left=start, color=color, label=title)
        start = [a + b for a, b in zip(start, width, strict=True)]
    plain(left, "trained and added", "entries")
    plain(right, "bytes of one step", "MB")
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8)
    return drawing
