"""What the stored cells show: the share of the fine-tune's accuracy that is left, with its spread; verdicts on the goals."""

from collections import defaultdict
from statistics import mean, stdev
from typing import Any

from slimming.cells import CODED, TITLES
from slimming.plan import BEST_SEARCH, KEEPS

Cells = list[dict[str, Any]]
GOALS = {0.04: 0.99, 0.01: 0.99, 0.003: 0.90}  # of the fine-tune's accuracy
OURS = {"fitted": "fitted", BEST_SEARCH: "NPS"}
BITS = 0.25  # for each parameter, at keep 0.01


def markdown(suite: str, cells: Cells) -> str:
    """Tables of one suite, as far as its cells go."""
    out = [f"### {suite}", ""]
    for tuned in dict.fromkeys(c["tuned"] for c in cells):
        table = kept(cells, tuned)
        keeps = KEEPS[suite]
        out += [f"Share of the fine-tune's test accuracy that is left, percent; tuned: {tuned}.", ""]
        out += ["| method | " + " | ".join(f"keep {k:g}" for k in keeps) + " |", "|---|" + "---:|" * len(keeps)]
        for method, title in TITLES.items():
            if any((method, k) in table for k in keeps):
                out.append(f"| {title} | " + " | ".join(_share(table.get((method, k), [])) for k in keeps) + " |")
        out.append("")
    out += [*_coded(suite, cells), ""]
    out += ["| goal | measured | met |", "|---|---|---|"]
    out += [f"| {what} | {value} | {'yes' if met else 'no'} |" for what, value, met in verdicts(suite, cells)]
    return "\n".join(out) + "\n"


def kept(cells: Cells, tuned: str) -> dict[tuple[str, float], list[float]]:
    """Accuracy over that of the fine-tune, by method and keep; one number for each task and seed."""
    whole = {(c["task"], c["seed"]): c["test"] for c in cells if c["method"] == "none" and c["tuned"] == tuned}
    out: dict[tuple[str, float], list[float]] = defaultdict(list)
    for c in cells:
        if c["tuned"] == tuned and c["method"] != "none" and (c["task"], c["seed"]) in whole:
            # Values that were refitted for a coarse type are nothing by themselves: what they come back as is scored.
            _, _, kind = c["method"].partition("fitted:")
            test = c["coded"][kind]["test"] if kind else c["test"]
            out[c["method"], c["keep"]].append(test / whole[c["task"], c["seed"]])
    return out


def verdicts(suite: str, cells: Cells) -> list[tuple[str, str, bool]]:
    """(goal, what was measured, whether it is met), of what there is; of the default with rows, and of the paper's search."""
    table, out = kept(cells, "full"), []
    for ours, name in OURS.items():
        for keep, share in GOALS.items():
            if found := table.get((ours, keep)):
                out.append((f"{name} at keep {keep:g}: at least {100 * share:g} %", _share(found), mean(found) >= share))
        for keep in KEEPS[suite]:
            others = {m: table[m, keep] for m in ("magnitude", "rescaled", "dare") if (m, keep) in table}
            if others and (found := table.get((ours, keep))):
                best = max(others, key=lambda m: mean(others[m]))
                spread = _spread(others[best]) + _spread(found)
                what = f"{name} not below {TITLES[best]} at keep {keep:g} by more than their spread"
                value = f"{_share(found)} against {_share(others[best])}"
                out.append((what, value, mean(found) >= mean(others[best]) - spread))
    bits = [c["coded"]["int8"]["bits_per_parameter"] for c in cells if c["method"] == "fitted" and c["keep"] == 0.01]
    if bits:
        out.append((f"at most {BITS} bits for each parameter at keep 0.01 (int8)", f"{max(bits):.3f}", max(bits) <= BITS))
    return out


def _coded(suite: str, cells: Cells) -> list[str]:
    """Bits and accuracy by value type."""
    out = ["| fitted, values stored as | " + " | ".join(f"keep {k:g}: bits, share left" for k in KEEPS[suite]) + " |"]
    out.append("|---|" + "---:|" * len(KEEPS[suite]))
    whole = {(c["task"], c["seed"], c["tuned"]): c["test"] for c in cells if c["method"] == "none"}
    for method, kind in [*(("fitted", kind) for kind in CODED), *((f"fitted:{kind}", kind) for kind in CODED[2:])]:
        row = []
        for keep in KEEPS[suite]:
            found = [c for c in cells if c["method"] == method and c["keep"] == keep and c["tuned"] == "full"]
            shares = [c["coded"][kind]["test"] / whole[c["task"], c["seed"], c["tuned"]] for c in found]
            bits = [c["coded"][kind]["bits_per_parameter"] for c in found]
            row.append(f"{mean(bits):.3f}, {_share(shares)}" if found else "-")
        out.append(f"| {kind}{', refitted as that' if ':' in method else ''} | " + " | ".join(row) + " |")
    return out


def _share(found: list[float]) -> str:
    if not found:
        return "-"
    return f"{100 * mean(found):.1f} ± {100 * _spread(found):.1f}" + (f" ({len(found)})" if len(found) < 9 else "")


def _spread(found: list[float]) -> float:
    return stdev(found) if len(found) > 1 else 0.0
