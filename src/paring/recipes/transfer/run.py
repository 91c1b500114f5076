"""``paring transfer``, from settings to what is printed in the end."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paring.delta.files import load_delta, save_delta
from paring.delta.taskvector import TaskVector
from paring.recipes.slim.output import REPORT, check_new
from paring.recipes.slim.run import Say, print_line
from paring.recipes.transfer.methods import candidates
from paring.recipes.transfer.originals import Original
from paring.recipes.transfer.problem import Place, Problem, problem
from paring.recipes.transfer.report import Traced, best_place, record, table
from paring.recipes.transfer.rows import TaskFiles
from paring.recipes.transfer.settings import TransferSettings
from paring.recipes.tuned import base_of
from paring.slim.lost import as_stored
from paring.tasks.extras import require


def transfer(
    base: str | None,
    delta: str | Path,
    settings: TransferSettings,
    *,
    files: TaskFiles,
    originals: Mapping[str, Original],
    out: str | Path | None = None,
    say: Say = print_line,
) -> dict[str, Any]:
    """Scores base + lambda * (pruned) delta on the tuned task and on the original ones, and finds the best lambda.

    Args:
        base: the model's folder, or its name on the hub; None: where the delta names it.
        delta: a delta file, or a folder of shards.
        files: rows of the tuned task. originals: the original tasks by name, at least one.
        out: a new file for lambda * (pruned) delta, of the method and lambda of highest H; None: none.
        say: takes lines for the user.

    Returns:
        The record: every score at every lambda, what is best by validation rows, the test scores of that, the Pareto front.

    Raises:
        ValueError, OSError, ImportError: settings, delta, base or files are not what they should be, or no score is a number.
            Nothing is written then.
    """
    delta = Path(delta)
    methods = settings.chosen(files.calibration is not None, all(o.files.calibration is not None for o in originals.values()))
    _check(files, originals, out, settings)
    about = problem(base_of(load_delta(delta), base, "paring transfer"), delta, files, originals, settings)
    for note in about.notes:
        say(f"paring: {note}")
    ends = {"base": _ends(about, 0.0), "tuned": _ends(about, 1.0)}
    try:
        traced = []
        for candidate in candidates(methods, about, settings, say):
            lambdas = sorted({*settings.lambdas, *(() if candidate.lam is None else (candidate.lam,))})
            places = about.trace(candidate.vector, lambdas, "validation")
            traced.append(Traced(candidate, places, best_place(places, candidate.method)))
    except KeyboardInterrupt:
        if settings.search is not None:
            say(f"paring: stopped; the same command goes on with the evaluations in {settings.search}")
        raise
    if about.has_test:  # after everything was chosen
        traced = [replace(t, test=about.trace(t.candidate.vector, (t.best.lam,), "test")[0]) for t in traced]
    chosen = max(traced, key=lambda t: (t.best.point.h, t.best.point.likelihood))
    stored = None if out is None else _stored(about, chosen, settings)
    found = record(about, traced, chosen, ends, settings, None if stored is None else stored.places)

    for line in ["", *table(found)]:
        say(line)
    place = chosen.best.point
    say(
        f"Best on validation rows: {chosen.candidate.method} at lambda {place.lam:.4g}, H {place.h:.4f} "
        f"(tuned {place.tuned:.4f}, original {place.original:.4f})"
    )
    if place.lam == 0:
        say("That is the base as it is: on these rows no step towards the fine-tune pays")
    if out is not None and stored is not None:
        size = _write(Path(out), stored, chosen, found, settings)
        h = stored.places["validation"].point.h
        say(f"Wrote {out}: {size:,} bytes, lambda * delta as {settings.values}, H {h:.4f}; put on like any delta of this base")
    if settings.report is not None:
        from paring.recipes.transfer.plots import write_report

        say(f"Wrote {settings.report}: {', '.join(write_report(found, Path(settings.report), settings.overwrite))}")
    return found


def _check(files: TaskFiles, originals: Mapping[str, Original], out: str | Path | None, settings: TransferSettings) -> None:
    """What can be said before anything is loaded."""
    if not originals:
        raise ValueError("there is no original task; give its rows with --original-validation [NAME=]FILE")
    of_test = {"--test": files.test} | {f"--original-test {name}": original.files.test for name, original in originals.items()}
    without = [option for option, path in of_test.items() if path is None]
    if 0 < len(without) < len(of_test):
        raise ValueError(f"test rows are given without {', '.join(without)}; expected those of every task, or of none")
    if out is not None:
        check_new(Path(out), "--out", settings.overwrite)
    if settings.report is not None:
        check_new(Path(settings.report), "--report", settings.overwrite, REPORT)
        require("matplotlib.figure", "--report")


@dataclass(frozen=True)
class _Stored:
    """lambda * delta with the values that its file will hold, and what these score, by split."""

    vector: TaskVector
    places: Mapping[str, Place]


def _stored(about: Problem, chosen: Traced, settings: TransferSettings) -> _Stored:
    vector, lam = chosen.candidate.vector, chosen.best.lam
    scaled = vector if lam == 1 else lam * vector
    as_read, _ = as_stored(scaled, settings.values, 0)
    splits = ("validation", "test") if about.has_test else ("validation",)
    # What was scored stands for the file at its lambda: on its own it is put on whole.
    return _Stored(scaled, {split: replace(about.trace(as_read, (1.0,), split)[0], lam=lam) for split in splits})


def _ends(about: Problem, lam: float) -> dict[str, Place]:
    """The base, or the fine-tune, by split."""
    splits = ("validation", "test") if about.has_test else ("validation",)
    return {split: about.trace(about.vector, (lam,), split)[0] for split in splits}


def _write(out: Path, stored: _Stored, chosen: Traced, found: Mapping[str, Any], settings: TransferSettings) -> int:
    points = {split: place.point for split, place in stored.places.items()}
    facts = {
        **chosen.candidate.vector.facts,
        "lambda": chosen.best.lam,
        "transfer": {key: found[key] for key in ("objective", "rows", "chosen")},
        "scores": {split: point.tuned for split, point in points.items()},
        "original_scores": {split: point.original for split, point in points.items()},
        "h_scores": {split: point.h for split, point in points.items()},
    }
    return save_delta(stored.vector, out, facts, values=settings.values, overwrite=settings.overwrite)
