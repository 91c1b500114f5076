"""What the stored lines show: scores of the tuned task and of the original tasks, their H-score, verdicts."""

from collections import defaultdict
from statistics import mean, stdev
from typing import Any

from transferring.lines import KEEP, LINES

Cells = list[dict[str, Any]]
BELOW_NPS = ("tuned", "whole", "dare", "magnitude")
SCORES = ("h", "tuned", "original")


def markdown(suite: str, cells: Cells) -> str:
    """The table of one suite, and the verdicts."""
    by = by_line(cells)
    if not by:
        return f"### {suite}\n\nnothing measured yet\n"
    out = [f"### {suite}", "", f"Test scores, percent; keep {KEEP:g}; mean and spread over fine-tunes.", ""]
    out += ["| | H-score | tuned task | original tasks | λ | fine-tunes |", "|---|" + "---:|" * 5]
    for line, found in by.items():
        scores = " | ".join(_percent([c["test"][key] for c in found.values()]) for key in SCORES)
        places = sorted(c["lambda"] for c in found.values())
        at = f"{places[0]:.2g}" if places[0] == places[-1] else f"{places[0]:.2g} to {places[-1]:.2g}"
        out.append(f"| {LINES[line].title} | {scores} | {at} | {len(found)} |")
    out += ["", "| goal | measured | met |", "|---|---|---|"]
    out += [f"| {what} | {value} | {'yes' if met else 'no'} |" for what, value, met in verdicts(cells)]
    return "\n".join(out) + "\n"


def verdicts(cells: Cells) -> list[tuple[str, str, bool]]:
    """(goal, what was measured, whether it is met), over the fine-tunes that have both lines."""
    by, out = by_line(cells), []
    for other in BELOW_NPS:
        shared = [at for at in by.get("nps", {}) if at in by.get(other, {})]
        if not shared:
            continue
        ours, theirs = ([by[line][at]["test"]["h"] for at in shared] for line in ("nps", other))
        higher = sum(a > b for a, b in zip(ours, theirs, strict=True))
        value = f"{_percent(ours)} against {_percent(theirs)}, higher on {higher} of {len(shared)}"
        out.append((f"H-score of NPS above that of {LINES[other].title}", value, mean(ours) > mean(theirs)))
    return out


def by_line(cells: Cells) -> dict[str, dict[tuple[str, int], dict[str, Any]]]:
    """By line, in the table's order, then by fine-tune."""
    found: dict[str, dict[tuple[str, int], dict[str, Any]]] = defaultdict(dict)
    for cell in cells:
        found[cell["line"]][cell["task"], cell["seed"]] = cell
    return {line: found[line] for line in LINES if line in found}


def _percent(found: list[float]) -> str:
    return f"{100 * mean(found):.1f}" + (f" ± {100 * stdev(found):.1f}" if len(found) > 1 else "")
