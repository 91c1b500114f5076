"""What the stored lines show: the share of the fine-tunes' accuracy that a merge has, mean and worst task; verdicts."""

from collections import defaultdict
from statistics import mean, stdev
from typing import Any

from fusing.cells import share
from fusing.merges import MERGES

Cells = list[dict[str, Any]]
GOAL = 0.95  # of the individual fine-tunes' average, by the best static merge
BELOW_NPS = ("ties", "dare_linear", "dare_ties", "pcb", "consensus")


def markdown(suite: str, cells: Cells) -> str:
    """The table of one suite, the best first."""
    by = _by_merge(cells)
    if not by:
        return f"### {suite}\n\nnothing measured yet\n"
    tasks = list(next(iter(by.values()))[0]["own"])
    out = [f"### {suite}", "", "Test accuracy, percent of the fine-tune's own; mean and spread over seeds.", ""]
    titles = " | ".join(("merge", "mean of tasks", "worst task", *tasks, "each alone"))
    out += [f"| {titles} |", "|---|" + "---:|" * (3 + len(tasks))]
    for name in sorted(by, key=lambda name: -mean(_shares(by[name]))):
        found = by[name]
        worst = [min(c["test"][t] / c["own"][t] for t in c["own"]) for c in found]
        each = [_percent([c["test"][t] / c["own"][t] for c in found], short=True) for t in tasks]
        # What a pruned fine-tune, or a slice, has before it is merged.
        alone = [share(c["alone"], c["own"]) for c in found if "alone" in c]
        each.append(_percent(alone, short=True) if alone else "")
        out.append(f"| {title(name)} | {_percent(_shares(found))} | {_percent(worst)} | " + " | ".join(each) + " |")
    out += ["", "| goal | measured | met |", "|---|---|---|"]
    out += [f"| {what} | {value} | {'yes' if met else 'no'} |" for what, value, met in verdicts(cells)]
    return "\n".join(out) + "\n"


def verdicts(cells: Cells) -> list[tuple[str, str, bool]]:
    """(goal, what was measured, whether it is met), of what there is."""
    by, out = _by_merge(cells), []
    if ours := by.get("nps"):
        for name in BELOW_NPS:
            if other := by.get(name):
                what = f"NPS above {title(name)}"
                out.append((what, f"{_percent(_shares(ours))} against {_percent(_shares(other))}", _mean(ours) > _mean(other)))
    static = {name: found for name, found in by.items() if name in MERGES and MERGES[name].static}
    if static:
        best = max(static, key=lambda name: _mean(static[name]))
        value = f"{title(best)}: {_percent(_shares(static[best]))}"
        out.append((f"best static merge at least {100 * GOAL:g} % of the fine-tunes", value, _mean(static[best]) >= GOAL))
    return out


def title(name: str) -> str:
    return "trained on all tasks at once" if name == "joint" else MERGES[name].title


def _by_merge(cells: Cells) -> dict[str, Cells]:
    by: dict[str, Cells] = defaultdict(list)
    for cell in cells:
        if cell["merge"] == "joint" or cell["merge"] in MERGES:
            by[cell["merge"]].append(cell)
    return by


def _shares(found: Cells) -> list[float]:
    return [share(c["test"], c["own"]) for c in found]


def _mean(found: Cells) -> float:
    return mean(_shares(found))


def _percent(found: list[float], short: bool = False) -> str:
    if short or len(found) < 2:
        return f"{100 * mean(found):.1f}"
    return f"{100 * mean(found):.1f} ± {100 * stdev(found):.1f}" + (f" ({len(found)})" if len(found) < 3 else "")
