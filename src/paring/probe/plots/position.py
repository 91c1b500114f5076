"""Accuracy against position, with the band around the anchor."""

from collections.abc import Mapping
from typing import Any

from paring.probe.plots.drawing import COLORS, panels, plain


def figure(record: Mapping[str, Any], tables: Mapping[str, list[dict[str, Any]]]) -> Any:
    """A panel for each axis: the mean over the seeds with its interval for all positions at once, single seeds, the band."""
    axes, band = record["settings"]["axes"], 100 * record["settings"]["band"]
    drawing, places = panels(len(axes), 5.2)
    for place, name in zip(places, axes, strict=True):
        rows = [row for row in tables["positions"] if row["axis"] == name]
        column = "test" if rows[0].get("test") is not None else "validation"
        at = [row["position"] for row in rows]
        anchor = 100 * sum(row[column] for row in rows) / len(rows)
        place.axhspan(anchor - band, anchor + band, color=COLORS[2], alpha=0.15, linewidth=0, label=f"anchor ±{band:g}")
        best = {row["position"]: row["rate"] for row in rows}
        runs = [row for row in tables["runs"] if row["axis"] == name and row["rate"] == best[row["position"]]]
        place.plot(
            [r["position"] for r in runs], [100 * r[column] for r in runs], ".", color=COLORS[7], alpha=0.5, label="seeds"
        )
        place.plot(at, [100 * row[column] for row in rows], "o-", color=COLORS[0], label="mean")
        if rows[0]["low"] is not None:
            ends = [[anchor + 100 * row[end] for row in rows] for end in ("low", "high")]
            place.vlines(at, *ends, color=COLORS[0], alpha=0.5, linewidth=1, label="95 %, all at once")
        plain(place, f"{name} slices, rank {record['settings']['rank']}", "position, share of the way", f"{column} accuracy, %")
    places[0].legend(frameon=False, fontsize=8)
    return drawing
