"""Accuracy against slice rank, of slices that stay and of slices that move.

A cell is one training: a schedule, a rank, a rate, a seed. Of the rates tried for a rank the one counts that did best on
validation rows: a wide slice wants a lower one, and what falls with the rank at one rate for all may be the rate's doing.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from paring.probe.bench import Bench
from paring.probe.contrasts import Crossed, at_best_rate, crossed, diverged, measured_on
from paring.probe.kind import Cell, Kind, Plan, Row, Tables, Verdict
from paring.probe.training import COLUMNS, Room, TrainingSettings, as_tuples, at_least, distinct, refuse, some_of
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

    factors: ClassVar[tuple[float, ...]] = (0.3, 1.0, 3.0)
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
            distinct(self, "ranks", int, least=2)
            if min(self.ranks) < 1:
                refuse("ranks", self.ranks, "whole numbers, at least 1")


@contextmanager
def plan(bench: Bench, settings: Settings) -> Iterator[Plan]:
    room = Room(bench, settings)
    extent, narrow = room.narrowest(settings.axis)
    ranks = tuple(sorted(settings.ranks)) if settings.ranks else _powers(extent)
    if len(ranks) < 2:
        raise ValueError(f"ranks: layer '{narrow}' has one {settings.axis} alone, so there is one rank; exclude the layer")
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
        for rate in room.rates
    ]
    note = f"ranks end with the {extent} {settings.axis}s of layer '{narrow}'; without it (--exclude) they may go further"
    extents = sorted(matrix.extent(settings.axis) for matrix in room.matrices.values())
    few = settings.ranks is None and 2 * extent < extents[len(extents) // 2]
    given = room.given | {"axis": settings.axis, "move_steps": moves["moving"]}
    yield Plan(cells, measure, given, room.facts | {"narrowest": extent}, (*room.notes, *((note,) if few else ())))


def _powers(extent: int) -> tuple[int, ...]:
    return tuple(sorted({*(2**i for i in range(extent.bit_length()) if 2**i <= extent), extent}))


def summaries(tables: Tables) -> Tables:
    """``curve``: for every schedule and rank the rate that did best, and its mean accuracies."""
    rows: list[Row] = []
    found = at_best_rate(tables["runs"], ("schedule", "rank"))
    column = measured_on(tables["runs"])
    on = {name: crossed(found, name).means for name in ("validation", column)}
    for (schedule, rank), runs in found.items():
        what: Row = {"schedule": schedule, "rank": rank, "rate": runs[0]["rate"], "num_trainable": runs[0]["num_trainable"]}
        rows.append(what | {name: on[name][schedule, rank] for name in on} | {"num_seeds": len(runs)})
    return {"curve": rows}


def verdict(tables: Tables, settings: Settings) -> Verdict:
    """Holds of a schedule where the best rank (on validation rows) is ahead of the least rank and of the largest one; does not
    where one of the two is certainly not so, or the best is the least or the largest. All schedules must agree."""
    column = measured_on(tables["runs"])
    found = at_best_rate(tables["runs"], ("schedule", "rank"))
    answers: list[bool | None] = []
    parts: list[str] = []
    numbers: Row = {"num_seeds": len(settings.seeds), "measured_on": column}
    for schedule in settings.schedules:
        of = {what: rows for what, rows in found.items() if what[0] == schedule}
        ranks = sorted(rank for _, rank in of)
        chosen, scored = crossed(of, "validation"), crossed(of, column)
        turn = max(ranks, key=lambda rank: (chosen.means[schedule, rank], -rank))
        answer, said, more = _one(schedule, ranks, turn, chosen, scored)
        answers.append(answer)
        parts.append(said)
        numbers |= {f"{schedule}_{name}": value for name, value in more.items()}
    said = "; ".join(parts) + f" ({len(settings.seeds)} seeds, {column} rows{diverged(tables['runs'])})"
    holds = False if False in answers else True if all(answers) else None
    return Verdict(holds, said, numbers)


def _one(schedule: str, ranks: Sequence[int], turn: int, chosen: Crossed, scored: Crossed) -> tuple[bool | None, str, Row]:
    rise, fall = (scored.between((schedule, turn), (schedule, rank), among=2) for rank in (ranks[0], ranks[-1]))
    best = chosen.means[schedule, turn]
    close = next(rank for rank in ranks if chosen.means[schedule, rank] >= best - _CLOSE)
    over = [f"over rank {r} {c.said()}; " for r, c in ((ranks[0], rise), (ranks[-1], fall))]
    said = (
        f"{schedule} slices are best at rank {turn} of {ranks[0]} to {ranks[-1]}, with "
        f"{100 * scored.means[schedule, turn]:.1f} %: {'' if turn == ranks[0] else over[0]}"
        f"{'' if turn == ranks[-1] else over[1]}within a point of the best from rank {close}"
    )
    numbers: Row = {"best_rank": turn, "saturated_at": close, "best": scored.means[schedule, turn]}
    for name, contrast in (("rise", rise), ("fall", fall)):
        there = math.isfinite(contrast.half)
        numbers |= {name: contrast.difference, f"{name}_half_width": contrast.half if there else None}
    if turn in (ranks[0], ranks[-1]) or rise.high < 0 or fall.high < 0:
        return False, said, numbers
    return (True if rise.low > 0 and fall.low > 0 else None), said, numbers


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
        "num_seeds": "trainings in the mean",
    },
    verdict=verdict,
    figure="rank",
    summaries=summaries,
)
