"""Do slices that move beat slices that stay, and what of the schedule matters?

One thing is varied at a time, beside a sweep of columns that moves every eighth of the steps:

    static-column, static-row     never moving
    column                        the sweep
    interval   column-every-N     moving every N steps
    axis       row, both          a sweep of rows; row and column in turn
    stride     column-half-stride moving on by half a slice
    order      column-random      a random order
    window     column-window      half of the blocks at a time (``layer_window``, ours)

A cell is one training: a variant, a rate, a seed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from paring.probe.bench import Bench
from paring.probe.checks import as_tuples, at_least, distinct, refuse, some_of
from paring.probe.contrasts import at_best_rate, at_edge, crossed, diverged, measured_on
from paring.probe.kind import Cell, Kind, Plan, Row, Tables, Verdict
from paring.probe.training import COLUMNS, Room, TrainingSettings

VARIED = ("interval", "axis", "stride", "order", "window")
STATIC, SWEEP = "static-column", "column"


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """What is varied, and how slices are trained (``TrainingSettings``).

    Attributes:
        rank: rows (columns) in a slice.
        vary: of ``VARIED``; ``()``: static and moving columns alone.
        move_steps: optimizer steps between two moves; None: an eighth of all.
        intervals: others that are tried; None: a twentieth, a quarter and half of all steps.

    Raises:
        ValueError: naming the setting, what it is, what was expected.
    """

    factors: ClassVar[tuple[float, ...]] = (0.25, 0.5, 1.0, 2.0)
    rank: int = 5
    vary: tuple[str, ...] = VARIED
    move_steps: int | None = None
    intervals: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        as_tuples(self, "vary", "intervals")
        some_of(self, "vary", VARIED, least=0)
        at_least(self, "rank", 1)
        if self.intervals is not None:
            distinct(self, "intervals", int)
        for name, values in (("move_steps", (self.move_steps,)), ("intervals", self.intervals)):
            if any(value is not None and not 1 <= value < self.steps for value in values or ()):
                refuse(name, getattr(self, name), f"at least 1 and less than steps, {self.steps}: else slices never move")
        if self.steps < 2:
            refuse("steps", self.steps, "at least 2: in one step no slice moves")


def variants(settings: Settings, num_blocks: int) -> dict[str, dict[str, Any]]:
    """Name -> settings of ``SliceConfig``."""
    every = settings.move_steps or max(1, settings.steps // 8)
    sweep = {"modes": ("column",), "move_steps": every}
    found: dict[str, dict[str, Any]] = {STATIC: {"modes": ("column",), "move_steps": None}, SWEEP: sweep}
    if "interval" in settings.vary:
        others = settings.intervals or tuple(max(1, settings.steps // part) for part in (20, 4, 2))
        found |= {f"column-every-{n}": sweep | {"move_steps": n} for n in sorted(set(others) - {every})}
    if "axis" in settings.vary:
        found["static-row"] = {"modes": ("row",), "move_steps": None}
        found |= {"row": sweep | {"modes": ("row",)}, "both": sweep | {"modes": ("row", "column")}}
    if "stride" in settings.vary and settings.rank > 1:
        found["column-half-stride"] = sweep | {"stride": settings.rank // 2}
    if "order" in settings.vary:
        found["column-random"] = sweep | {"order": "random"}
    if "window" in settings.vary and num_blocks > 1:
        found["column-window"] = sweep | {"layer_window": num_blocks // 2}
    return {name: {"rank": settings.rank, **chosen} for name, chosen in found.items()}


@contextmanager
def plan(bench: Bench, settings: Settings) -> Iterator[Plan]:
    room = Room(bench, settings)
    num_blocks = len({matrix.block for matrix in room.matrices.values()})
    named = variants(settings, num_blocks)
    configs = {name: room.config(**chosen) for name, chosen in named.items()}

    def measure(cell: Cell) -> Tables:
        what = cell.what
        trained = room.train(configs[str(what["variant"])], float(what["rate"]), int(what["seed"]))  # type: ignore[arg-type]
        return {"runs": [{"interval": configs[str(what["variant"])].move_steps} | trained.as_row()]}

    cells = [
        Cell({"variant": name, "rate": rate, "seed": seed})
        for seed in settings.seeds
        for name in configs
        for rate in room.rates
    ]
    notes = list(room.notes)
    if "stride" in settings.vary and settings.rank == 1:
        notes.append("no stride is varied: half of a slice of rank 1 is none")
    if "window" in settings.vary and num_blocks < 2:
        notes.append("no window is varied: the sliced layers stand in one block")
    given = room.given | {"rank": settings.rank, "every": named[SWEEP]["move_steps"]}
    yield Plan(cells, measure, given, room.facts | {"num_blocks": num_blocks}, tuple(notes))


def summaries(tables: Tables) -> Tables:
    """``variants``: the rate that did best, mean accuracies, and the distance from static columns with its interval."""
    column = measured_on(tables["runs"])
    found = at_best_rate(tables["runs"], ("variant",))
    scored, chosen = crossed(found, column), crossed(found, "validation")
    rows: list[Row] = []
    for (name,), runs in found.items():
        away = scored.between(name, STATIC)
        there = name != STATIC and math.isfinite(away.half)
        rows.append(
            {"variant": name, "interval": runs[0]["interval"], "rate": runs[0]["rate"], "validation": chosen.means[name]}
            | {column: scored.means[name], "over_static": away.difference}
            | {"low": away.low if there else None, "high": away.high if there else None}
        )
    return {"variants": rows}


def verdict(tables: Tables, settings: Settings) -> Verdict:
    """Holds where the sweep of columns, at the interval that did best on validation rows, is certainly ahead of static columns;
    does not where it is certainly behind (by an interval for all the sweeps it was chosen from). Of several rates the best of
    static columns must lie between others for the one, that of every sweep for the other."""
    column = measured_on(tables["runs"])
    found = at_best_rate(tables["runs"], ("variant",))
    scored, chosen = crossed(found, column), crossed(found, "validation")
    sweeps = [name for name in scored.conditions if name == SWEEP or name.startswith("column-every-")]
    best = max(sweeps, key=lambda name: (chosen.means[name], name == SWEEP))
    gain = scored.between(best, STATIC, among=len(sweeps))
    several = len({row["rate"] for row in tables["runs"]}) > 1
    edges = [name for name in (STATIC, *sweeps) if several and _at_edge(tables, name, found)]
    every = found[(best,)][0]["interval"]
    others = [name for name in scored.conditions if name not in (STATIC, best)]
    listed = ", ".join(f"{name} {100 * (scored.means[name] - scored.means[STATIC]):+.1f}" for name in others)
    numbers: Row = {
        "num_seeds": len(settings.seeds),
        "measured_on": column,
        "static": scored.means[STATIC],
        "moving": scored.means[best],
        "interval": every,
        "gain": gain.difference,
        "gain_half_width": gain.half if math.isfinite(gain.half) else None,
        **{f"{name}_over_static": scored.means[name] - scored.means[STATIC] for name in others},
    }
    said = (
        f"with columns of rank {settings.rank} moving every {every} of {settings.steps} steps (best on validation rows) at "
        f"{100 * scored.means[best]:.1f} %, static ones at {100 * scored.means[STATIC]:.1f} %: {gain.said()}"
        + (f"; over static: {listed}" if listed else "")
        + (f"; the best rate of {' and '.join(edges)} is the highest or lowest tried" if edges else "")
        + f" ({len(settings.seeds)} seeds, {column} rows{diverged(tables['runs'])})"
    )
    ahead, behind = gain.low > 0 and STATIC not in edges, gain.high < 0 and not set(sweeps) & set(edges)
    return Verdict(True if ahead else False if behind else None, said, numbers, gain.difference > 0)


def _at_edge(tables: Tables, variant: str, found: Mapping[tuple[str], Sequence[Row]]) -> bool:
    return at_edge(tables["runs"], {"variant": variant}, found[(variant,)][0]["rate"])


KIND = Kind(
    name="schedule",
    title="Moving against static slices",
    claim="Slices that move beat slices that stay",
    source="SliceFine, moving slices (block-coordinate descent)",
    settings=Settings,
    needs="rows",
    plan=plan,
    columns=COLUMNS
    | {
        "variant": "the schedule: static-AXIS never moves; AXIS sweeps, both in turn; the rest says what differs from column",
        "interval": "optimizer steps between two moves; empty: none",
        "over_static": "accuracy less that of static columns",
        "low": "lower end of its own 95 % interval (the verdict's is for all sweeps); empty: one seed, or static columns",
        "high": "upper end",
    },
    verdict=verdict,
    figure="schedule",
    summaries=summaries,
)
