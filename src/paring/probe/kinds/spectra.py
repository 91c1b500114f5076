"""Spectral balance of every target matrix of a checkpoint, beside two controls; see ``paring.probe.spectra``.

A cell is one matrix, read when it is its turn: a few of the largest matrix are in memory, never a model.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from paring.probe import spectra
from paring.probe.bench import Bench
from paring.probe.checks import as_tuples, at_least, distinct, some_of
from paring.probe.intervals import bootstrap_interval, share_interval
from paring.probe.kind import Cell, Kind, Plan, Row, Tables, Verdict
from paring.probe.matrices import StoredMatrix, stored_matrices
from paring.tune.slices import AXES

CONTROLS = ("gaussian", "permuted")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How spectra are compared.

    Attributes:
        groups: k, disjoint groups of rows (columns), at least 2.
        axes: "row", "column".
        controls: "gaussian", "permuted"; see ``paring.probe.spectra``.
        seeds: of the controls.
        bound: the claim holds of a matrix whose energy ratio is at most this, above 1.

    Raises:
        ValueError: naming the setting, what it is, what was expected.
    """

    groups: int = 8
    axes: tuple[str, ...] = AXES
    controls: tuple[str, ...] = CONTROLS
    seeds: tuple[int, ...] = (0,)
    bound: float = 2.0

    def __post_init__(self) -> None:
        as_tuples(self, "axes", "controls", "seeds")
        at_least(self, "groups", 2)
        some_of(self, "axes", AXES)
        some_of(self, "controls", CONTROLS, least=0)
        distinct(self, "seeds", int)
        if not 1 < self.bound < math.inf:
            raise ValueError(f"bound is {self.bound!r}; expected a ratio above 1")


@contextmanager
def plan(bench: Bench, settings: Settings) -> Iterator[Plan]:
    matrices, notes = stored_matrices(bench.checkpoint, bench.subject)
    for matrix in matrices:
        for axis in settings.axes:
            extent = matrix.out if axis == "row" else matrix.inp
            if settings.groups > extent:
                raise ValueError(
                    f"groups is {settings.groups}; layer '{matrix.layer}' has {extent} {axis}s ([out, in] = [{matrix.out}, "
                    f"{matrix.inp}]); expected at most as many groups: lower --groups, or exclude the layer"
                )
    by_name = {matrix.layer: matrix for matrix in matrices}

    def measure(cell: Cell) -> Tables:
        matrix = by_name[str(cell.what["layer"])]
        return compare(matrix.read(bench.checkpoint), settings)

    cells = [Cell({"layer": m.layer, "out": m.out, "in": m.inp}, _work(m)) for m in matrices]
    given = {"groups": settings.groups, "axes": settings.axes, "controls": settings.controls, "seeds": settings.seeds}
    yield Plan(cells, measure, given, {"num_matrices": len(matrices)}, notes)


def compare(weight: Tensor, settings: Settings) -> Tables:
    """The tables ``matrices``, ``groups`` and ``profiles`` of one matrix ``[out, in]``."""
    tables: Tables = {"matrices": [], "groups": [], "profiles": []}
    permuted = "permuted" in settings.controls
    squares = spectra.spectrum(weight) if permuted else None
    for axis in settings.axes:
        matrix = weight if axis == "row" else weight.t()
        _add(tables, {"axis": axis, "matrix": "trained", "seed": None}, spectra.group_eigenvalues(matrix, settings.groups))
        for seed in settings.seeds:
            if "gaussian" in settings.controls:
                control = spectra.gaussian_like(matrix, seed)
                found = spectra.group_eigenvalues(control, settings.groups)
                _add(tables, {"axis": axis, "matrix": "gaussian", "seed": seed}, found)
            if squares is not None:
                found = spectra.permuted_blocks(squares, matrix.shape[0], settings.groups, seed)
                _add(tables, {"axis": axis, "matrix": "permuted", "seed": seed}, found)
    return tables


def _add(tables: Tables, what: Row, groups: list[Tensor]) -> None:
    tables["matrices"].append(what | spectra.balance(groups))
    for number, values in enumerate(groups):
        tables["groups"].append(
            what
            | {
                "group": number,
                "size": len(values),
                "mean_eigenvalue": float(values.mean()),
                "largest_eigenvalue": float(values[0]),
                "effective_rank": spectra.effective_rank(values),
            }
        )
    tables["profiles"] += [what | row for row in spectra.profiles(groups)]


