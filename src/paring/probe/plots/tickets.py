"""Slices that hold most and least of a ticket, and the ticket itself."""

from collections.abc import Mapping
from typing import Any

from paring.probe.plots.drawing import COLORS, MARKERS, panels, plain

_COLOR = {"most": COLORS[0], "least": COLORS[1]}


def figure(record: Mapping[str, Any], tables: Mapping[str, list[dict[str, Any]]]) -> Any:
    """Left the accuracies of slices, means and single seeds; right the pruned network round by round."""
    drawing, (left, right) = panels(2, 5.2)
    groups = [(source, axis) for source in record["settings"]["sources"] for axis in record["settings"]["axes"]]
    column = "test" if tables["choices"][0].get("test") is not None else "validation"
    for number, (choice, color) in enumerate(_COLOR.items()):
        for at, group in enumerate(groups):
            row = next(r for r in tables["choices"] if (r["source"], r["axis"]) == group and r["choice"] == choice)
            what = (*group, choice, row["rate"])
            runs = [r for r in tables["runs"] if (r["source"], r["axis"], r["choice"], r["rate"]) == what]
            x = at + 0.2 * number
            left.plot([x] * len(runs), [100 * r[column] for r in runs], ".", color=color, alpha=0.4)
            label = f"{choice} of the mask" if at == 0 else None
            left.plot([x], [100 * row[column]], MARKERS[number], color=color, label=label)
    left.set_xticks([i + 0.1 for i in range(len(groups))], [f"{source}\n{axis}s" for source, axis in groups], fontsize=8)
    for number, source in enumerate(record["settings"]["sources"]):
        rows = [row for row in tables["tickets"] if row["source"] == source]
        rounds = sorted({row["round"] for row in rows})
        kept = [100 * next(row["kept"] for row in rows if row["round"] == r) for r in rounds]
        of = [[row[column] for row in rows if row["round"] == r] for r in rounds]
        right.plot(kept, [100 * sum(v) / len(v) for v in of], f"{MARKERS[number]}-", color=COLORS[number + 2], label=source)
    right.invert_xaxis()
    plain(left, f"slices of rank {record['settings']['rank']}", "", f"{column} accuracy, %")
    plain(right, "the ticket itself, all weights trained", "weights left, %", f"{column} accuracy, %")
    left.legend(frameon=False, fontsize=8)
    right.legend(frameon=False, fontsize=8)
    return drawing
