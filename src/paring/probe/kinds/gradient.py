"""Is any slice a winner? The restricted gradient norm of every slice position in every layer; see ``paring.probe.gradient``.

A cell is a seed: it draws the calibration rows and, where the model brings no head, the new head's weights.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from paring.probe.bench import Bench, calibration
from paring.probe.checks import as_tuples, at_least, distinct, some_of
from paring.probe.gradient import mean_gradients, slice_norms
from paring.probe.intervals import mean_interval
from paring.probe.kind import Cell, Kind, Plan, Row, Tables, Verdict
from paring.tune.config import SliceConfig
from paring.tune.schedules import check, positions
from paring.tune.slices import AXES, Axis

FAINT = 0.01  # of an even share of its layer's gradient: a winner by name alone


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which slices, and on what.

    Attributes:
        rank: rows (columns) in a slice, at least 1.
        axes: "row", "column".
        rows: calibration rows drawn for a seed.
        batch_size: rows in a backward.
        seeds: of the rows and of a new head.

    Raises:
        ValueError: naming the setting, what it is, what was expected.
    """

    rank: int = 5
    axes: tuple[Axis, ...] = AXES
    rows: int = 256
    batch_size: int = 32
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        as_tuples(self, "axes", "seeds")
        for name in ("rank", "rows", "batch_size"):
            at_least(self, name, 1)
        some_of(self, "axes", AXES)
        distinct(self, "seeds", int)


@contextmanager
def plan(bench: Bench, settings: Settings) -> Iterator[Plan]:
    config = SliceConfig(
        rank=settings.rank,
        modes=("row",),
        move_steps=None,
        targets=bench.subject.targets,
        exclude=bench.subject.exclude,
    )
    selection = bench.select(bench.model(settings.seeds[0]).model, config)
    for axis in settings.axes:
        check(SliceConfig(rank=settings.rank, modes=(axis,), move_steps=None), {x.name: x.matrix for x in selection.layers})

    def measure(cell: Cell) -> Tables:
        seed = int(cell.what["seed"])  # type: ignore[arg-type]
        loaded = bench.model(seed)
        layers = bench.select(loaded.model, config).layers
        batches = calibration(bench.inputs(loaded), settings.rows, settings.batch_size, seed)
        gradients, loss = mean_gradients(loaded.model, layers, batches)
        tables: Tables = {"layers": [], "slices": []}
        for layer in layers:
            for axis in settings.axes:
                at = positions(config, layer.matrix.extent(axis))
                rows = slices_of(gradients[layer.name], axis, at, settings.rank)
                what: Row = {"layer": layer.name, "axis": axis}
                tables["slices"] += [what | row for row in rows]
                more: Row = {"block": layer.matrix.block, "loss": loss}
                tables["layers"].append(what | more | _distribution(gradients[layer.name], rows))
        return tables

    given = {"rank": settings.rank, "axes": settings.axes, "rows": settings.rows, "batch_size": settings.batch_size}
    facts = {"num_layers": len(selection.layers), "num_rows": min(settings.rows, len(bench.data.train))}
    yield Plan([Cell({"seed": seed}) for seed in settings.seeds], measure, given, facts, selection.notes)


def slices_of(gradient: Tensor, axis: Axis, at: tuple[int, ...], rank: int) -> list[Row]:
    """A row for every position: ``position``, ``norm``, ``relative_norm`` (None where the layer's gradient is zero)."""
    norms = slice_norms(gradient, axis, at, rank).tolist()
    extent = gradient.shape[1 if axis == "row" else 2]
    even = float(gradient.double().norm()) * math.sqrt(rank / extent)
    return [
        {"position": position, "norm": _short(norm), "relative_norm": _short(norm / even) if even else None}
        for position, norm in zip(at, norms, strict=True)
    ]


def _short(number: float) -> float:
    """Six digits: there are many of them."""
    return float(f"{number:.6g}")


def _distribution(gradient: Tensor, rows: list[Row]) -> Row:
    norms = sorted(float(row["norm"]) for row in rows)  # type: ignore[arg-type]
    return {
        "gradient_norm": float(gradient.double().norm()),
        "zero_entries": float((gradient == 0).double().mean()),
        "num_slices": len(norms),
        "num_zero": sum(norm == 0 for norm in norms),
        "least": norms[0],
        "median": norms[len(norms) // 2],
        "most": norms[-1],
    }


def verdict(tables: Tables, settings: Settings) -> Verdict:
    """Holds where no slice, of any seed, has a zero gradient."""
    rows = tables["slices"]
    zero = [row for row in rows if not row["norm"]]
    of_seed = [[r for r in rows if r["seed"] == seed] for seed in settings.seeds]
    # Every position is measured: what is drawn are the rows and the head, and an interval is of those.
    zero_share, zero_half = mean_interval([sum(not r["norm"] for r in found) / len(found) for found in of_seed])
    relative = [0.0 if row["relative_norm"] is None else float(row["relative_norm"]) for row in rows]
    faint = sum(value < FAINT for value in relative)
    mean, half = mean_interval([sum(float(r["relative_norm"] or 0) for r in found) / len(found) for found in of_seed])
    order = sorted(relative)
    least = rows[relative.index(order[0])]
    num_positions = len(rows) // len(settings.seeds)
    numbers: Row = {
        "num_slices": len(rows),
        "num_positions": num_positions,
        "num_seeds": len(settings.seeds),
        "num_zero": len(zero),
        "share_zero": zero_share,
        "share_zero_half_width": zero_half if math.isfinite(zero_half) else None,
        "num_faint": faint,
        "mean_relative_norm": mean,
        "mean_relative_norm_half_width": half if math.isfinite(half) else None,
        "least_relative_norm": order[0],
        "median_relative_norm": order[len(order) // 2],
        "most_relative_norm": order[-1],
        "least_layer": least["layer"],
    }
    spread = f"± {100 * zero_half:.2f} % over seeds" if math.isfinite(zero_half) else "%, one seed: no interval"
    said = (
        f"for {len(rows) - len(zero)} of {len(rows)} slices ({num_positions} positions x {len(settings.seeds)} seeds, rank "
        f"{settings.rank}): the gradient is zero for {100 * zero_share:.2f} {spread}; beside an even share of its layer's "
        f"gradient the faintest slice has {order[0]:.3g} ({least['axis']} {least['position']} of {least['layer']}), the "
        f"middle one {order[len(order) // 2]:.2f}, the strongest {order[-1]:.3g}; {faint} have less than {FAINT:g}"
    )
    return Verdict(not zero, said, numbers)


KIND = Kind(
    name="gradient",
    title="Restricted gradients",
    claim="Every slice of a pretrained network is a local winner: the loss has a gradient on it",
    source="SliceFine, definition of a local winner",
    settings=Settings,
    needs="rows",
    plan=plan,
    columns={
        "seed": "of the calibration rows and of a new head",
        "layer": "name of the layer",
        "block": "block of the network it stands in, from the input",
        "axis": "slices of rows or of columns",
        "loss": "mean over the calibration rows",
        "gradient_norm": "of the gradient of the whole matrix",
        "zero_entries": "share of its entries that are exactly zero",
        "num_slices": "slice positions",
        "num_zero": "slices whose gradient is exactly zero",
        "least": "norm of the gradient on the slice that has least",
        "median": "norm of the gradient, median over slices",
        "most": "norm of the gradient on the slice that has most",
        "position": "first row (column) of the slice",
        "norm": "of the gradient on the slice's entries",
        "relative_norm": "norm over that of an even share of the matrix's gradient; empty: the whole gradient is zero",
    },
    verdict=verdict,
    figure="gradient",
)
