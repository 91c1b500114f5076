"""Task energy of the features after every block, pretrained beside untrained; see ``paring.probe.energy``.

A cell is a model (pretrained, untrained) and a seed, which draws the calibration rows and the untrained weights.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from paring.probe.bench import Bench, batches_of
from paring.probe.checks import as_tuples, at_least, distinct
from paring.probe.energy import TAUS, Energy, balanced_rows, pooled_features, smallest_k, task_energy
from paring.probe.intervals import LEVEL, mean_interval
from paring.probe.kind import Cell, Kind, Plan, Row, Tables, Value, Verdict

MODELS = ("pretrained", "untrained")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """On what, and what counts as few.

    Attributes:
        rows: calibration rows, about equally many of each class.
        batch_size: rows in a forward.
        seeds: of the rows and of the untrained weights; at least two for an interval.
        bound: of the width; the class means are compact if 90 % of them lie in at most so many directions.

    Raises:
        ValueError: naming the setting, what it is, what was expected.
    """

    rows: int = 512
    batch_size: int = 32
    seeds: tuple[int, ...] = (0, 1, 2)
    bound: float = 0.1

    def __post_init__(self) -> None:
        as_tuples(self, "seeds")
        for name in ("rows", "batch_size"):
            at_least(self, name, 1)
        distinct(self, "seeds", int)
        if not 0 < self.bound <= 1:
            raise ValueError(f"bound is {self.bound!r}; expected a share of the width, above 0 and at most 1")


@contextmanager
def plan(bench: Bench, settings: Settings) -> Iterator[Plan]:
    if bench.subject.task == "causal-lm":
        raise ValueError(
            "task is 'causal-lm', whose rows have no classes; expected text-classification or image-classification"
        )
    labels, names = list(bench.data.train["label"]), bench.data.labels
    drawn = {seed: balanced_rows(labels, settings.rows, names, seed) for seed in settings.seeds}

    def measure(cell: Cell) -> Tables:
        seed = int(cell.what["seed"])  # type: ignore[arg-type]
        loaded = bench.model(seed, random=cell.what["model"] == "untrained")
        inputs = bench.inputs(loaded)
        features = pooled_features(loaded.model, batches_of(inputs, drawn[seed], settings.batch_size))
        of_row = torch.tensor([labels[row] for row in drawn[seed]])
        tables: Tables = {"layers": [], "curves": []}
        for layer, found in enumerate(features):
            held = task_energy(found, of_row)
            tables["layers"].append({"layer": layer, "width": found.shape[1], "rows": len(found)} | _summary(held))
            tables["curves"] += [{"layer": layer} | row for row in _curve(held, found.shape[1])]
        return tables

    cells = [Cell({"model": model, "seed": seed}) for seed in settings.seeds for model in MODELS]
    facts = {"num_classes": len(names), "num_rows": len(drawn[settings.seeds[0]])}
    yield Plan(cells, measure, {"rows": settings.rows, "batch_size": settings.batch_size}, facts)


def _summary(held: Energy) -> Row:
    found: Row = {"class_share": held.class_share, "adjusted": held.adjusted}
    for name, shares in (("energy", held.energy), ("class_mean", held.class_mean)):
        found |= {f"{name}_k{round(100 * tau)}": smallest_k(shares, tau) for tau in TAUS}
    return found


def _curve(held: Energy, width: int) -> list[Row]:
    """Both cumulative shares at every k up to 8, then at powers of 2 and halfway, and at the last."""
    last = min(width, len(held.energy)) if held.energy is not None else 0
    ks = sorted(
        {k for k in (*range(1, 9), *(2**i for i in range(4, 16)), *(3 * 2**i for i in range(2, 15)), last) if k <= last}
    )
    return [{"k": k, "energy": _at(held.energy, k), "class_mean": _at(held.class_mean, k)} for k in ks]


def _at(shares: Tensor | None, k: int) -> float | None:
    return None if shares is None else float(shares[k - 1])


def verdict(tables: Tables, settings: Settings) -> Verdict:
    """Holds where the class means lie in few directions after every block (with an interval for all blocks at once), and the
    last one's features vary more by class than untrained ones do. Few rows span few directions, whatever they hold: then it is
    undecided."""
    rows = tables["layers"]
    last = max(int(_number(row["layer"])) for row in rows)
    at_last = {(r["model"], r["seed"]): r for r in rows if r["layer"] == last}
    gains = [
        _number(trained) - _number(untrained)
        for seed in settings.seeds
        if (trained := at_last["pretrained", seed]["adjusted"]) is not None
        and (untrained := at_last["untrained", seed]["adjusted"]) is not None
    ]
    blocks = [r for r in rows if r["model"] == "pretrained" and r["layer"] and r["class_mean_k90"] is not None]
    if not gains or not blocks:
        return Verdict(None, "the features do not vary, so that no direction can be told from another", {"num_seeds": 0})
    gain, half = mean_interval(gains)
    shares: dict[int, list[float]] = {}  # by block, of every seed
    for r in blocks:
        shares.setdefault(int(_number(r["layer"])), []).append(_number(r["class_mean_k90"]) / _number(r["width"]))
    compact = {layer: mean_interval(of, 1 - (1 - LEVEL) / len(shares)) for layer, of in shares.items()}
    where = max(compact, key=lambda layer: compact[layer][0])
    worst, spread = compact[where]
    mean = {
        (model, name): _mean([r[name] for (of, _), r in at_last.items() if of == model])
        for model in MODELS
        for name in ("adjusted", "class_mean_k90", "energy_k90")
    }
    width = _number(blocks[-1]["width"])
    numbers: Row = {
        "num_blocks": last,
        "num_seeds": len(gains),
        "gain": gain,
        "gain_half_width": half if math.isfinite(half) else None,
        **{f"last_{name}_{model}": value for (model, name), value in mean.items()},
        "width": width,
        "median_k90_share": sorted(of for of, _ in compact.values())[len(compact) // 2],
        "worst_k90_share": worst,
        "worst_k90_share_half_width": spread if math.isfinite(spread) else None,
        "worst_layer": where,
        "bound": settings.bound,
    }
    interval = f"95 % interval {gain - half:+.3f} to {gain + half:+.3f}" if math.isfinite(half) else "one seed: no interval"
    plus_minus = f" ± {100 * spread:.1f}" if math.isfinite(spread) else ""
    said = (
        f"with 90 % of the class means in {mean['pretrained', 'class_mean_k90']:.1f} of {width:g} directions after the last "
        f"block (untrained {mean['untrained', 'class_mean_k90']:.1f}; of the variance {mean['pretrained', 'energy_k90']:.1f}), "
        f"at most in {100 * worst:.1f}{plus_minus} % of the width (layer {where}; asked for: {100 * settings.bound:g} %); "
        f"and with {mean['pretrained', 'adjusted']:.3f} of the variance between classes, untrained "
        f"{mean['untrained', 'adjusted']:.3f}: "
        f"{gain:+.3f} ({interval}, {len(gains)} seeds)"
    )
    spanned = min(_number(r["rows"]) - 1 for r in blocks)  # features less their mean
    if spanned <= settings.bound * width:
        said += (
            f"; but {spanned + 1:g} rows span no more than {spanned:g} directions, and the asked for are "
            f"{settings.bound * width:g}: more rows are needed (--rows)"
        )
        return Verdict(None, said, numbers)
    if gain + half < 0 or any(share - of > settings.bound for share, of in compact.values()):
        return Verdict(False, said, numbers)
    sure = gain - half > 0 and all(share + of <= settings.bound for share, of in compact.values())
    return Verdict(True if sure else None, said, numbers, gain > 0 and worst <= settings.bound)


def _number(value: Value) -> float:
    assert isinstance(value, (int, float))
    return float(value)


def _mean(values: list[Value]) -> float:
    there = [float(v) for v in values if isinstance(v, (int, float))]
    return math.fsum(there) / len(there) if there else math.nan


KIND = Kind(
    name="energy",
    title="Task energy",
    claim="A pretrained network's features already hold the task's directions, in a small leading subspace",
    source="SliceFine, high task energy",
    settings=Settings,
    needs="rows",
    plan=plan,
    columns={
        "model": "pretrained, or untrained: the same architecture with random weights",
        "seed": "of the calibration rows, and of the untrained weights",
        "layer": "0: after the embeddings; then after each block",
        "width": "entries of a feature",
        "rows": "calibration rows",
        "class_share": "share of the features' variance that is between classes; empty: they do not vary",
        "adjusted": "class_share without what random labels would reach",
        **{f"energy_k{round(100 * t)}": f"principal directions that hold {t:g} of the variance" for t in TAUS},
        **{f"class_mean_k{round(100 * t)}": f"principal directions that hold {t:g} of the class means" for t in TAUS},
        "k": "leading principal directions",
        "energy": "share of the variance in the leading k",
        "class_mean": "share of the class means in the leading k",
    },
    verdict=verdict,
    figure="energy",
)
