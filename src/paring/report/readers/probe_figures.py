"""The figure of a probe's page: drawn from the tables that lie in its folder, so that values can be looked at.

A table that lacks what a figure needs (a file that was edited, a probe of another version) gives none; the page then shows the
picture that was drawn with the run.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from paring.report.document import Axis, Figure, Panel, Series

Row = Mapping[str, Any]
Tables = Mapping[str, Sequence[Row]]
_ACCURACY = (0.0, 1.0)


def probe_figure(kind: str, title: str, tables: Tables) -> Figure | None:
    """The figure of one kind; None: there is none of this kind, or the tables do not hold it."""
    draw = _DRAW.get(kind)
    try:
        panels = draw(tables) if draw else []
    except (KeyError, TypeError, ValueError):
        return None
    there = [panel for panel in panels if any(series.points for series in panel.series)]
    return Figure(title, there, _NOTES.get(kind, "")) if there else None


def _spectra(tables: Tables) -> list[Panel]:
    energies, decays = [], []
    for axis in _values(tables["matrices"], "axis"):
        ratios, decay = [], []
        for name in _values(tables["matrices"], "matrix"):
            rows = sorted(_of(tables["matrices"], axis=axis, matrix=name), key=lambda row: float(row["energy_ratio"]))
            last = max(len(rows) - 1, 1)
            points = [(i / last, float(row["energy_ratio"])) for i, row in enumerate(rows)]
            ratios.append(Series(name, points, labels=[str(row["layer"]) for row in rows]))
            decay.append(Series(name, _means(_of(tables["profiles"], axis=axis, matrix=name), "place", "mean")))
        share = Axis("share of the matrices", "share")
        energies.append(Panel(f"{axis} groups", share, Axis("largest / smallest mean eigenvalue", log=True), ratios))
        place = Axis("place in the spectrum", "share")
        decays.append(Panel(f"{axis} groups: decay", place, Axis("eigenvalue / mean eigenvalue", log=True), decay))
    return energies + decays


def _energy(tables: Tables) -> list[Panel]:
    last = max(float(row["layer"]) for row in tables["curves"])
    shares, directions, between = [], [], []
    for model in _values(tables["layers"], "model"):
        end = _of(tables["curves"], model=model, layer=last)
        shares += [Series(f"{model}, class means", _means(end, "k", "class_mean"))]
        shares += [Series(f"{model}, variance", _means(end, "k", "energy"))]
        rows = _of(tables["layers"], model=model)
        directions.append(Series(f"{model}, class means", _means(rows, "layer", "class_mean_k90")))
        between.append(Series(f"{model}, class means", _means(rows, "layer", "adjusted")))
    layer = Axis("layer", "count")
    return [
        Panel("After the last block", Axis("leading directions", "count", log=True), Axis("cumulative share", "share"), shares),
        Panel("Directions that hold 90 % of the class means", layer, Axis("k(0.9)", "count"), directions),
        Panel("Variance between classes, adjusted", layer, Axis("share", "share"), between),
    ]


def _gradient(tables: Tables) -> list[Panel]:
    rows, of_all, by_layer = tables["slices"], [], []
    layers = {layer: i for i, layer in enumerate(_values(rows, "layer"))}
    for axis in _values(rows, "axis"):
        found = sorted(_of(rows, axis=axis), key=_norm)
        name = f"{axis} slices"
        shares = [(_norm(row), (i + 1) / len(found)) for i, row in enumerate(found)]
        of_all.append(Series(name, shares, "step", [f"{row['layer']}, {row['position']:.0f}" for row in found]))
        held: dict[str, list[float]] = {}
        for row in found:
            held.setdefault(str(row["layer"]), []).append(_norm(row))  # in order
        names = [layer for layer in layers if layer in held]
        middle = [(layers[layer], held[layer][len(held[layer]) // 2]) for layer in names]
        by_layer.append(Series(name, middle, labels=names))
        for end in (0, -1):
            ends = [(layers[layer], held[layer][end]) for layer in names]
            by_layer.append(Series(name, ends, "dots", names, faint=True))
    norm = "gradient norm / that of an even share"
    return [
        Panel("All slices", Axis(norm), Axis("share of slices below", "share", within=_ACCURACY), of_all),
        Panel("By layer", Axis("layer, from the input", "count"), Axis(norm), by_layer),
    ]


def _rank(tables: Tables) -> list[Panel]:
    series = []
    for schedule in _values(tables["curve"], "schedule"):
        rows = _of(tables["curve"], schedule=schedule)
        for split in ("validation", "test"):
            if any(row.get(split) is not None for row in rows):
                series.append(Series(f"{schedule}, {split}", _means(rows, "rank", split)))
        score = _score(rows)
        runs = _runs(tables, rows, "schedule", "rank")
        points = [(float(run["rank"]), float(run[score])) for run in runs]
        series.append(Series(f"{schedule}, {score}", points, "dots", _seeds(runs), faint=True))
    return [Panel("", Axis("rank", "count", log=True), _accuracy(), series)]


def _position(tables: Tables) -> list[Panel]:
    panels = []
    for axis in _values(tables["positions"], "axis"):
        rows = _of(tables["positions"], axis=axis)
        score = _score(rows)
        runs = _runs(tables, rows, "axis", "position")
        series = [
            Series("mean of the seeds", _means(rows, "position", score)),
            Series("one seed", [(float(r["position"]), float(r[score])) for r in runs], "dots", _seeds(runs), faint=True),
            Series("mean of all positions", [(0.0, fmean(float(row[score]) for row in rows))], "level"),
        ]
        panels.append(Panel(f"{axis} slices", Axis("position, share of the way", "share"), _accuracy(score), series))
    return panels


def _importance(tables: Tables) -> list[Panel]:
    panels = []
    for axis in _values(tables["categories"], "axis"):
        rows = _of(tables["categories"], axis=axis)
        score, series = _score(rows), []
        for row in rows:
            name, at = str(row["category"]), float(row["score"])
            runs = _runs(tables, [row], "axis", "category")
            series.append(Series(name, [(at, float(row[score]))], "dots", ("mean",)))
            series.append(Series(name, [(at, float(run[score])) for run in runs], "dots", _seeds(runs), faint=True))
        panels.append(Panel(f"{axis} slices", Axis("Wanda score / mean of the layer's slices"), _accuracy(score), series))
    return panels


def _tickets(tables: Tables) -> list[Panel]:
    choices, score = tables["choices"], _score(tables["choices"])
    slices = []
    for row in choices:
        name, at = f"{row['source']}, {row['axis']}s", float(row["overlap"])
        runs = _runs(tables, [row], "source", "axis", "choice")
        slices.append(Series(name, [(at, float(row[score]))], "dots", (f"{row['choice']} of the mask",)))
        slices.append(Series(name, [(at, float(run[score])) for run in runs], "dots", _seeds(runs), faint=True))
    itself = []
    for source in _values(tables["tickets"], "source"):
        rows = _of(tables["tickets"], source=source)
        itself.append(Series(f"{source}: the ticket", _means(rows, "kept", score)))
    return [
        Panel("Slices", Axis("share of the slice in the mask", "share"), _accuracy(score), slices),
        Panel("The ticket itself, all weights trained", Axis("weights left", "share"), _accuracy(score), itself),
    ]


def _schedule(tables: Tables) -> list[Panel]:
    rows, series = tables["variants"], []
    for row in rows:
        away = 100 * float(row["over_static"])
        if row.get("interval") is None:
            series.append(Series(str(row["variant"]), [(0.0, away)], "level"))
        else:
            series.append(Series(str(row["variant"]), [(float(row["interval"]), away)], "dots"))
    return [Panel("", Axis("steps between moves", "count", log=True), Axis("points above static columns"), series)]


def _complexity(tables: Tables) -> list[Panel]:
    rows = [row for row in tables["methods"] if row.get("total_bytes") is not None]
    first = min(float(row["seed"]) for row in rows)
    series = [
        Series(str(row["method"]), [(float(row["num_trainable"]), float(row["total_bytes"]) / 1e6)], "dots")
        for row in _of(rows, seed=first)
    ]
    return [Panel("", Axis("entries trained", "count", log=True), Axis("bytes of one step, MB", log=True), series)]


_DRAW: Mapping[str, Callable[[Tables], list[Panel]]] = {
    "spectra": _spectra,
    "energy": _energy,
    "gradient": _gradient,
    "rank": _rank,
    "position": _position,
    "importance": _importance,
    "tickets": _tickets,
    "schedule": _schedule,
    "complexity": _complexity,
}
_NOTES = {
    "spectra": "A ratio that is infinite, and an eigenvalue of zero, have no place on these axes.",
    "gradient": "By layer: the median; faint, the least and the most.",
    "rank": "Faint: single seeds, at the rate that did best on validation rows.",
    "position": "Faint: single seeds.",
    "importance": "Faint: single seeds.",
    "tickets": "Faint: single seeds.",
    "schedule": "Drawn across: what never moves.",
}


def _accuracy(score: str = "") -> Axis:
    return Axis(f"{score} accuracy".strip(), "score", within=_ACCURACY)


def _score(rows: Sequence[Row]) -> str:
    """What accuracies are reported of."""
    return "test" if rows[0].get("test") is not None else "validation"


def _of(rows: Sequence[Row], **wanted: object) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _values(rows: Sequence[Row], key: str) -> list[str]:
    """Each once, as they come."""
    return list(dict.fromkeys(str(row[key]) for row in rows))


def _means(rows: Iterable[Row], x: str, y: str) -> list[tuple[float, float | None]]:
    """Means of ``y`` over the rows of each ``x``."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row.get(y) is not None:
            found.setdefault(float(row[x]), []).append(float(row[y]))
    return [(at, fmean(found[at])) for at in sorted(found)]


def _runs(tables: Tables, rows: Sequence[Row], *keys: str) -> list[Row]:
    """The single trainings behind rows that each hold what did best."""
    chosen = {tuple(row[key] for key in (*keys, "rate")) for row in rows}
    return [run for run in tables["runs"] if tuple(run[key] for key in (*keys, "rate")) in chosen]


def _seeds(runs: Sequence[Row]) -> list[str]:
    return [f"seed {run['seed']:.0f}" for run in runs]


def _norm(row: Row) -> float:
    return float(row["relative_norm"] or 0.0)
