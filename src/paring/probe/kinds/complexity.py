"""SliceFine's Table 1, counted: what each method trains, adds and holds in one step; see ``paring.probe.complexity``.

A cell is a method (and a seed, which draws the batch): a fresh model, made ready, one step.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version

import torch

from paring.memory import out_of_memory
from paring.probe.bench import Bench, calibration
from paring.probe.checks import as_tuples, at_least, distinct
from paring.probe.complexity import COUNTED, PRINTED, Cost, num_entries, step_cost
from paring.probe.kind import Cell, Kind, Plan, Row, Tables, Value, Verdict
from paring.probe.methods import FULL, OURS, Tuning, peft_methods, prepare
from paring.tune.slices import AXES
from paring.tune.targets import Layer

_LINEAR = ("linear", "Conv1D")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is compared.

    Attributes:
        methods: of ``OURS``, "full" and PEFT's (their names in its registry, lower case); None: all.
        rank: of slices and adapters; number of virtual tokens.
        batch_size: rows in the step.
        seeds: of the batch.

    Raises:
        ValueError: naming the setting, what it is, what was expected.
    """

    methods: tuple[str, ...] | None = None
    rank: int = 8
    batch_size: int = 16
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        as_tuples(self, "methods", "seeds")
        for name in ("rank", "batch_size"):
            at_least(self, name, 1)
        distinct(self, "seeds", int)
        if self.methods is not None and (not self.methods or len(set(self.methods)) < len(self.methods)):
            raise ValueError(f"methods is {self.methods!r}; expected at least one, every one once")


@contextmanager
def plan(bench: Bench, settings: Settings) -> Iterator[Plan]:
    known = (*OURS, FULL, *peft_methods())
    methods = settings.methods or known
    for method in methods:
        if method not in known:
            hint = "" if peft_methods() else "; PEFT's need its package: pip install 'paring[peers]'"
            raise ValueError(f"methods: there is no {method!r}; there are {', '.join(known)}{hint}")
    model = bench.model(settings.seeds[0]).model
    layers, notes = _layers(bench, model)
    least = min((min(layer.matrix.out, layer.matrix.inp), layer.name) for layer in layers)
    if settings.rank > least[0]:
        raise ValueError(
            f"rank is {settings.rank}; layer '{least[1]}' has {least[0]} rows or columns; expected at most as many"
        )
    if not peft_methods():
        notes += ("PEFT's methods are left out: its package is not installed (pip install 'paring[peers]')",)
    task = bench.subject.tuning().task

    def measure(cell: Cell) -> Tables:
        method, seed = str(cell.what["method"]), int(cell.what["seed"])  # type: ignore[arg-type]
        loaded = bench.model(seed)
        inputs = bench.inputs(loaded)
        batch = next(calibration(inputs, settings.batch_size, settings.batch_size, seed))
        chosen, _ = _layers(bench, loaded.model)
        before = num_entries(loaded.model)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, about what does not matter for one step
            torch.manual_seed(seed)
            tuning: Tuning | None = None
            try:
                tuning = prepare(method, loaded.model.train(), chosen, task, settings.rank)
                cost = step_cost(tuning, batch, before)
            except Exception as error:
                if method in (*OURS, FULL) or out_of_memory(error):
                    raise
                # What PEFT's methods raise where they do not fit a model is of many types; said in the table.
                return {"methods": [_refused(error)]}
            finally:
                if tuning:
                    tuning.close()
        row: Row = {**asdict(cost), "total_bytes": cost.total_bytes, "refused": None}
        return {"methods": [row], "counts": _counts(method, tuning, chosen, settings.rank, cost)}

    cells = [Cell({"method": method, "seed": seed}) for seed in settings.seeds for method in methods]
    given = {"rank": settings.rank, "batch_size": settings.batch_size, "peft": version("peft") if peft_methods() else None}
    facts = {
        "num_layers": len(layers),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "parameter_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
    }
    yield Plan(cells, measure, given, facts, notes)


def _layers(bench: Bench, model: torch.nn.Module) -> tuple[list[Layer], tuple[str, ...]]:
    """The linear layers that all methods tune: PEFT's do not know the other kinds."""
    selected = bench.select(model).layers
    layers = [layer for layer in selected if layer.kind.name in _LINEAR]
    if not layers:
        raise ValueError(f"no linear layer is left in {type(model).__name__}, and PEFT's methods know no other kind")
    others = [layer.name for layer in selected if layer not in layers]
    return layers, (f"left out, since not all methods know them: {', '.join(others)}",) if others else ()


def _refused(error: Exception) -> Row:
    lines = str(error).strip().splitlines()
    return {"refused": f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]}


