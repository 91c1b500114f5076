"""Task energy: cumulative shares after the last block, and by layer, pretrained beside untrained."""

from collections.abc import Mapping
from typing import Any

from paring.probe.plots.drawing import COLORS, panels, plain

_COLOR = {"pretrained": COLORS[0], "untrained": COLORS[1]}


def figure(record: Mapping[str, Any], tables: Mapping[str, list[dict[str, Any]]]) -> Any:
    """Three panels: both shares against k at the last layer; k(0.9) of the class means by layer; variance between classes."""
    drawing, (left, middle, right) = panels(3, 4.6)
    last = max(row["layer"] for row in tables["layers"])
    for model, color in _COLOR.items():
        for name, line in (("class_mean", "-"), ("energy", ":")):
            rows = [r for r in tables["curves"] if r["model"] == model and r["layer"] == last]
            ks, means = _by(rows, "k", name)
            left.plot(ks, means, line, color=color, label=f"{model}, {'class means' if line == '-' else 'variance'}")
        rows = [r for r in tables["layers"] if r["model"] == model]
        for axis, name in ((middle, "class_mean_k90"), (right, "adjusted")):
            layers, means = _by(rows, "layer", name)
            axis.plot(layers, means, "-", color=color, label=model)
            there = [r for r in rows if r[name] is not None]
            axis.plot([r["layer"] for r in there], [r[name] for r in there], ".", color=color, alpha=0.4)
    left.set_xscale("log", base=2)
    plain(left, "after the last block", "leading principal directions", "cumulative share")
    plain(middle, "directions that hold 90 % of the class means", "layer", "k(0.9)")
    plain(right, "variance between classes, adjusted", "layer", "share")
    for axis in (left, middle):
        axis.legend(frameon=False, fontsize=8)
    return drawing


def _by(rows: list[dict[str, Any]], key: str, name: str) -> tuple[list[float], list[float]]:
    """The mean over seeds of ``name`` for every value of ``key``."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row[name] is not None:
            found.setdefault(row[key], []).append(row[name])
    return sorted(found), [sum(found[k]) / len(found[k]) for k in sorted(found)]