def _work(matrix: StoredMatrix) -> float:
    """About the multiplications: a Gram matrix of the shorter side and its eigenvalues."""
    short, long = sorted((matrix.out, matrix.inp))
    return float(short * short * (long + 10 * short)) + 1e6


def verdict(tables: Tables, settings: Settings) -> Verdict:
    """Holds where no trained matrix has an energy ratio above the bound; the decay is told beside it."""
    rows = [row for row in tables["matrices"] if row["matrix"] == "trained"]
    ratios = [_number(row["energy_ratio"]) for row in rows]
    within = sum(ratio <= settings.bound for ratio in ratios)
    low, high = share_interval(within, len(ratios))
    finite = [math.log(r) for r in ratios if r < math.inf]
    typical = math.exp(math.fsum(finite) / len(finite)) if finite else math.inf
    ends = [math.exp(end) for end in bootstrap_interval(finite)] if finite else [math.inf, math.inf]
    worst = rows[ratios.index(max(ratios))]
    profile = [_number(row["profile_ratio"]) for row in rows]
    numbers: Row = {
        "num_matrices": len({row["layer"] for row in rows}),
        "num_compared": len(rows),
        "num_within_bound": within,
        "bound": settings.bound,
        "share_low": low,
        "share_high": high,
        "typical_ratio": typical,
        "typical_ratio_low": ends[0],
        "typical_ratio_high": ends[1],
        "worst_ratio": max(ratios),
        "worst_layer": worst["layer"],
        "worst_axis": worst["axis"],
        "median_profile_ratio": sorted(profile)[len(profile) // 2],
    }
    beside = []
    for control in settings.controls:
        found = sorted(_number(r["energy_ratio"]) for r in tables["matrices"] if r["matrix"] == control)
        numbers[f"median_ratio_{control}"] = found[len(found) // 2]
        decays = sorted(_number(r["profile_ratio"]) for r in tables["matrices"] if r["matrix"] == control)
        numbers[f"median_profile_ratio_{control}"] = decays[len(decays) // 2]
        beside.append(f"{_shown(found[len(found) // 2])} and {_shown(decays[len(decays) // 2])} ({control})")
    said = (
        f"in {within} of {len(rows)} cuts into {settings.groups} groups ({numbers['num_matrices']} matrices, "
        f"{' and '.join(settings.axes)}) no group has more than {settings.bound:g} times the mean eigenvalue of another "
        f"({100 * within / len(rows):.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f} %); typical ratio "
        f"{_shown(typical)} ({_shown(ends[0])} to {_shown(ends[1])}), worst {_shown(max(ratios))} ({worst['axis']}s of "
        f"{worst['layer']}); decay: median profile ratio {_shown(sorted(profile)[len(profile) // 2])}"
    )
    if beside:
        said += f"; medians of both, controls: {', '.join(beside)}"
    plain: Row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}
    return Verdict(within == len(rows), said, plain)


def _number(value: object) -> float:
    """A ratio that is no number was infinite: a group without energy."""
    return float(value) if isinstance(value, (int, float)) else math.inf


def _shown(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:.3g}"


KIND = Kind(
    name="spectra",
    title="Spectral balance",
    claim="Groups of rows (columns) of a pretrained matrix have nearly the same mean eigenvalue",
    source="SliceFine, Lemma 2.1",
    settings=Settings,
    needs="checkpoint",
    plan=plan,
    columns={
        "layer": "name of the layer",
        "out": "rows of its matrix",
        "in": "columns of its matrix",
        "axis": "groups of rows or of columns",
        "matrix": "the trained one, or a control: gaussian, permuted (spectrum blocks)",
        "seed": "of the control",
        "num_groups": "groups the matrix is cut into",
        "energy_ratio": "largest / smallest mean eigenvalue of a group; empty: infinite",
        "profile_ratio": "largest ratio between groups of an eigenvalue over the group's mean, among those that hold 90 %",
        "effective_rank_ratio": "largest / smallest effective rank per row of a group",
        "group": "number of the group, from the first rows",
        "size": "rows (columns) in the group",
        "mean_eigenvalue": "of W_g W_g^T: the group's squared norm per row",
        "largest_eigenvalue": "of W_g W_g^T",
        "effective_rank": "exp of the entropy of the eigenvalues' shares",
        "place": "0: the largest eigenvalue, 1: the smallest",
        "least": "eigenvalue / mean eigenvalue, of the group where it is smallest",
        "mean": "eigenvalue / mean eigenvalue, over groups",
        "most": "eigenvalue / mean eigenvalue, of the group where it is largest",
    },
    verdict=verdict,
    figure="spectra",
)