def _counts(method: str, tuning: Tuning, layers: list[Layer], rank: int, cost: Cost) -> list[Row]:
    """Entries trained in every layer, beside what Table 1 prints and what is right; of the methods that it has by layer."""
    if method not in PRINTED:
        return []
    rows: list[Row] = []
    for layer in layers:
        out, inp = layer.matrix.out, layer.matrix.inp
        rows.append(
            {
                "layer": layer.name,
                "out": out,
                "in": inp,
                "trained": sum(p.numel() for p in tuning.by_layer[layer.name]),
                "printed_formula": PRINTED[method][0],
                "printed": PRINTED[method][1](out, inp, rank),
                "counted_formula": COUNTED[method][0],
                "counted": COUNTED[method][1](out, inp, rank),
            }
        )
    return rows


def summaries(tables: Tables) -> Tables:
    """``formulas``: for each method of Table 1 in how many layers the printed count, and ours, is what was found."""
    found: dict[tuple[Value, ...], list[Row]] = {}
    for row in tables.get("counts", []):
        found.setdefault((row["method"], row["printed_formula"], row["counted_formula"]), []).append(row)
    formulas: list[Row] = [
        {
            "method": method,
            "printed_formula": printed,
            "num_printed_right": sum(row["trained"] == row["printed"] for row in rows),
            "counted_formula": counted,
            "num_counted_right": sum(row["trained"] == row["counted"] for row in rows),
            "num_layers": len(rows),
        }
        for (method, printed, counted), rows in found.items()
    ]
    return {"formulas": formulas} if formulas else {}


def verdict(tables: Tables, settings: Settings) -> Verdict:
    """Holds where slices train what they should in every layer, and add nothing."""
    rows = [row for row in tables["methods"] if row["refused"] is None]
    counts = [row for row in tables.get("counts", []) if row["method"] in AXES]
    ours = [row for row in rows if row["method"] in OURS]
    refused = {row["method"] for row in tables["methods"] if row["refused"] is not None}
    right = sum(row["trained"] == row["counted"] for row in counts)
    printed = sum(row["trained"] == row["printed"] for row in counts)
    numbers: Row = {
        "num_methods": len({row["method"] for row in rows}),
        "num_refused": len(refused),
        "num_counts": len(counts),
        "num_right": right,
        "num_printed_right": printed,
        "added_by_slices": max((int(str(row["num_added"])) for row in ours), default=None),
    }
    for name in ("num_trainable", "activation_bytes", "total_bytes"):
        for method in (*OURS, "lora", FULL):
            values = [row[name] for row in rows if row["method"] == method]
            numbers[f"{method}_{name}"] = values[0] if values else None
    if not counts:
        said = f"neither row nor column slices are among the {len(rows)} methods measured, so nothing was counted of them"
        return Verdict(None, said, numbers)
    said = (
        f"in {right} of {len(counts)} counts (row and column slices of rank {settings.rank} in every layer), with "
        f"{numbers['added_by_slices']} entries added; with the two swapped, as the project page prints them, {printed} are "
        f"right, those of square layers{_bytes(numbers)}; {numbers['num_methods']} methods measured, {len(refused)} refuse "
        "this model (counted exactly, so without an interval)"
    )
    return Verdict(right == len(counts) and numbers["added_by_slices"] == 0, said, numbers)


def _bytes(numbers: Row) -> str:
    beside = []
    for name, title in (("activation_bytes", "kept for backward"), ("total_bytes", "with gradients and optimizer state")):
        of = {m: numbers[f"{m}_{name}"] for m in ("column", "row", "lora")}
        there = [f"{m} {float(str(v)) / 1e6:.1f} MB" for m, v in of.items() if v is not None]
        beside.append(f"{title}: {', '.join(there)}")
    return "; " + "; ".join(beside)


KIND = Kind(
    name="complexity",
    title="Complexity",
    claim="A row slice trains r x in entries of a layer, a column slice r x out, and neither adds a parameter",
    source="SliceFine, project page, Table 1, with the counts of rows and columns put right",
    settings=Settings,
    needs="rows",
    plan=plan,
    columns={
        "method": "row, column: slices; recommended: SliceConfig.recommended; full: all target layers; else PEFT's, by name",
        "seed": "of the batch",
        "num_trainable": "entries trained in a step, without a head",
        "num_added": "entries of the state dict beyond the pretrained model's",
        "trained_bytes": "of the parameters that the optimizer gets; of slices their working copies",
        "gradient_bytes": "of their gradients",
        "optimizer_bytes": "of AdamW's state",
        "activation_bytes": "kept for backward, without parameters and batch",
        "total_bytes": "the sum of the four",
        "loss": "of the step",
        "refused": "why the method cannot tune this model; empty: it can",
        "layer": "name of the layer",
        "out": "rows of its matrix",
        "in": "columns of its matrix",
        "trained": "entries trained in it",
        "printed_formula": "entries trained, as Table 1 of the project page prints it",
        "printed": "its value, d being the layer's rows",
        "counted_formula": "entries trained, put right",
        "counted": "its value",
        "num_printed_right": "layers in which the printed formula gives what is trained",
        "num_counted_right": "layers in which the formula put right does",
        "num_layers": "layers counted",
    },
    verdict=verdict,
    figure="complexity",
    summaries=summaries,
)
