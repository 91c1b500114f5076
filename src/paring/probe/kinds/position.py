"""Accuracy against slice position: static slices of one rank, at places spread over every layer.

A position is a share of the way: 0 puts the slice at a layer's first rows (columns), 1 at its last, in every layer by its own
extent. A cell is one training: an axis, a position, a rate, a seed.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from paring.probe.bench import Bench
from paring.probe.checks import as_tuples, at_least, refuse, some_of
from paring.probe.contrasts import all_hold, at_best_rate, crossed, diverged, measured_on
from paring.probe.kind import Cell, Kind, Plan, Row, Tables, Verdict
from paring.probe.training import COLUMNS, Room, TrainingSettings
from paring.tune.config import SliceConfig
from paring.tune.slices import AXES, Axis


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """Which places, and how slices are trained there (``TrainingSettings``).

    Attributes:
        rank: rows (columns) in a slice.
        axes: "row", "column".
        positions: places, evenly spread from the first to the last; at least two.
        band: half width, in accuracy (0.01: one point), in which all places are to lie around the anchor, their mean.

    Raises:
        ValueError: naming the setting, what it is, what was expected.
    """

    rank: int = 5
    axes: tuple[Axis, ...] = AXES
    positions: int = 12
    band: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        as_tuples(self, "axes")
        some_of(self, "axes", AXES)
        at_least(self, "rank", 1)
        at_least(self, "positions", 2)
        if not 0 < self.band < 1:
            refuse("band", self.band, "an accuracy, above 0 and below 1")


@contextmanager
def plan(bench: Bench, settings: Settings) -> Iterator[Plan]:
    room = Room(bench, settings)
    for axis in settings.axes:
        room.config(rank=settings.rank, modes=(axis,))  # a rank that a layer cannot hold is said as such
        most = max((matrix.extent(axis), name) for name, matrix in room.matrices.items())
        if settings.positions > most[0] - settings.rank + 1:
            raise ValueError(
                f"positions is {settings.positions}; the widest layer, '{most[1]}', has {most[0]} {axis}s and so "
                f"{most[0] - settings.rank + 1} position(s) of a slice of rank {settings.rank}; expected at most as many"
            )
    shares = [round(i / (settings.positions - 1), 4) for i in range(settings.positions)]

    def config(axis: str, share: float) -> SliceConfig:
        starts = {
            name: round(share * (matrix.extent(axis) - settings.rank))  # type: ignore[arg-type]
            for name, matrix in room.matrices.items()
        }
        return room.config(rank=settings.rank, modes=(axis,), starts=starts)

    def measure(cell: Cell) -> Tables:
        what = cell.what
        chosen = config(str(what["axis"]), float(what["position"]))  # type: ignore[arg-type]
        trained = room.train(chosen, float(what["rate"]), int(what["seed"]))  # type: ignore[arg-type]
        return {"runs": [trained.as_row()]}

    cells = [
        Cell({"axis": axis, "position": share, "rate": rate, "seed": seed})
        for seed in settings.seeds
        for axis in settings.axes
        for share in shares
        for rate in room.rates
    ]
    yield Plan(cells, measure, room.given | {"rank": settings.rank}, room.facts, room.notes)


def summaries(tables: Tables) -> Tables:
    """``positions``: every position's distance from its axis' anchor, with an interval that holds for all positions at once."""
    column = measured_on(tables["runs"])
    rows: list[Row] = []
    axes = dict.fromkeys(row["axis"] for row in tables["runs"])
    for axis in axes:
        found = at_best_rate([row for row in tables["runs"] if row["axis"] == axis], ("position",))
        scored = crossed(found, column)
        for share in scored.conditions:
            away = scored.from_mean(share, among=len(scored.conditions) * len(axes))
            bounds: Row = {"low": away.low, "high": away.high} if math.isfinite(away.half) else {"low": None, "high": None}
            of: Row = {"axis": axis, "position": share, "rate": found[(share,)][0]["rate"], column: scored.means[share]}
            rows.append(of | {"away": away.difference} | bounds)
    return {"positions": rows}


def verdict(tables: Tables, settings: Settings) -> Verdict:
    """Holds where every position's distance from the mean of all of its axis lies within the band, with its interval (one for
    all positions at once); does not where that of one lies outside."""
    column = measured_on(tables["runs"])
    answers: list[bool | None] = []
    parts: list[str] = []
    numbers: Row = {"num_seeds": len(settings.seeds), "band": settings.band, "measured_on": column}
    farthest = 0.0
    for axis in settings.axes:
        found = at_best_rate([row for row in tables["runs"] if row["axis"] == axis], ("position",))
        scored = crossed(found, column)
        total = len(scored.conditions)
        away = {share: scored.from_mean(share, among=total * len(settings.axes)) for share in scored.conditions}
        worst = max(away, key=lambda share: abs(away[share].difference))
        answer = all_hold(contrast.within(settings.band) for contrast in away.values())
        inside = sum(abs(contrast.difference) <= settings.band for contrast in away.values())
        chance = scored.by_chance()
        anchor = math.fsum(scored.means.values()) / total
        answers.append(answer)
        farthest = max(farthest, abs(away[worst].difference))
        parts.append(
            f"{axis}s: anchor {100 * anchor:.1f} %, farthest at {worst:g} of the way {away[worst].said()}, {inside} of {total} "
            f"inside ±{100 * settings.band:g}"
            + (f", seeds alone would bring the farthest to ±{100 * chance:.1f}" if math.isfinite(away[worst].half) else "")
        )
        numbers |= {
            f"{axis}_anchor": anchor,
            f"{axis}_num_inside": inside,
            f"{axis}_farthest": away[worst].difference,
            f"{axis}_half_width": away[worst].half if math.isfinite(away[worst].half) else None,
            f"{axis}_farthest_position": worst,
            f"{axis}_by_chance": chance,
        }
    num_positions = sum(len({row["position"] for row in tables["runs"] if row["axis"] == axis}) for axis in settings.axes)
    numbers |= {"num_positions": num_positions, "farthest": farthest}
    said = (
        f"within ±{100 * farthest:.1f} points (asked for: ±{100 * settings.band:g}) over {num_positions} positions x "
        f"{len(settings.seeds)} seeds (rank {settings.rank}, {column} rows{diverged(tables['runs'])}); {'; '.join(parts)}"
    )
    return Verdict(all_hold(answers), said, numbers, farthest <= settings.band)


KIND = Kind(
    name="position",
    title="Accuracy against position",
    claim="Accuracy stays within ±1 point of the anchor wherever the slices lie",
    source="SliceFine, Figure 2 (b), positional robustness",
    settings=Settings,
    needs="rows",
    plan=plan,
    columns=COLUMNS
    | {
        "axis": "slices of rows or of columns",
        "position": "share of the way from the first to the last place, in every layer",
        "away": "accuracy less the mean over all positions of the axis",
        "low": "lower end of its 95 % interval, for all positions of the axis at once; empty: one seed",
        "high": "upper end",
    },
    verdict=verdict,
    figure="position",
    summaries=summaries,
)
