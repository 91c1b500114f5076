"""Spectral balance: ratios between groups of every matrix, and how eigenvalues decay, beside the controls."""

from collections.abc import Mapping
from typing import Any

from paring.probe.plots.drawing import COLORS, panels, plain

_COLOR = {"trained": COLORS[0], "gaussian": COLORS[2], "permuted": COLORS[1]}


def figure(record: Mapping[str, Any], tables: Mapping[str, list[dict[str, Any]]]) -> Any:
    """Two panels for each axis: sorted energy ratios; and mean decay, with the band from the least to the largest group."""
    axes = record["settings"]["axes"]
    drawing, places = panels(2 * len(axes))
    for number, axis in enumerate(axes):
        left, right = places[2 * number : 2 * number + 2]
        for matrix, color in _COLOR.items():
            ratios = sorted(
                row["energy_ratio"]
                for row in tables["matrices"]
                if row["axis"] == axis and row["matrix"] == matrix and row["energy_ratio"] is not None
            )
            total = sum(row["axis"] == axis and row["matrix"] == matrix for row in tables["matrices"])
            if not ratios:
                continue
            # A group without energy is infinitely far from the others: the curve ends before it, and the label says so.
            label = matrix + (f" ({total - len(ratios)} infinite)" if len(ratios) < total else "")
            left.plot([i / max(total - 1, 1) for i in range(len(ratios))], ratios, color=color, label=label, marker=".")
            rows = [r for r in tables["profiles"] if r["axis"] == axis and r["matrix"] == matrix]
            at = sorted({r["place"] for r in rows})
            columns = {
                name: [_mean([r[name] for r in rows if r["place"] == p]) for p in at] for name in ("least", "mean", "most")
            }
            right.plot(at, columns["mean"], color=color, label=matrix)
            right.fill_between(at, columns["least"], columns["most"], color=color, alpha=0.2, linewidth=0)
        left.axhline(record["settings"]["bound"], color="#000000", linewidth=0.8, linestyle=(0, (6, 3)))
        left.set_yscale("log")
        right.set_yscale("symlog", linthresh=1e-2)
        plain(left, f"{axis} groups: energy ratio", "share of the matrices", "largest / smallest mean eigenvalue")
        plain(right, f"{axis} groups: decay", "place in the spectrum", "eigenvalue / mean eigenvalue")
    places[0].legend(frameon=False, fontsize=8)
    return drawing


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
