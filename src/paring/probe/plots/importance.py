"""Accuracy of slices by their importance."""

from collections.abc import Mapping
from typing import Any

from paring.probe.plots.drawing import COLORS, MARKERS, panels, plain


def figure(record: Mapping[str, Any], tables: Mapping[str, list[dict[str, Any]]]) -> Any:
    """Left accuracies by category, means and single seeds; right the accuracy against the score of the slices."""
    drawing, (left, right) = panels(2, 5.0)
    categories = record["settings"]["categories"]
    for number, axis in enumerate(record["settings"]["axes"]):
        rows = [row for row in tables["categories"] if row["axis"] == axis]
        column = "test" if rows[0].get("test") is not None else "validation"
        at = {category: i + 0.15 * number for i, category in enumerate(categories)}
        best = {(row["category"], row["rate"]) for row in rows}
        runs = [r for r in tables["runs"] if r["axis"] == axis and (r["category"], r["rate"]) in best]
        color, mark = COLORS[number], MARKERS[number]
        left.plot([at[r["category"]] for r in runs], [100 * r[column] for r in runs], ".", color=color, alpha=0.4)
        means = [100 * row[column] for row in rows]
        left.plot([at[row["category"]] for row in rows], means, mark, color=color, label=f"{axis}s")
        right.plot([row["score"] for row in rows], means, mark, color=color, label=f"{axis}s")
        plain(left, "by importance", "", f"{column} accuracy, %")
        plain(right, "by score", "Wanda score / mean of the layer's slices", f"{column} accuracy, %")
    left.set_xticks(range(len(categories)), categories)
    left.legend(frameon=False, fontsize=8)
    return drawing
