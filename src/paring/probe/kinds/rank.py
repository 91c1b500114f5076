"""Accuracy against slice rank, of slices that stay and of slices that move.

A cell is one training: a schedule, a rank, a rate, a seed. Of the rates tried for a rank the one counts that did best on
validation rows: a wide slice wants a lower one, and what falls with the rank at one rate for all may be the rate's doing.
Where the one that did best is the highest or the lowest tried, a better one may lie beyond, and nothing is decided by it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from paring.probe.bench import Bench
from paring.probe.checks import as_tuples, at_least, distinct, refuse, some_of
from paring.probe.contrasts import Crossed, all_hold, at_best_rate, at_edge, crossed, diverged, measured_on
from paring.probe.kind import Cell, Kind, Plan, Row, Tables, Verdict
from paring.probe.training import COLUMNS, Room, TrainingSettings
from paring.tune.slices import AXES, Axis

SCHEDULES = ("static", "moving")
_CLOSE = 0.01  # of the best accuracy: saturated


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """Which ranks, and how they are trained (``TrainingSettings``).

    Attributes:
        ranks: rows (columns) in a slice; None: the powers of two up to the narrowest layer, and that one's extent.
        schedules: "static", "moving".
        axis: "row" or "column".
        move_steps: optimizer steps between two moves of a moving slice; None: an eighth of all.

    Raises:
        ValueError: naming the setting, what it is, what was expected.
    """

    factors: ClassVar[tuple[float, ...]] = (0.25, 0.5, 1.0, 2.0)
    ranks: tuple[int, ...] | None = None
    schedules: tuple[str, ...] = SCHEDULES
    axis: Axis = "column"
    move_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        as_tuples(self, "ranks", "schedules")
        some_of(self, "schedules", SCHEDULES)
        if self.move_steps is not None:
            at_least(self, "move_steps", 1)
        if self.axis not in AXES:
            refuse("axis", self.axis, "'row' or 'column'")
        if self.ranks is not None:
            distinct(self, "ranks", int, least=3)
            if min(self.ranks) < 1:
                refuse("ranks", self.ranks, "whole numbers, at least 1")


@contextmanager
def plan(bench: Bench, settings: Settings) -> Iterator[Plan]:
    room = Room(bench, settings)
    extent, narrow = room.narrowest(settings.axis)
    ranks = tuple(sorted(settings.ranks)) if settings.ranks else _powers(extent)
    if len(ranks) < 3:
        raise ValueError(
            f"ranks: layer '{narrow}' has {extent} {settings.axis}(s), which allow ranks {ranks}; expected at least 3 ranks, "
            "since accuracy is to rise and fall: exclude the layer"
        )
    moves = {"static": None, "moving": settings.move_steps or max(1, settings.steps // 8)}
    configs = {
        (schedule, rank): room.config(rank=rank, modes=(settings.axis,), move_steps=moves[schedule])
        for schedule in settings.schedules
        for rank in ranks
    }

    def measure(cell: Cell) -> Tables:
        what = cell.what
        config = configs[str(what["schedule"]), int(what["rank"])]  # type: ignore[arg-type]
        trained = room.train(config, float(what["rate"]), int(what["seed"]))  # type: ignore[arg-type]
        return {"runs": [trained.as_row()]}

    cells = [
        Cell({"schedule": schedule, "rank": rank, "rate": rate, "seed": seed})
        for seed in settings.seeds
        for schedule, rank in configs
        for rate in room.rates_of(rank)
    ]
    note = f"ranks end with the {extent} {settings.axis}s of layer '{narrow}'; without it (--exclude) they may go further"
    extents = sorted(matrix.extent(settings.axis) for matrix in room.matrices.values())
    few = settings.ranks is None and 2 * extent < extents[len(extents) // 2]
    given = room.given | {"axis": settings.axis, "move_steps": moves["moving"]}
    yield Plan(cells, measure, given, room.facts | {"narrowest": extent}, (*room.notes, *((note,) if few else ())))


def _powers(extent: int) -> tuple[int, ...]:
    return tuple(sorted({*(2**i for i in range(extent.bit_length()) if 2**i <= extent), extent}))


def summaries(tables: Tables) -> Tables:
    """``curve``: for every schedule and rank the rate that did best (``at_edge``: of those tried the highest or the lowest),
    and its mean accuracies."""
    rows: list[Row] = []
    found = at_best_rate(tables["runs"], ("schedule", "rank"))
    column = measured_on(tables["runs"])
    on = {name: crossed(found, name).means for name in ("validation", column)}
    for (schedule, rank), runs in found.items():
        what: Row = {"schedule": schedule, "rank": rank, "rate": runs[0]["rate"], "num_trainable": runs[0]["num_trainable"]}
        what["at_edge"] = at_edge(tables["runs"], {"schedule": schedule, "rank": rank}, runs[0]["rate"])
        rows.append(what | {name: on[name][schedule, rank] for name in on} | {"num_seeds": len(runs)})
    return {"curve": rows}


def verdict(tables: Tables, settings: Settings) -> Verdict:
    """Holds of a schedule where the best rank between the ends (on validation rows) is ahead of the least rank and of the
    largest one, with the intervals of both; does not where it is behind one of them. All schedules must agree."""
    column = measured_on(tables["runs"])
    found = at_best_rate(tables["runs"], ("schedule", "rank"))
    answers: list[bool | None] = []
    parts: list[str] = []
    numbers: Row = {"num_seeds": len(settings.seeds), "measured_on": column}
    measured = True
    for schedule in settings.schedules:
        of = {what: rows for what, rows in found.items() if what[0] == schedule}
        ranks = sorted(rank for _, rank in of)
        rates = {rank: rows[0]["rate"] for (_, rank), rows in of.items()}
        edges = [r for r in ranks if at_edge(tables["runs"], {"schedule": schedule, "rank": r}, rates[r])]
        one = _one(schedule, ranks, edges, crossed(of, "validation"), crossed(of, column), among=2 * len(settings.schedules))
        answer, seen, said, more = one
        answers.append(answer)
        measured &= seen
        parts.append(said)
        numbers |= {f"{schedule}_{name}": value for name, value in more.items()}
    said = "; ".join(parts) + f" ({len(settings.seeds)} seeds, {column} rows{diverged(tables['runs'])})"
    return Verdict(all_hold(answers), said, numbers, measured)


def _one(
    schedule: str, ranks: Sequence[int], edges: Sequence[int], chosen: Crossed, scored: Crossed, among: int
) -> tuple[bool | None, bool, str, Row]:
    """Of one schedule: whether it holds, whether it does as measured, in words, and in numbers."""

    def best_of(some: Sequence[int]) -> int:
        return max(some, key=lambda rank: (chosen.means[schedule, rank], -rank))

    best, turn = best_of(ranks), best_of(ranks[1:-1])
    ends = {rank: scored.between((schedule, turn), (schedule, rank), among=among) for rank in (ranks[0], ranks[-1])}
    close = next(rank for rank in ranks if chosen.means[schedule, rank] >= chosen.means[schedule, best] - _CLOSE)
    said = (
        f"{schedule} slices are best at rank {best} of {ranks[0]} to {ranks[-1]}, with "
        f"{100 * scored.means[schedule, best]:.1f} %, within a point of it from rank {close}; between the ends at rank {turn}: "
        + "; ".join(f"over rank {rank} {contrast.said()}" for rank, contrast in ends.items())
        + (f"; at rank {' and '.join(map(str, edges))} the best rate is the highest or lowest tried" if edges else "")
    )
    numbers: Row = {"best_rank": best, "turn": turn, "saturated_at": close, "best": scored.means[schedule, best]}
    for name, contrast in zip(("rise", "fall"), ends.values(), strict=True):
        there = math.isfinite(contrast.half)
        numbers |= {name: contrast.difference, f"{name}_half_width": contrast.half if there else None}
    ahead = [contrast.low > 0 for contrast in ends.values()]
    behind = [contrast.high < 0 and turn not in edges for contrast in ends.values()]
    sure = not any(rank in edges for rank in ends)
    answer = False if any(behind) else True if all(ahead) and sure else None
    return answer, min(contrast.difference for contrast in ends.values()) > 0, said, numbers


KIND = Kind(
    name="rank",
    title="Accuracy against rank",
    claim="Accuracy rises with the rank of slices up to a point, and falls after it",
    source="SliceFine, Figure 2 (a)",
    settings=Settings,
    needs="rows",
    plan=plan,
    columns=COLUMNS
    | {
        "schedule": "static: slices stay where they are; moving: a sweep",
        "rank": "rows or columns in a slice",
        "at_edge": "the rate is the highest or the lowest of those tried: a better one may lie beyond",
        "num_seeds": "trainings in the mean",
    },
    verdict=verdict,
    figure="rank",
    summaries=summaries,
)
