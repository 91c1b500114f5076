"""Restricted gradients: how relative norms are distributed, and in every layer."""

from collections.abc import Mapping
from typing import Any

from paring.probe.plots.drawing import COLORS, panels, plain

_COLOR = {"row": COLORS[0], "column": COLORS[1]}


def figure(record: Mapping[str, Any], tables: Mapping[str, list[dict[str, Any]]]) -> Any:
    """Left the distribution of the relative norm over all slices and seeds; right its least, median and most in each layer."""
    drawing, (left, right) = panels(2, 5.5)
    rows = tables["slices"]
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    for number, axis in enumerate(record["settings"]["axes"]):
        values = sorted(row["relative_norm"] or 0.0 for row in rows if row["axis"] == axis)
        shares = [(i + 1) / len(values) for i in range(len(values))]
        left.step(values, shares, where="post", color=_COLOR[axis], label=f"{axis} slices")
        by_layer: dict[str, list[float]] = {layer: [] for layer in layers}
        for row in rows:
            if row["axis"] == axis:
                by_layer[row["layer"]].append(row["relative_norm"] or 0.0)
        ordered = [sorted(by_layer[layer]) for layer in layers]
        at = [i + 0.2 * number for i in range(len(layers))]
        right.vlines(at, [v[0] for v in ordered], [v[-1] for v in ordered], color=_COLOR[axis], linewidth=1.2)
        right.plot(at, [v[len(v) // 2] for v in ordered], ".", color=_COLOR[axis], label=f"{axis} slices")
    for place in (left.set_xscale, right.set_yscale):
        place("symlog", linthresh=1e-2)
    plain(left, "all slices", "gradient norm / that of an even share", "share of slices below")
    plain(right, "by layer: least, median, most", "layer, from the input", "gradient norm / that of an even share")
    left.legend(frameon=False, fontsize=8)
    return drawing
