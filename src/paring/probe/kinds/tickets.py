"""Slices that hold most, and least, of a lottery ticket's mask; see ``paring.probe.tickets``.

A ticket is made once for a source and a seed: ``rounds`` times the whole model is trained and its target matrices are pruned,
and the pruned network is trained once more, to see what the ticket itself is worth. Then static slices of the pretrained model
are trained where they hold most of the mask in every layer, and where they hold least. A cell is the ticket, or one training;
after a kill the ticket is made again for the trainings that are missing.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from paring.probe.bench import Bench
from paring.probe.checks import as_tuples, at_least, refuse, some_of
from paring.probe.contrasts import all_hold, at_best_rate, crossed, diverged, mean_of, measured_on
from paring.probe.kind import Cell, Kind, Plan, Row, Tables, Verdict
from paring.probe.layers import as_matrices
from paring.probe.tickets import SOURCES, apply_masks, kept_largest, overlaps
from paring.probe.training import COLUMNS, Room, TrainingSettings, threads
from paring.tune.schedules import positions
from paring.tune.slices import AXES, Axis

CHOICES = ("most", "least")
_WHOLE = 0.05  # of the slices' rate: what all weights at once take


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """Which tickets and slices, and how they are trained (``TrainingSettings``).

    Attributes:
        rank: rows (columns) in a slice.
        axes: "row", "column".
        sources: "finetuned", "rewound".
        rounds: of training and pruning.
        keep: share of every matrix that is left after all rounds, in (0, 1).
        whole_rate: highest learning rate of the trainings of all weights; None: a twentieth of the slices' least.
        band: difference in accuracy (0.01: one point) up to which the two count as alike.

    Raises:
        ValueError: naming the setting, what it is, what was expected.
    """

    rank: int = 5
    axes: tuple[Axis, ...] = ("column", "row")
    sources: tuple[str, ...] = SOURCES
    rounds: int = 3
    keep: float = 0.2
    whole_rate: float | None = None
    band: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        as_tuples(self, "axes", "sources")
        some_of(self, "axes", AXES)
        some_of(self, "sources", SOURCES)
        at_least(self, "rank", 1)
        at_least(self, "rounds", 1)
        for name in ("keep", "band"):
            if not 0 < getattr(self, name) < 1:
                refuse(name, getattr(self, name), "a share, above 0 and below 1")
        if self.whole_rate is not None and not 0 < self.whole_rate < math.inf:
            refuse("whole_rate", self.whole_rate, "a learning rate above 0")


@dataclass(frozen=True)
class Ticket:
    """Masks ``[n, out, in]`` by layer, and a row for every round."""

    masks: dict[str, Tensor]
    rows: list[Row]


@contextmanager
def plan(bench: Bench, settings: Settings) -> Iterator[Plan]:
    room = Room(bench, settings)
    sweeps = {axis: room.config(rank=settings.rank, modes=(axis,)) for axis in settings.axes}
    whole_rate = settings.whole_rate or _WHOLE * min(room.rates)
    made: dict[tuple[str, int], Ticket] = {}  # the last one alone: masks are as many as weights

    def ticket(source: str, seed: int) -> Ticket:
        if (source, seed) not in made:
            made.clear()
            made[source, seed] = make_ticket(room, settings, source, whole_rate, seed)
        return made[source, seed]

    def measure(cell: Cell) -> Tables:
        what = cell.what
        source, seed = str(what["source"]), int(what["seed"])  # type: ignore[arg-type]
        found = ticket(source, seed)
        if "choice" not in what:
            return {"tickets": found.rows}
        axis: Axis = what["axis"]  # type: ignore[assignment]
        slices: list[Row] = []
        for name, mask in found.masks.items():
            at = positions(sweeps[axis], room.matrices[name].extent(axis))
            held = overlaps(mask, axis, at, settings.rank)
            place = int(held.argmax() if what["choice"] == "most" else held.argmin())
            slices.append(
                {"layer": name, "start": at[place], "overlap": float(held[place]), "mean_overlap": float(held.mean())}
            )
        starts = {str(row["layer"]): row["start"] for row in slices}
        config = room.config(rank=settings.rank, modes=(axis,), starts=starts)
        trained = room.train(config, float(what["rate"]), seed)  # type: ignore[arg-type]
        return {"runs": [trained.as_row()], "slices": slices}

    cells: list[Cell] = []
    for seed in settings.seeds:
        for source in settings.sources:
            cells.append(Cell({"source": source, "seed": seed}, weight=2.0 * (settings.rounds + 1)))
            cells += [
                Cell({"source": source, "axis": axis, "choice": choice, "rate": rate, "seed": seed})
                for axis in settings.axes
                for choice in CHOICES
                for rate in room.rates
            ]
    given = room.given | {name: getattr(settings, name) for name in ("rank", "rounds", "keep")} | {"whole_rate": whole_rate}
    yield Plan(cells, measure, given, room.facts | {"whole_rate": whole_rate}, room.notes)


def make_ticket(room: Room, settings: Settings, source: str, rate: float, seed: int) -> Ticket:
    """Iterative magnitude pruning of a fresh model, all of whose weights are trained."""
    with threads(settings.threads), torch.random.fork_rng():
        # In bf16 most steps of whole weights round to nothing, and the mask would be that of the pretrained ones.
        model = room.bench.model(seed).model.float()
        model.requires_grad_(True)
        layers = {layer.name: layer for layer in room.bench.select(model).layers}
        weights: dict[str, Tensor] = {name: layer.module.weight for name, layer in layers.items()}
        begun = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
        rows: list[Row] = []
        parameters = list(model.parameters())
        for number in range(settings.rounds + 1):
            fitted = room.fit(model, parameters, rate, seed + number, partial(apply_masks, weights, masks))
            trained = room.scored(model, fitted, sum(p.numel() for p in parameters))
            if trained.diverged:
                raise ValueError(
                    f"whole_rate is {rate:g}; the loss of training all weights was not finite (round {number}, seed {seed}); "
                    "expected a lower rate: --whole-rate"
                )
            kept = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
            row: Row = {"round": number, "kept": kept}
            rows.append(row | trained.as_row())
            if number == settings.rounds:
                break
            share = settings.keep ** (1 / settings.rounds)
            masks = {name: kept_largest(weight, masks[name], share) for name, weight in weights.items()}
            if source == "rewound":
                model.load_state_dict(begun)
            apply_masks(weights, masks)
        return Ticket({name: as_matrices(layers[name], mask).cpu() for name, mask in masks.items()}, rows)


def summaries(tables: Tables) -> Tables:
    """``choices``: mean accuracy of the slices that hold most and least, and how much of the mask they hold."""
    column = measured_on(tables["runs"])
    rows: list[Row] = []
    for what, runs in at_best_rate(tables["runs"], ("source", "axis", "choice")).items():
        slices = [row for row in tables["slices"] if (row["source"], row["axis"], row["choice"]) == what]
        means: Row = {name: mean_of(runs, name) for name in ("validation", column)}
        held: Row = {name: mean_of(slices, name) for name in ("overlap", "mean_overlap")}
        rows.append(dict(zip(("source", "axis", "choice"), what, strict=True)) | {"rate": runs[0]["rate"]} | means | held)
    return {"choices": rows}


def verdict(tables: Tables, settings: Settings) -> Verdict:
    """Holds where slices that hold least of the mask are not behind those that hold most by more than the band, for every
    source and axis and with the whole interval (one for all at once); does not where one is, with all of it."""
    column = measured_on(tables["runs"])
    scored = crossed(at_best_rate(tables["runs"], ("source", "axis", "choice")), column)
    shares = {(row["source"], row["axis"], row["choice"]): row["overlap"] for row in summaries(tables)["choices"]}
    pairs = [(source, axis) for source in settings.sources for axis in settings.axes]
    answers: list[bool | None] = []
    parts: list[str] = []
    measured = True
    numbers: Row = {"num_seeds": len(settings.seeds), "band": settings.band, "keep": settings.keep, "measured_on": column}
    for source, axis in pairs:
        away = scored.between((source, axis, "least"), (source, axis, "most"), among=len(pairs))
        answers.append(away.at_least(-settings.band))
        measured &= away.difference >= -settings.band
        most, least = (shares[source, axis, choice] for choice in CHOICES)
        parts.append(
            f"{source}, {axis}s: {away.said()}, with {100 * float(least or 0):.0f} % of their entries in the mask against "
            f"{100 * float(most or 0):.0f} %"
        )
        numbers |= {f"{source}_{axis}_difference": away.difference}
        numbers |= {f"{source}_{axis}_half_width": away.half if math.isfinite(away.half) else None}
        for choice in CHOICES:
            numbers[f"{source}_{axis}_{choice}"] = scored.means[source, axis, choice]
    last = [row for row in tables["tickets"] if row["round"] == settings.rounds]
    first = [row for row in tables["tickets"] if row["round"] == 0]
    for source in settings.sources:
        whole, ticket = (mean_of([r for r in rows if r["source"] == source], column) for rows in (first, last))
        numbers |= {f"{source}_whole": whole, f"{source}_ticket": ticket}
        parts.append(
            f"the {source} ticket itself, {100 * settings.keep:g} % of the weights: {100 * ticket:.1f} %, "
            f"whole {100 * whole:.1f} %"
        )
    said = (
        f"with slices of rank {settings.rank} that hold least of a ticket's mask, less those that hold most: "
        f"{'; '.join(parts)} ({len(settings.seeds)} seeds, {column} rows; comparable: up to {100 * settings.band:g} point "
        f"behind{diverged(tables['runs'])})"
    )
    return Verdict(all_hold(answers), said, numbers, measured)


KIND = Kind(
    name="tickets",
    title="Slices of lottery tickets",
    claim="Slices chosen by a bad subnetwork do as well as slices chosen by a lottery ticket",
    source="SliceFine, Figure 2 (d), good and bad slices",
    settings=Settings,
    needs="rows",
    plan=plan,
    columns=COLUMNS
    | {
        "source": "rewound: each round of pruning begins at the pretrained weights; finetuned: goes on from the trained ones",
        "axis": "slices of rows or of columns",
        "choice": "most, least: the slice of every layer that holds most and least of the mask",
        "round": "rounds of pruning so far",
        "kept": "share of the target matrices' entries that are left",
        "layer": "name of the layer",
        "start": "first row (column) of the slice",
        "overlap": "share of the slice's entries in the mask",
        "mean_overlap": "that of all slices of the layer, mean",
    },
    verdict=verdict,
    figure="tickets",
    summaries=summaries,
)
