"""From measurements to medians and ratios, to verdicts on what paring promises, to Markdown."""

from statistics import median
from typing import Any

from delta_cost.record import Record
from delta_cost.report import verdict, verdict_lines

FLOORS = {"250M": 8.0, "1B": 5.0}  # times the raw floor, process start included
FASTER = {"ties": 10.0}  # than mergekit
MEMORY_BYTES, LARGEST = 500_000_000, 3  # and so many times the largest tensor
GB = 1e9

__all__ = ["memory_limit", "summarize", "table", "verdict_lines", "verdicts"]


def summarize(record: Record) -> dict[str, Any]:
    """Medians by method; ratios are taken round by round, since a machine's speed drifts."""
    out: dict[str, Any] = {}
    for method in record["settings"]["methods"]:
        found = [r[method] for r in record["rounds"]]
        floors = [r["floor_read_s"] + r["floor_write_s"] for r in found]
        ratios = [r["paring"]["wall_s"] / f for r, f in zip(found, floors, strict=True)]
        beside = [r for r in found if "mergekit" in r]
        out[method] = {
            "wall_s": median(r["paring"]["wall_s"] for r in found),
            "cpu_s": median(r["paring"]["cpu_s"] for r in found),
            "floor_s": median(floors),
            "ratio": median(ratios),
            "ratios": ratios,
            "anonymous_bytes": max(r["paring"]["anonymous_bytes"] for r in found),
        }
        if beside:
            out[method] |= {
                "mergekit_s": median(r["mergekit"]["wall_s"] for r in beside),
                "mergekit_bytes": max(r["mergekit"]["anonymous_bytes"] for r in beside),
                "faster": median(r["mergekit"]["wall_s"] / r["paring"]["wall_s"] for r in beside),
                "difference": beside[0].get("difference"),
            }
    return out


def verdicts(record: Record) -> list[dict[str, Any]]:
    """One for each promise; ``limit`` is the most that is allowed."""
    settings, found = record["settings"], []
    for method, s in record["summary"].items():
        if settings["size"] in FLOORS:
            found.append(verdict(f"{method}: wall / floor", s["ratio"], FLOORS[settings["size"]]))
        found.append(verdict(f"{method}: peak anonymous bytes", s["anonymous_bytes"], memory_limit(settings["largest_bytes"])))
        if method in FASTER and settings["size"] in FLOORS and "faster" in s:
            found.append(verdict(f"{method}: time / mergekit's", 1 / s["faster"], 1 / FASTER[method]))
    return found


def memory_limit(largest_bytes: int) -> int:
    return MEMORY_BYTES + LARGEST * largest_bytes


def table(record: Record) -> str:
    settings, hardware = record["settings"], record["hardware"]
    limit = FLOORS.get(settings["size"])
    title = f"**{settings['num_parameters'] / 1e6:,.0f} M parameters, bf16, a base and {settings['num_tuned']} fine-tunes**"
    mergekit = settings["mergekit_versions"].get("mergekit")
    beside = f"; mergekit {mergekit}" if mergekit else ""
    floor = f"of the floor (≤ {limit:g})" if limit else "of the floor"
    lines = [
        f"{title} ({hardware['cpu']}, {hardware['cores']} cores, {record['date']}; {settings['rounds']} rounds{beside})",
        "",
        f"| method | s | {floor} | most memory GB | mergekit s | times as fast | its memory GB | apart |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for method, s in record["summary"].items():
        theirs = ["", "", "", ""]
        if "faster" in s:
            apart = "drawn" if s["difference"] is None else f"{s['difference']:.1%}"
            theirs = [f"{s['mergekit_s']:.1f}", f"{s['faster']:.1f}", f"{s['mergekit_bytes'] / GB:.2f}", apart]
        row = [method, f"{s['wall_s']:.1f}", f"{s['ratio']:.1f}", f"{s['anonymous_bytes'] / GB:.2f}", *theirs]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)
