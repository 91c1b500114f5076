"""Accuracy against rank."""

from collections.abc import Mapping
from typing import Any

from paring.probe.plots.drawing import COLORS, MARKERS, blank, plain

_SPLIT_LINE = {"validation": ":", "test": "-"}


def figure(record: Mapping[str, Any], tables: Mapping[str, list[dict[str, Any]]]) -> Any:
    """A line for each schedule and split, at the rate that did best; dots are single seeds at that rate."""
    drawing = blank(6.4)
    axis = drawing.subplots()
    for number, schedule in enumerate(record["settings"]["schedules"]):
        rows = sorted((row for row in tables["curve"] if row["schedule"] == schedule), key=lambda row: row["rank"])
        for split, line in _SPLIT_LINE.items():
            if rows[0].get(split) is None:
                continue
            ranks = [row["rank"] for row in rows]
            mark = MARKERS[number] if split == "test" else ""
            axis.plot(
                ranks, [100 * row[split] for row in rows], line + mark, color=COLORS[number], label=f"{schedule}, {split}"
            )
        best = {(row["rank"], row["rate"]) for row in rows}
        runs = [r for r in tables["runs"] if r["schedule"] == schedule and (r["rank"], r["rate"]) in best]
        reported = "test" if rows[0].get("test") is not None else "validation"
        axis.plot([r["rank"] for r in runs], [100 * r[reported] for r in runs], ".", color=COLORS[number], alpha=0.3)
    axis.set_xscale("log", base=2)
    plain(axis, f"{record['settings']['axis']} slices", "rank", "accuracy, %")
    axis.legend(frameon=False, fontsize=8)
    return drawing
