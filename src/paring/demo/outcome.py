"""The lower part of the demo's picture: what is left of each fine-tune, and the way from the base to the first of them."""

from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]
# Colour-blind safe (Okabe and Ito).
_BARS = {
    "full": ("full fine-tuning, a model each", "#222222"),
    "slim": ("made slim", "#0072B2"),
    "fitted": ("fused into one, fitted", "#009E73"),
    "average": ("fused into one, averaged", "#CCCCCC"),
}
_PATHS = {"whole": "#222222", "magnitude": "#E69F00", "nps": "#0072B2"}


def bars(axis: Any, record: Record) -> None:
    """Test accuracy by task: of the full fine-tune, of it made slim, and of all in one model, where they were fused."""
    tasks = [task["name"] for task in record["tasks"]]
    scores = {"full": [r["test_accuracy"] for r in record["results"] if r["method"] == "full"]}
    scores["slim"] = [r["test_accuracy"] for r in record["slim"]["results"]]
    if record["fused"]:
        scores |= {key: [r[key] for r in record["fused"]["results"]] for key in ("fitted", "average")}
    width = 0.8 / len(scores)
    for i, (key, found) in enumerate(scores.items()):
        label, color = _BARS[key]
        places = [at + (i - (len(scores) - 1) / 2) * width for at in range(len(tasks))]
        axis.bar(places, found, width * 0.92, label=label, color=color)
    axis.set_xticks(range(len(tasks)), tasks)
    axis.set(ylim=(0, 1), ylabel="test accuracy", title="What is left")
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)
    _open(axis)


def path(axis: Any, record: Record) -> None:
    """Validation scores along base + lambda * delta: both tasks of the whole delta, and H-scores of all methods."""
    found = record["transfer"]
    for m in found["methods"]:
        color, at = _PATHS[m["method"]], [place["lambda"] for place in m["path"]]
        if m["method"] == "whole":
            for key, line, name in (("tuned", "--", found["task"]), ("original", ":", "upright digits")):
                axis.plot(at, [p[key] for p in m["path"]], line, color=color, linewidth=1.2, label=f"{name}, whole delta")
        label = "H-score, " + ("whole" if m["method"] == "whole" else f"{m['method']}, keep {found['keep']:g}")
        axis.plot(at, [p["h"] for p in m["path"]], color=color, linewidth=2.0, label=label)
        axis.plot([m["best"]["lambda"]], [m["best"]["h"]], "o", color=color, markersize=6)
    title = f"From the base to {found['task']}: base + λ · delta"
    axis.set(ylim=(0, 1), xlim=(at[0], at[-1]), xlabel="λ", ylabel="validation score", title=title)
    axis.grid(alpha=0.25)
    _open(axis)


def _open(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.title.set_fontsize(10)
