"""From measurements to numbers that can be compared, to verdicts on what paring promises, to Markdown."""

from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Any

import numpy as np

from cost.methods import NUM_WINDOWS, SLICES, TITLES, window_move_steps
from cost.record import Record

Spread = dict[str, float]
MB = 1e6


def spread(values: list[float]) -> Spread:
    """Median and quartiles."""
    q1, median, q3 = np.quantile(values, (0.25, 0.5, 0.75))
    return {"median": float(median), "q1": float(q1), "q3": float(q3)}


def summarize(record: Record) -> dict[str, dict[str, Any]]:
    """By method: step time, and its ratio to the floor and to LoRA round by round, since a machine's speed drifts."""
    rounds = record["rounds"]
    out: dict[str, dict[str, Any]] = {}
    for method in record["sizes"]:
        out[method] = {"step_s": spread([r[method] for r in rounds])}
        for name in ("floor", "lora"):
            if name in record["sizes"]:
                out[method][f"ratio_to_{name}"] = spread([r[method] / r[name] for r in rounds])
    if "window" in out:
        # Upper windows cost less: the gradient ends where the window does. A run spends its time in all alike.
        stay = window_move_steps(record["settings"]["rounds"])
        at = [[r["window"] for i, r in enumerate(rounds) if i // stay % NUM_WINDOWS == w] for w in range(NUM_WINDOWS)]
        out["window"]["step_s_by_window"] = [spread(times)["median"] for times in at if times]
        out["window"]["step_s_mean"] = fmean(r["window"] for r in rounds)
    return out


# Verdicts.


def verdicts(record: Record) -> list[dict[str, Any]]:
    """Each promise with the value measured, its limit and whether it was kept; unmeasured ones have neither.

    The limit on resident bytes is 4 bytes for every byte trained (the copy, its gradient, two moments) to two
    decimals: AdamW's step counters and the slices' positions are some 70 bytes a layer more.
    """
    summary, sizes = record["summary"], record["sizes"]
    out: list[dict[str, Any]] = []

    def judge(what: str, limit: float, value: Callable[..., float], *names: str) -> None:
        try:
            measured = value(*names)
        except KeyError as missing:
            out.append({"what": what, "limit": limit, "value": None, "met": None, "missing": missing.args[0]})
        else:
            out.append({"what": what, "limit": limit, "value": measured, "met": measured <= limit})

    def step_ratio(method: str, to: str) -> float:
        return summary[method][f"ratio_to_{to}"]["median"]

    def saved_ratio(method: str, to: str) -> float:
        return sizes[method]["saved_bytes"] / sizes[to]["saved_bytes"]

    def resident_ratio(method: str) -> float:
        return sizes[method]["resident_bytes"] / sizes[method]["trained_bytes"]

    def move_ratio(method: str) -> float:
        return spread(record["moves"][method]["move_s"])["median"] / summary[method]["step_s"]["median"]

    for method in ("column", "row"):
        judge(f"{method}: step / floor", 1.05, step_ratio, method, "floor")
        judge(f"{method}: step / LoRA", 0.80, step_ratio, method, "lora")
    judge("column: saved bytes / floor", 1.02, saved_ratio, "column", "floor")
    judge("row: saved bytes / LoRA", 1.0, saved_ratio, "row", "lora")
    for method in SLICES:
        judge(f"{method}: resident / trained bytes", 4.005, resident_ratio, method)
    for method in SLICES:
        judge(f"{method}: move / step", 1.0, move_ratio, method)
    if record["model"] == "bert-base":
        judge("entering and leaving, s", 0.2, lambda: sum(_enter_leave(record)))
    return out


def _enter_leave(record: Record) -> tuple[float, float]:
    times = record["enter_and_leave"]["column"]
    return spread(times["enter_s"])["median"], spread(times["leave_s"])["median"]


# Markdown.


def markdown(record: Record) -> str:
    """A heading, one row a method, and below what has no row."""
    settings, hardware, versions = record["settings"], record["hardware"], record["versions"]
    where = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['threads']} threads"
    lines = [
        f"### {record['title']}",
        "",
        f"{where}, {settings['precision']}, torch {versions['torch']}, peft {versions['peft']}, {record['date']}; "
        f"medians of {len(record['rounds'])} interleaved rounds, quartiles in brackets; "
        "MB are 10^6 bytes, resident is beyond the frozen model.",
        "",
    ]
    on_gpu = any(s["peak_step_bytes"] is not None for s in record["sizes"].values())
    titles = ["", "step, ms", "/ floor", "/ LoRA", "saved, MB", "trained", "gradients, MB", "optimizer, MB", "resident, MB"]
    titles += ["step's peak, MB"] if on_gpu else []
    lines += [_row(titles), _row(["---"] + ["---:"] * (len(titles) - 1))]
    for method in record["settings"]["methods"]:
        if method in record["not_applicable"]:
            why = record["not_applicable"][method].splitlines()[0]
            lines.append(_row([TITLES[method], f"not applicable: {why}"] + [""] * (len(titles) - 2)))
            continue
        s, times = record["sizes"][method], record["summary"][method]
        cells = [TITLES[method], f"{times['step_s']['median'] * 1e3:.0f}"]
        cells += [_spread(times.get(f"ratio_to_{name}")) for name in ("floor", "lora")]
        cells += [_mb(s["saved_bytes"]), f"{s['num_trainable']:,}"]
        cells += [_mb(s[k]) for k in ("gradient_bytes", "optimizer_bytes", "resident_bytes")]
        lines.append(_row(cells + ([_mb(s["peak_step_bytes"])] if on_gpu else [])))
    lines += ["", *_session_times(record), *_verdict_lines(record["verdicts"])]
    return "\n".join(lines)


def _session_times(record: Record) -> Iterable[str]:
    for method, times in record.get("moves", {}).items():
        median = {k: spread(v)["median"] for k, v in times.items()}
        step_s = record["summary"][method]["step_s"]["median"]
        yield (
            f"- {method}: `session.step()` takes {median['session_step_s'] * 1e3:.2f} ms, with a move "
            f"{median['move_s'] * 1e3:.1f} ms, {median['move_s'] / step_s:.2f} of a step."
        )
    if "column" in record.get("enter_and_leave", {}):
        enter_s, leave_s = _enter_leave(record)
        yield f"- A session is entered in {enter_s * 1e3:.0f} ms and left in {leave_s * 1e3:.0f} ms."


def _verdict_lines(judged: list[dict[str, Any]]) -> Iterable[str]:
    for v in judged:
        if v["met"] is None:
            yield f"- {v['what']}: not measured (no {v['missing']})"
        else:
            yield f"- {v['what']}: {v['value']:.3f}, {'within' if v['met'] else '**beyond**'} {v['limit']:g}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(of: Spread | None) -> str:
    return "" if of is None else f"{of['median']:.2f} ({of['q1']:.2f}-{of['q3']:.2f})"


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / MB:.1f}" if num_bytes < 100 * MB else f"{num_bytes / MB:.0f}"
