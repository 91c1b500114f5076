"""Curves of all methods in one picture: the share of the fine-tune's accuracy that is left, against keep."""

from pathlib import Path
from statistics import mean
from typing import Any

from slimming.cells import TITLES
from slimming.plan import KEEPS
from slimming.report import kept

STYLES = {  # colour, line
    "magnitude": ("#999999", ":"),
    "rescaled": ("#777777", "--"),
    "dare": ("#bb7733", "--"),
    "della": ("#ddaa66", ":"),
    "nps:magnitude": ("#4477aa", "-"),
    "nps:layer": ("#66ccee", "-"),
    "nps:kind": ("#228833", "-"),
    "nps:magnitude*kind": ("#aaaa00", "-"),
    "nps:random": ("#aa3377", "-"),
    "fitted": ("#cc3311", "-"),
}


def draw(suite: str, cells: list[dict[str, Any]], folder: Path) -> None:
    """Writes ``slim_<suite>.svg`` into ``folder``, where there is anything to draw."""
    table, keeps = kept(cells, "full"), sorted(KEEPS[suite])
    shown = [m for m in STYLES if all((m, k) in table for k in keeps)]
    if not shown:
        return
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "paring", "font.size": 9}):
        picture, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        for method in shown:
            colour, line = STYLES[method]
            means = [100 * mean(table[method, k]) for k in keeps]
            width = 2.4 if method == "fitted" else 1.4
            axes.plot(keeps, means, line, color=colour, label=TITLES[method], linewidth=width, marker="o", markersize=3)
        axes.set_xscale("log")
        axes.set_xticks(keeps, [f"{k:g}" for k in keeps])
        axes.minorticks_off()
        axes.set(xlabel="keep (share of entries)", ylabel="percent of the fine-tune's accuracy", ylim=(0, 105))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        folder.mkdir(parents=True, exist_ok=True)
        picture.savefig(folder / f"slim_{suite}.svg", metadata={"Date": None})
        pyplot.close(picture)
