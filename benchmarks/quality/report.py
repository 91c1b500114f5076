"""What the stored cells show: a table with spreads, the time to LoRA's score, and a verdict on each goal."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from quality import timing
from quality.methods import METHODS
from quality.plan import SEEDS, Runner

WITHIN = 0.005  # of LoRA's mean, on every task
TIME_SHARE = 0.6  # of LoRA's wall time, to reach its final validation score


def markdown(runner: Runner, screened: Sequence[str], results: Path) -> str:
    """The report of one suite, as far as its cells go."""
    suite = runner.suite
    known = [name for name in screened if _known(runner, name)]
    out = [f"### {suite.title}", "", f"{suite.num_steps} steps of {suite.batch_size} rows, AdamW, warm-up, linear to zero.", ""]
    if "lora-r8" in known and len(known) == len(screened):
        confirmed = [name for name in runner.to_confirm(screened) if cells(runner, name)]
        if confirmed:
            out += [*_confirmed(runner, confirmed, timing.ratios(results, suite.name)), ""]
    out += ["Screen: validation accuracy with seed 0, " + " and ".join(suite.screened) + ", at the best rate of the grid.", ""]
    out += ["| method | rate | validation | trained |", "|---|---:|---:|---:|"]
    for name in sorted(known, key=runner.best_score, reverse=True):
        trained = num_trainable(runner, name)
        out.append(f"| {METHODS[name].title} | {runner.rate(name):g} | {runner.best_score(name):.3f} | {trained:,} |")
    return "\n".join(out) + "\n"


def moving(runner: Runner, methods: Sequence[str], tasks: Sequence[str], rate: float) -> str:
    """Validation accuracy of one seed at one rate for all, and at the rate found for each; what is not there yet is a dash."""
    out = [f"Moving on {runner.suite.title}: validation accuracy with seed {SEEDS[0]}, at a rate of {rate:g}.", ""]
    screened = " and ".join(runner.suite.screened)
    out += ["| method | " + " | ".join(tasks) + f" | {screened}, at its own rate |", "|---|" + "---:|" * (len(tasks) + 1)]
    for name in methods:
        found = [runner.store.cells.get(runner.cell(task, name, rate, SEEDS[0]).key) for task in tasks]
        shown = [f"{cell['validation']:.3f}" if cell else "-" for cell in found]
        own = f"{runner.best_score(name):.3f} ({runner.rate(name):g})" if _known(runner, name) else "-"
        out.append(f"| {METHODS[name].title} | {' | '.join(shown)} | {own} |")
    return "\n".join(out) + "\n"


def tests_by_task(runner: Runner, methods: Sequence[str]) -> str:
    """Test accuracy by task, with the number of seeds there are so far; a dash before the second."""
    out = ["| method | " + " | ".join(runner.suite.tasks) + " |", "|---|" + "---:|" * len(runner.suite.tasks)]
    for name in methods:
        shown = []
        for task in runner.suite.tasks:
            keys = [runner.cell(task, name, runner.rate(name), seed).key for seed in SEEDS] if _known(runner, name) else []
            tests = [runner.store.cells[key]["test"] for key in keys if key in runner.store.cells]
            enough = f"{100 * mean(tests):.1f} ± {100 * stdev(tests):.1f} ({len(tests)} seeds)" if len(tests) > 1 else "-"
            shown.append(enough)
        out.append(f"| {METHODS[name].title} | {' | '.join(shown)} |")
    return "\n".join(out) + "\n"


def cells(runner: Runner, method: str) -> list[dict[str, Any]]:
    """The confirmed cells of a method: all tasks, all seeds; [] when one is missing."""
    suite = runner.suite
    found = [
        runner.store.cells.get(runner.cell(task, method, runner.rate(method), seed).key)
        for task in suite.tasks
        for seed in SEEDS
    ]
    return [] if None in found else [c for c in found if c]


def num_trainable(runner: Runner, method: str) -> int:
    suite = runner.suite
    key = runner.cell(suite.screened[0], method, runner.rate(method), SEEDS[0]).key
    return int(runner.store.cells[key]["num_trainable"])


def time_to(runner: Runner, method: str, task: str, target: float, ratio: float) -> float | None:
    """When the validation curve (mean over seeds) first reaches ``target``, as a share of LoRA's whole run; None: never."""
    curves = [c["curve"] for c in cells(runner, method) if c["task"] == task]
    for points in zip(*curves, strict=True):
        if mean(value for _, value in points) >= target - 1e-9:  # means of the same rows, summed in another order
            return float(points[0][0] / runner.suite.num_steps * ratio)
    return None


