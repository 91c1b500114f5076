"""What all figures share: an empty figure, how its axes look, its bytes, colours."""

import io
from typing import Any

from paring.tasks.extras import require

# Colour-blind safe (Okabe and Ito).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def blank(width: float, height: float = 4.0) -> Any:
    """A figure of its own, in inches, not pyplot's: no global state, no window, no backend chosen for the caller."""
    return require("matplotlib.figure", "the figure of a probe").Figure(figsize=(width, height), dpi=130, layout="constrained")


def panels(count: int, width: float = 4.2, height: float = 4.0) -> tuple[Any, list[Any]]:
    """A figure with axes side by side."""
    figure = blank(width * count, height)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def plain(axis: Any, title: str = "", x: str = "", y: str = "") -> None:
    axis.set_title(title, fontsize=10)
    axis.set(xlabel=x, ylabel=y)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def drawn(figure: Any, ending: str) -> bytes:
    """A figure as a file's bytes; ``ending`` is "svg" or "png". The same figure gives the same bytes."""
    buffer = io.BytesIO()
    with require("matplotlib", "the figure of a probe").rc_context({"svg.hashsalt": "paring"}):
        figure.savefig(buffer, format=ending, metadata={"Date": None} if ending == "svg" else None)
    return buffer.getvalue()
