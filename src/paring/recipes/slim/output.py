"""Where the result goes: looked at before hours of work, written when all of it is there."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from paring.delta.files import save_delta
from paring.files import refuse_others, replacing_folder
from paring.recipes.slim.methods import Attempt
from paring.recipes.slim.problem import Problem
from paring.recipes.slim.settings import SlimSettings
from paring.report import PAGE
from paring.tasks.extras import require

SUFFIX = ".delta.safetensors"
KEEPS = (f"keep-*{SUFFIX}", PAGE)  # files of a folder of several keeps; the page is what ``paring report`` adds
REPORT = ("*.json", "*.svg", "*.png", PAGE)  # those of a report


@dataclass(frozen=True)
class Written:
    """A file, and its bytes."""

    path: Path
    num_bytes: int


def check_new(path: Path, what: str, overwrite: bool, ours: Collection[str] = ()) -> None:
    """That nothing at ``path`` would be lost, and that it can be written.

    Args:
        ours: of a folder to write, patterns of the files in it; none: a file is to be written.

    Raises:
        FileExistsError: something is there and ``overwrite`` is False, or it is no such file or folder.
    """
    folder = path.is_dir()
    if path.exists() and not overwrite and not (folder and ours and not any(path.iterdir())):
        raise FileExistsError(f"{what}: {path} is there already; take another name, or --overwrite replaces it")
    if path.exists() and folder != bool(ours):
        is_, expected = ("folder", "file") if folder else ("file", "folder")
        raise FileExistsError(f"{what}: {path} is a {is_}, expected a {expected} or nothing; take another name")
    refuse_others(path, ours)


def refuse_inputs(out: Path, what: str, deltas: Iterable[Path]) -> None:
    """That what is replaced is not, and does not hold, what is made small, which would be gone. FileExistsError: it is."""
    for delta in deltas:
        place = delta.resolve()
        if out.resolve() in (place, *place.parents):
            is_ = "is" if out.resolve() == place else "holds"
            raise FileExistsError(f"{what}: {out} {is_} the delta that is made small, {delta}; take another name")


def refuse_same(places: Mapping[str, str | Path | None]) -> None:
    """That what is written goes to different places, none in another. ValueError: naming two that do not."""
    there = {option: Path(place).resolve() for option, place in places.items() if place is not None}
    for (one, first), (other, second) in combinations(there.items(), 2):
        if first == second or first in second.parents or second in first.parents:
            raise ValueError(f"{one} {first} and {other} {second} are one place, or one lies in the other; expected two")


def check_report(settings: SlimSettings) -> None:
    """That a report can be made."""
    if settings.report is not None:
        check_new(Path(settings.report), "--report", settings.overwrite, REPORT)
        require("matplotlib.figure", "--report")


def write(
    out: Path, finished: Mapping[float, Attempt], facts: Mapping[float, Mapping[str, Any]], settings: SlimSettings
) -> dict[float, Written]:
    """One file at ``out``; of several keeps a folder there, with ``keep-KEEP.delta.safetensors`` for each.

    Returns:
        What was written, by keep.
    """

    def save(keep: float, path: Path, overwrite: bool) -> int:
        vector = finished[keep].vector
        return save_delta(vector, path, facts[keep], values=settings.values, group=settings.group, overwrite=overwrite)

    if len(finished) == 1:
        (keep,) = finished
        return {keep: Written(out, save(keep, out, settings.overwrite))}
    with replacing_folder(out, settings.overwrite, empty=True, ours=KEEPS) as folder:
        sizes = {keep: save(keep, folder / name_of(keep), False) for keep in finished}
    return {keep: Written(out / name_of(keep), size) for keep, size in sizes.items()}


def name_of(keep: float) -> str:
    return f"keep-{keep:.12g}{SUFFIX}"


def facts_of(attempt: Attempt, problem: Problem | None, scores: Mapping[str, Any], tried: Sequence[Attempt]) -> dict[str, Any]:
    """What travels with a slimmed delta: its own scores, and those of the fine-tune under another name."""
    facts = attempt.vector.facts
    before = facts.get("tuned_scores", facts.get("scores"))
    if problem is None:
        return {"scores": {}, "tuned_scores": before} if before else {}
    return {
        "objective": problem.objective.goal,
        "calibration": {"rows": problem.scorings["calibration"].num_rows, "hash": problem.digest},
        "tried": [a.label for a in tried],
        "scores": {split: s.metric[1] for split, s in scores.items()},
        "tuned_scores": {split: s.metric[1] for split, s in problem.tuned.items()},
    }
