"""Slices of the most, the least, mixed and any importance, by Wanda's score; see ``paring.probe.importance``.

In every layer the candidates are the positions of a sweep (they do not overlap, but for the last). ``most`` takes the one with
the highest score, ``least`` the lowest, ``mixed`` the highest in half of the layers and the lowest in the others, ``random``
any; halves and random positions are drawn by the seed, as are the calibration rows. A cell is one training: an axis, a
category, a rate, a seed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import comb

import torch

from paring.probe.bench import Bench, calibration
from paring.probe.checks import as_tuples, at_least, refuse, some_of
from paring.probe.contrasts import all_hold, at_best_rate, at_edge, crossed, diverged, measured_on
from paring.probe.importance import input_norms, slice_scores, weight_of
from paring.probe.kind import Cell, Kind, Plan, Row, Tables, Verdict
from paring.probe.training import COLUMNS, Room, TrainingSettings, threads
from paring.tune.schedules import positions
from paring.tune.slices import AXES, Axis

CATEGORIES = ("most", "least", "mixed", "random")
Scored = Mapping[str, tuple[Sequence[int], torch.Tensor]]  # layer -> (positions, their scores)
Choice = dict[str, tuple[int, float]]  # layer -> (start, score over the mean of the layer's candidates)


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """Which slices, and how they are trained (``TrainingSettings``).

    Attributes:
        rank: rows (columns) in a slice.
        axes: "row", "column".
        categories: of ``CATEGORIES``, at least two.
        rows: calibration rows, drawn from the train split, on which inputs are looked at.
        band: difference in accuracy (0.01: one point) up to which two categories count as alike.

    Raises:
        ValueError: naming the setting, what it is, what was expected.
    """

    rank: int = 5
    axes: tuple[Axis, ...] = ("column", "row")
    categories: tuple[str, ...] = CATEGORIES
    rows: int = 256
    band: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        as_tuples(self, "axes", "categories")
        some_of(self, "axes", AXES)
        some_of(self, "categories", CATEGORIES, least=2)
        at_least(self, "rank", 1)
        at_least(self, "rows", 1)
        if not 0 < self.band < 1:
            refuse("band", self.band, "an accuracy, above 0 and below 1")


@contextmanager
def plan(bench: Bench, settings: Settings) -> Iterator[Plan]:
    room = Room(bench, settings)
    sweeps = {axis: room.config(rank=settings.rank, modes=(axis,)) for axis in settings.axes}

    def scores(axis: Axis, seed: int) -> Scored:
        loaded = bench.model(seed)
        layers = bench.select(loaded.model).layers
        batches = calibration(bench.inputs(loaded), settings.rows, settings.batch_size, seed)
        norms = input_norms(loaded.model, layers, batches)
        found: dict[str, tuple[Sequence[int], torch.Tensor]] = {}
        for layer in layers:
            at = positions(sweeps[axis], layer.matrix.extent(axis))
            found[layer.name] = (at, slice_scores(weight_of(layer), norms[layer.name], axis, at, settings.rank))
        return found

    def measure(cell: Cell) -> Tables:
        what = cell.what
        axis, seed = what["axis"], int(what["seed"])  # type: ignore[arg-type]
        with threads(settings.threads):
            found = scores(axis, seed)  # type: ignore[arg-type]
        chosen = choose(str(what["category"]), found, seed)
        starts = {name: start for name, (start, _) in chosen.items()}
        config = room.config(rank=settings.rank, modes=(axis,), starts=starts)
        trained = room.train(config, float(what["rate"]), seed)  # type: ignore[arg-type]
        slices: list[Row] = [{"layer": name, "start": start, "score": score} for name, (start, score) in chosen.items()]
        return {"runs": [trained.as_row()], "slices": slices}

    # Layers that cannot be scored are refused before anything is trained.
    first = bench.model(settings.seeds[0])
    input_norms(first.model, bench.select(first.model).layers, calibration(bench.inputs(first), 1, 1, settings.seeds[0]))
    cells = [
        Cell({"axis": axis, "category": category, "rate": rate, "seed": seed})
        for seed in settings.seeds
        for axis in settings.axes
        for category in settings.categories
        for rate in room.rates
    ]
    yield Plan(cells, measure, room.given | {"rank": settings.rank, "rows": settings.rows}, room.facts, room.notes)


def choose(category: str, scores: Scored, seed: int) -> Choice:
    """A position in every layer."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(scores), generator=generator).tolist()
    highest_in = set(shuffled[: (len(scores) + 1) // 2])
    found: Choice = {}
    for number, (name, (at, values)) in enumerate(scores.items()):
        drawn = int(torch.randint(len(at), (1,), generator=generator))
        highest = category == "most" or (category == "mixed" and number in highest_in)
        place = drawn if category == "random" else int(values.argmax() if highest else values.argmin())
        mean = float(values.mean())
        found[name] = (at[place], float(values[place]) / mean if mean else 1.0)
    return found


def summaries(tables: Tables) -> Tables:
    """``categories``: mean accuracy, and how much of the mean score the slices have."""
    column = measured_on(tables["runs"])
    rows: list[Row] = []
    for (axis, category), runs in at_best_rate(tables["runs"], ("axis", "category")).items():
        scores = [float(r["score"]) for r in tables["slices"] if (r["axis"], r["category"]) == (axis, category)]  # type: ignore[arg-type]
        means: Row = {name: math.fsum(float(r[name]) for r in runs) / len(runs) for name in ("validation", column)}  # type: ignore[arg-type]
        rows.append({"axis": axis, "category": category, "rate": runs[0]["rate"], "score": sum(scores) / len(scores)} | means)
    return {"categories": rows}


def verdict(tables: Tables, settings: Settings) -> Verdict:
    """Holds where every two categories of an axis are alike up to the band, with the interval of their difference (one for all
    pairs at once); does not where two differ by more, with all of it. Of several rates the best must lie between others: of the
    one that is behind for the one, of both for the other. Slices of larger inputs want lower rates."""
    column = measured_on(tables["runs"])
    several = len({row["rate"] for row in tables["runs"]}) > 1
    answers: list[bool | None] = []
    parts: list[str] = []
    largest = 0.0
    numbers: Row = {"num_seeds": len(settings.seeds), "band": settings.band, "measured_on": column}
    for axis in settings.axes:
        found = at_best_rate([row for row in tables["runs"] if row["axis"] == axis], ("category",))
        scored = crossed(found, column)
        pairs = scored.pairs(among=len(settings.axes) * comb(len(scored.conditions), 2))
        (one, other), widest = pairs[0]
        rates = {category: rows[0]["rate"] for (category,), rows in found.items()}
        edges = [c for c, rate in rates.items() if several and at_edge(tables["runs"], {"axis": axis, "category": c}, rate)]
        answers.append(all_hold(_alike(pair, contrast.within(settings.band), edges) for pair, contrast in pairs))
        largest = max(largest, widest.difference)
        listed = ", ".join(f"{category} {100 * scored.means[category]:.1f} %" for category in scored.conditions)
        which = "each" if len(edges) == len(rates) else " and ".join(edges)
        at = f"; of {which} the best rate is the highest or lowest tried" if edges else ""
        parts.append(f"{axis}s: {listed}; {one} over {other} {widest.said()}{at}")
        numbers |= {f"{axis}_{category}": mean for category, mean in scored.means.items()}
        half = widest.half if math.isfinite(widest.half) else None
        numbers |= {f"{axis}_widest": widest.difference, f"{axis}_half_width": half}
    said = f"of slices of rank {settings.rank}, {'; '.join(parts)} ({len(settings.seeds)} seeds, {column} rows; alike: up to "
    said += f"{100 * settings.band:g} point{diverged(tables['runs'])})"
    return Verdict(all_hold(answers), said, numbers, largest <= settings.band)


def _alike(pair: tuple[str, str], within: bool | None, edges: Sequence[str]) -> bool | None:
    """What the interval of a pair (the one ahead, the one behind) says; None where another rate might say otherwise."""
    doubtful = set(pair) & set(edges) if within else {pair[1]} & set(edges)
    return None if doubtful else within


KIND = Kind(
    name="importance",
    title="Importance of the slice",
    claim="Accuracy is nearly the same whether slices hold the most or the least important weights, both or any",
    source="SliceFine, Figure 2 (c), importance robustness",
    settings=Settings,
    needs="rows",
    plan=plan,
    columns=COLUMNS
    | {
        "axis": "slices of rows or of columns",
        "category": "most, least: highest and lowest Wanda score in every layer; mixed: half of the layers each; random: any",
        "layer": "name of the layer",
        "start": "first row (column) of the slice",
        "score": "Wanda score of the slice over the mean of the layer's candidates",
    },
    verdict=verdict,
    figure="importance",
    summaries=summaries,
)
