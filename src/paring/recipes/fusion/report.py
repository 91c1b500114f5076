"""The numbers of a merge with rows: as a record, and for a terminal."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paring.fusion.fitting import Fit, Fitted
from paring.fusion.objective import GOALS
from paring.recipes.fusion.methods import Attempt, value
from paring.recipes.fusion.problem import REPORTED, SELECTED, Problem
from paring.recipes.fusion.settings import FusionSettings
from paring.recipes.made_with import made_with
from paring.recipes.scoring import Scores
from paring.recipes.slim.report import aligned
from paring.search.run import Result
from paring.slim.lesson import Lesson

_LOCAL = ("search", "pruned")  # settings that say where something lies
Tuned = Mapping[str, Mapping[str, Scores]]


def record(
    about: Problem, attempts: Sequence[Attempt], chosen: Attempt, prune: str | None, settings: FusionSettings
) -> dict[str, Any]:
    """All numbers, plain."""
    return {
        "searched": settings.searches,
        "objective": settings.objective,
        "by": settings.by,
        "prune": prune,
        "keep": settings.keep if prune else 1.0,
        "rows": {t.name: {split: s.num_rows for split, s in t.side.scorings.items()} for t in about.tasks},
        "calibration": {t.name: t.side.digest for t in about.tasks},
        "tuned": {split: {t: s.as_dict() for t, s in scores.items()} for split, scores in about.tuned.items()},
        "chosen": chosen.label,
        "tried": [_plain(a, about.tuned, settings) for a in attempts],
        **made_with(asdict(settings), _LOCAL),
    }


def table(record: Mapping[str, Any], split: str) -> list[str]:
    """A row for the fine-tunes and one for each attempt; a column for each task, and those together."""
    tuned = record["tuned"][split]
    metric = {t: "accuracy" if "accuracy" in s else "loss" for t, s in tuned.items()}
    tried = [a for a in record["tried"] if split in a["scores"]]
    header = [split, *(f"{t} {m}" for t, m in metric.items()), "mean share", "worst share"]
    rows = [["each its own fine-tune", *(_number(tuned[t][m]) for t, m in metric.items()), "1.0000", "1.0000"]]
    for a in tried:
        mark = " <-" if a["label"] == record["chosen"] and len(tried) > 1 else ""
        scores, share = a["scores"][split], a["shares"][split]
        rows.append(
            [
                a["label"] + mark,
                *(_number(scores[t][m]) for t, m in metric.items()),
                _number(share["mean"]),
                _number(share["worst"]),
            ]
        )
    return aligned([header, *rows])


def weights_table(chosen: Attempt) -> list[str]:
    """The weights: a row a task, a column a group of layers."""
    if chosen.names is None:
        return ["weights as configured"]
    weights = chosen.names.weights(chosen.x)
    rows = [["weight", *(g.name for g in chosen.names.groups)]]
    rows += [[task, *(f"{w:.4f}" for w in of.values())] for task, of in weights.items()]
    factor = chosen.names.factor(chosen.x)
    return aligned(rows) + ([] if factor is None else [f"lambda {factor:.4f}"])


def fit_line(of: Mapping[str, Any]) -> str:
    """A fit, from its record, as a sentence."""
    before, after = (sum(d.values()) / len(d) for d in (of["before"], of["after"]))
    heads = f", and {of['head_entries']:,} of the tasks' heads" if of["head_entries"] else ""
    return (
        f"Fitted: {of['entries']:,} entries of {of['tensors']} tensors{heads}, tuned for {of['steps']} steps to answer as the "
        f"fine-tunes do on their calibration rows (without labels); distance {before:.4f} before, {after:.4f} after"
    )


def _plain(attempt: Attempt, tuned: Tuned, settings: FusionSettings) -> dict[str, Any]:
    shares: dict[str, dict[str, float | None]] = {}
    for split, scores in attempt.scores.items():
        found = {goal: value(scores, tuned[split], "accuracy", goal) for goal in GOALS}
        shares[split] = {goal: v if math.isfinite(v) else None for goal, v in found.items()}
    names = attempt.names
    return {
        "label": attempt.label,
        "weights": None if names is None else names.weights(attempt.x),
        "lambda": None if names is None else names.factor(attempt.x),
        "scores": {split: {t: s.as_dict() for t, s in of.items()} for split, of in attempt.scores.items()},
        "shares": shares,
        "search": None if attempt.result is None else _search(attempt.result),
        "fit": None if attempt.fitted is None else _fit(attempt.fitted, settings.fitting()),
    }


def _search(result: Result) -> dict[str, Any]:
    return {
        "score": result.score,
        "starts": result.start_scores,
        "num_evaluations": result.num_evaluations,
        "stopped_because": result.stopped_because,
    }


def _fit(fitted: Fitted, how: Fit) -> dict[str, Any]:
    return {
        **asdict(how),
        "rate": fitted.rate,
        "head_rate": fitted.head_rate,
        "hidden": Lesson.hidden,
        "before": dict(fitted.before),
        "after": dict(fitted.after),
        "tensors": len(fitted.values),
        "entries": sum(tensor.numel() for tensor in fitted.values.values()),
        "head_entries": sum(tensor.numel() for head in fitted.heads.values() for tensor in head.values()),
    }


def _number(found: float | None) -> str:
    return "NaN" if found is None else f"{found:.4f}"


def tables(found: Mapping[str, Any], chosen: Attempt) -> list[str]:
    """Scores and weights, for people."""
    scored = [split for split in (SELECTED, REPORTED) if split == SELECTED or split in chosen.scores]
    lines = [line for split in scored for line in (*table(found, split), "")] + weights_table(chosen)
    if fit := next((a["fit"] for a in found["tried"] if a["label"] == chosen.label), None):
        lines += [fit_line(fit)]
    return lines


def written(out: Path, chosen: Attempt, heads: Collection[str], bank: Path | None) -> Iterator[str]:
    """What there is now, and how it is used."""
    again = "makes it again without a search" if chosen.fitted is None else "makes the merge that was fitted, not its values"
    yield f"Wrote {out}: {chosen.label}, chosen on validation rows; {out.name}/paring-fuse.yml {again}"
    for name in heads:
        yield f"  {name}: what the task has of its own; paring apply {out} {out / name} OUT writes its model"
    if bank is not None:
        yield f"Wrote {bank}: the pruned task vectors, a bank"
