"""The numbers of ``paring transfer``: the record, from which tables and plots are made."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paring.recipes.made_with import made_with
from paring.recipes.slim.report import aligned
from paring.recipes.transfer.methods import Candidate
from paring.recipes.transfer.problem import Place, Problem
from paring.recipes.transfer.settings import TransferSettings
from paring.transfer.scores import Point, best, pareto

_LOCAL = ("search", "report", "config", "overwrite")  # settings that say nothing about the result


@dataclass(frozen=True)
class Traced:
    """A candidate's path on validation rows.

    Attributes:
        places: by lambda.
        best: the place of highest H.
        test: what the test rows say of it; None: there are none.
    """

    candidate: Candidate
    places: Sequence[Place]
    best: Place
    test: Place | None = None


def best_place(places: Sequence[Place], method: str) -> Place:
    """The place of highest H. ValueError: no place has a number for it; names the method."""
    try:
        chosen = best([place.point for place in places])
    except ValueError as error:
        raise ValueError(f"{method}: {error}") from None
    return next(place for place in places if place.lam == chosen.lam)


def record(
    about: Problem,
    traced: Sequence[Traced],
    chosen: Traced,
    ends: Mapping[str, Mapping[str, Place]],
    settings: TransferSettings,
    stored: Mapping[str, Place] | None = None,
) -> dict[str, Any]:
    """All numbers, plain.

    Args:
        ends: the base ("base") and the fine-tune ("tuned") by split.
        stored: of what is written, with the values that its file holds, by split; None: nothing is.
    """
    points = [(t.candidate.method, place.point) for t in traced for place in t.places]
    return {
        "keep": settings.keep,
        "objective": settings.objective,
        "seed": settings.seed,
        "own_head": settings.own_head,
        "rows": {side.name: {s: x.num_rows for s, x in side.scorings.items()} for side in (about.tuned, *about.originals)},
        "metrics": {side.name: scores.metric[0] for side, scores in zip(_sides(about), _first(traced), strict=True)},
        "chosen": {"method": chosen.candidate.method, "lambda": chosen.best.lam},
        "stored": None if stored is None else {split: _place(about, place) for split, place in stored.items()},
        "ends": {name: {split: _place(about, place) for split, place in by.items()} for name, by in ends.items()},
        "methods": [
            {
                "method": t.candidate.method,
                "num_kept": t.candidate.num_kept,
                "best": _place(about, t.best),
                "test": None if t.test is None else _place(about, t.test),
                "path": [_place(about, place) for place in t.places],
                **_search(t.candidate),
            }
            for t in traced
        ],
        "pareto": [{"method": points[i][0], "lambda": points[i][1].lam} for i in pareto([point for _, point in points])],
        **made_with(asdict(settings), _LOCAL),
    }


def table(found: Mapping[str, Any]) -> list[str]:
    """The ends of the path and every method at its best lambda: both scores and H, on validation and on test rows."""
    with_test = any(m["test"] is not None for m in found["methods"])
    splits = ["validation", "test"] if with_test else ["validation"]
    header = [
        f"keep {found['keep']:g}",
        "kept",
        "lambda",
        *(f"{s} {what}" for s in splits for what in ("tuned", "original", "H")),
    ]
    rows = [
        [name, "", f"{by['validation']['lambda']:g}", *_three(by, splits)]
        for name, by in (("the base", found["ends"]["base"]), ("the fine-tune", found["ends"]["tuned"]))
    ]
    for m in found["methods"]:
        mark = " <-" if m["method"] == found["chosen"]["method"] and len(found["methods"]) > 1 else ""
        by = {"validation": m["best"], "test": m["test"]}
        rows.append([m["method"] + mark, f"{m['num_kept']:,}", f"{m['best']['lambda']:.4g}", *_three(by, splits)])
    return aligned([header, *rows])


def _three(by: Mapping[str, Any], splits: Sequence[str]) -> list[str]:
    return [_text(by[split][key]) for split in splits for key in ("tuned", "original", "h")]


def _text(number: float | None) -> str:
    return "NaN" if number is None else f"{number:.4f}"


def _place(about: Problem, place: Place) -> dict[str, Any]:
    point: Point = place.point
    scores = zip(_sides(about), (place.tuned, *place.originals), strict=True)
    return {
        "lambda": place.lam,
        "tuned": _plain(point.tuned),
        "original": _plain(point.original),
        "h": _plain(point.h),
        "scores": {side.name: s.as_dict() for side, s in scores},
    }


def _search(candidate: Candidate) -> dict[str, Any]:
    if candidate.result is None:
        return {}
    result = candidate.result
    found = {"num_evaluations": result.num_evaluations, "starts": result.start_scores, "score": result.score}
    return found if candidate.lam is None else found | {"searched_lambda": candidate.lam}


def _sides(about: Problem) -> tuple[Any, ...]:
    return (about.tuned, *about.originals)


def _first(traced: Sequence[Traced]) -> tuple[Any, ...]:
    place = traced[0].places[0]
    return (place.tuned, *place.originals)


def _plain(number: float) -> float | None:
    return number if math.isfinite(number) else None
