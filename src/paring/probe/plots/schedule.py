"""Schedules beside static columns."""

from collections.abc import Mapping
from typing import Any

from paring.probe.plots.drawing import COLORS, blank, plain


def figure(record: Mapping[str, Any], tables: Mapping[str, list[dict[str, Any]]]) -> Any:
    """A line for each variant: its distance from static columns with its interval, best first."""
    rows = sorted(tables["variants"], key=lambda row: row["over_static"])
    drawing = blank(7.0, 1.4 + 0.26 * len(rows))
    axis = drawing.subplots()
    column = "test" if rows[0].get("test") is not None else "validation"
    for at, row in enumerate(rows):
        static = row["variant"].startswith("static")
        color = COLORS[1] if static else COLORS[0]
        if row["low"] is not None:
            axis.hlines(at, 100 * row["low"], 100 * row["high"], color=color, alpha=0.5)
        axis.plot([100 * row["over_static"]], [at], "s" if static else "o", color=color)
    axis.axvline(0, color="#000000", linewidth=0.8, linestyle=(0, (6, 3)))
    axis.set_yticks(range(len(rows)), [row["variant"] for row in rows], fontsize=8)
    below = f"{column} accuracy less that of static columns, points (each interval for itself)"
    plain(axis, f"rank {record['settings']['rank']}", below)
    return drawing