def _known(runner: Runner, name: str) -> bool:
    try:
        runner.rate(name)
    except KeyError:
        return False
    return True


def _confirmed(runner: Runner, methods: Sequence[str], ratios: dict[str, float]) -> list[str]:
    tasks = runner.suite.tasks
    out = [
        f"Test accuracy, mean ± standard deviation over {len(SEEDS)} seeds; step time beside LoRA's; what must be kept.",
        "",
        "| method | " + " | ".join(tasks) + " | mean | rate | step / LoRA | trained | kept, MB |",
        "|---|" + "---:|" * (len(tasks) + 5),
    ]
    lora = {task: mean(_tests(runner, "lora-r8", task)) for task in tasks}
    for name in methods:
        kept = max(c["kept_bytes"] for c in cells(runner, name)) / 1e6
        per_task = [_tests(runner, name, task) for task in tasks]
        shown = [f"{100 * mean(t):.1f} ± {100 * stdev(t):.1f}" for t in per_task]
        ratio = f"{ratios[name]:.2f}" if name in ratios else "-"
        out.append(
            f"| {METHODS[name].title} | {' | '.join(shown)} | {100 * mean(map(mean, per_task)):.1f} | "
            f"{runner.rate(name):g} | {ratio} | {num_trainable(runner, name):,} | {kept:.2f} |"
        )
    return [*out, "", *_verdicts(runner, methods, lora, ratios)]


def _verdicts(runner: Runner, methods: Sequence[str], lora: dict[str, float], ratios: dict[str, float]) -> list[str]:
    limit = num_trainable(runner, "lora-r8")
    slices = [n for n in methods if METHODS[n].kind == "slices" and num_trainable(runner, n) <= limit]
    # Which setting is "best" is chosen on validation, not on the test rows it is then reported on.
    best = max(slices, key=lambda n: mean(c["validation"] for c in cells(runner, n)))
    behind = {task: lora[task] - mean(_tests(runner, best, task)) for task in runner.suite.tasks}
    worst = max(behind, key=lambda task: behind[task])
    where = "behind" if behind[worst] > 0 else "ahead"
    holds = "holds" if behind[worst] <= WITHIN else "does not hold"
    out = [
        f"- Slices with no more trained entries than LoRA, the best on validation: {METHODS[best].title}. On {worst}, where "
        f"it does worst beside LoRA, it is {100 * abs(behind[worst]):.1f} points {where}: within "
        f"{100 * WITHIN:g} points on every task **{holds}**."
    ]
    targets = {t: mean(c["validation"] for c in cells(runner, "lora-r8") if c["task"] == t) for t in runner.suite.tasks}
    for name in (*(n for n in methods if METHODS[n].kind == "slices"), "lora-r8", "lora-r8-upper"):
        if name in ratios and name in methods:
            times = [time_to(runner, name, task, targets[task], ratios[name]) for task in runner.suite.tasks]
            words = ", ".join(
                f"{t} {'never' if x is None else f'{x:.2f}'}" for t, x in zip(runner.suite.tasks, times, strict=True)
            )
            good = all(x is not None and x <= TIME_SHARE for x in times)
            out.append(
                f"- {METHODS[name].title}: LoRA's final validation score after this share of LoRA's wall time: {words}"
                + (f"; within {TIME_SHARE} everywhere." if good else ".")
            )
    return out


def _tests(runner: Runner, method: str, task: str) -> list[float]:
    return [c["test"] for c in cells(runner, method) if c["task"] == task]
