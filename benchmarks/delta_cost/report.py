"""From measurements to medians and ratios, to verdicts on what paring promises, to Markdown."""

from collections.abc import Iterable
from statistics import median
from typing import Any

from delta_cost.commands import COMMANDS, TITLES
from delta_cost.record import Record
from delta_cost.sizes import VALUES

WALL, SWAP, POSITIONS = 3.0, 3.0, 1.1  # times the floor, times writing once, times the entropy
MEMORY_BYTES, LARGEST = 400_000_000, 3  # and so many times the largest tensor
MB = 1e6


# Commands.


def summarize_commands(record: Record) -> dict[str, Any]:
    """Medians by command; ratios are taken round by round, since a machine's speed drifts."""
    rounds = record["rounds"]
    out: dict[str, Any] = {
        "around_s": median(r[c]["around_s"] for r in rounds for c in COMMANDS),
        "start_bytes": max(r["start"]["anonymous_bytes"] for r in rounds),
    }
    for c in COMMANDS:
        work = [r[c]["work_s"] for r in rounds]
        floors = [r[c]["floor_read_s"] + r[c]["floor_write_s"] for r in rounds]
        ratios = [w / f for w, f in zip(work, floors, strict=True)]
        out[c] = {
            "work_s": median(work),
            "cpu_beyond_start_s": median(r[c]["cpu_s"] - r["start"]["cpu_s"] for r in rounds),
            "floor_s": median(floors),
            "ratio": median(ratios),
            "ratios": ratios,
            "anonymous_bytes": max(r[c]["anonymous_bytes"] for r in rounds),
            "input_bytes": rounds[0][c]["input_bytes"],
            "output_bytes": rounds[0][c]["output_bytes"],
        }
    return out


def command_verdicts(record: Record) -> list[dict[str, Any]]:
    summary, limit = record["summary"], memory_limit(record["settings"]["largest_bytes"])
    out = [verdict(f"{TITLES.get(c, c)}: wall / floor", summary[c]["ratio"], WALL) for c in COMMANDS]
    out += [verdict(f"{TITLES.get(c, c)}: peak anonymous bytes", summary[c]["anonymous_bytes"], limit) for c in COMMANDS]
    return out


def memory_limit(largest_bytes: int) -> int:
    return MEMORY_BYTES + LARGEST * largest_bytes


def verdict(what: str, value: float, limit: float) -> dict[str, Any]:
    return {"what": what, "limit": limit, "value": value, "met": value <= limit}


def commands_table(record: Record) -> str:
    settings, summary = record["settings"], record["summary"]
    limit = memory_limit(settings["largest_bytes"])
    lines = [
        f"**{settings['num_parameters'] / 1e6:,.0f} M parameters, bf16** ({_where(record)}; {settings['rounds']} rounds; "
        f"start and end of a process, {summary['around_s']:.2f} s, apart; same bits back: {_yes(record['same_bits'])})",
        "",
        "| command | reads MB | writes MB | work s | floor s | ratio (≤ 3) | peak RssAnon MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in COMMANDS:
        s = summary[c]
        lines.append(
            f"| {TITLES.get(c, c)} | {s['input_bytes'] / MB:,.0f} | {s['output_bytes'] / MB:,.0f} | {s['work_s']:.2f} | "
            f"{s['floor_s']:.2f} | {s['ratio']:.2f} | {s['anonymous_bytes'] / MB:,.0f} (≤ {limit / MB:,.0f}) |"
        )
    return "\n".join(lines)


# Sizes.


def size_verdicts(record: Record) -> list[dict[str, Any]]:
    return [
        verdict(f"keep {r['keep']}: positions / entropy", r["positions"] / r["entropy"], POSITIONS) for r in record["pruned"]
    ]


def sizes_table(record: Record) -> str:
    others = {
        "entropy": "entropy of the mask",
        "positions": "positions, stored",
        **{v: f"paring {v}" for v in VALUES},
        "coo_int32_fp32": "COO int32 + fp32",
        "coo_int32_fp16": "COO int32 + fp16",
        "bitmask_fp16": "bitmask + fp16",
        "zstd_dense_bf16": "zstd -3 of the dense bf16 difference",
    }
    rows = record["pruned"]
    lines = [
        f"**Bits a parameter, pruned** ({record['source']}; groups of {record['group']})",
        "",
        "| keep | " + " | ".join(str(r["keep"]) for r in rows) + " |",
        "|---|" + "---|" * len(rows),
    ]
    lines += [f"| {title} | " + " | ".join(f"{r[key]:.3f}" for r in rows) + " |" for key, title in others.items()]
    lines += [
        "",
        "**Bytes, exact** (MB)",
        "",
        "| weights | changed | checkpoint | zstd -3 of the fine-tune | difference, plain | zstd -3 of it (entries it gets "
        "wrong) | exact delta |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in record["exact"]:
        lines.append(
            f"| {r['weights']} | {r['changed']:.0%} | {r['checkpoint_bytes'] / MB:.1f} | "
            f"{r['zstd_3_of_fine_tune_bytes'] / MB:.1f} | {r['plain_difference_bytes'] / MB:.1f} | "
            f"{r['zstd_3_of_plain_difference_bytes'] / MB:.1f} ({r['plain_difference_wrong']:.1%}) | "
            f"{r['exact_delta_bytes'] / MB:.1f} |"
        )
    return "\n".join(lines)


# Swaps.


def summarize_swaps(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "what": f"{r['weights']}, {r['places']}",
            "num_entries": r["num_entries"],
            "swap_ms": 1e3 * median(r["swap_s"]),
            "write_ms": 1e3 * median(r["write_s"]),
            "ratio": median(s / w for s, w in zip(r["swap_s"], r["write_s"], strict=True)),
            "same_bits": r["same_bits"],
        }
        for r in rows
    ]


def swap_verdicts(record: Record) -> list[dict[str, Any]]:
    return [verdict(f"{s['what']}: swap / write once", s["ratio"], SWAP) for s in record["summary"]]


def swaps_table(record: Record) -> str:
    lines = [
        f"**Swaps of a bank**, MiniLM's shapes, keep 0.01 ({_where(record)})",
        "",
        "| weights, places | entries of both deltas | swap ms | written once ms | ratio (≤ 3) | base bitwise back |",
        "|---|---|---|---|---|---|",
    ]
    for s in record["summary"]:
        lines.append(
            f"| {s['what']} | {s['num_entries']:,} | {s['swap_ms']:.2f} | {s['write_ms']:.2f} | {s['ratio']:.2f} | "
            f"{_yes(s['same_bits'])} |"
        )
    return "\n".join(lines)


def verdict_lines(record: Record) -> str:
    missed = [v for v in record["verdicts"] if not v["met"]]
    if not missed:
        return "All promises of this part are kept."
    return "Not kept: " + "; ".join(f"{v['what']} is {v['value']:,.3g}, limit {v['limit']:,.3g}" for v in missed) + "."


def _where(record: Record) -> str:
    hardware = record["hardware"]
    return f"{hardware['cpu']}, {hardware['cores']} cores, {record['date']}"


def _yes(holds: bool) -> str:
    return "yes" if holds else "NO"
