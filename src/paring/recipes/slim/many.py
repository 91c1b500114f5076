"""``paring slim --bank``: many fine-tunes of one base, each made small, in one folder; what they take, and what they lose.

NPS's third application (Du et al. 2025, arXiv 2505.18713): one base and N slim task vectors in place of N checkpoints.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from paring.delta.base import Base
from paring.delta.errors import DeltaError
from paring.delta.files import INDEX, load_delta, save_delta
from paring.delta.inspect import summarise
from paring.delta.taskvector import TaskVector
from paring.files import replacing_folder
from paring.recipes.calibration import Files
from paring.recipes.made_with import made_with
from paring.recipes.slim.methods import choose, summary
from paring.recipes.slim.output import SUFFIX, check_new, facts_of, refuse_inputs, refuse_same
from paring.recipes.slim.problem import Problem
from paring.recipes.slim.refused import refuse_empty
from paring.recipes.slim.report import NOT_KNOWN, aligned
from paring.recipes.slim.run import LOCAL, Say, begin_record, final_scores, opened, print_line, try_all
from paring.recipes.slim.settings import SlimSettings
from paring.report import PAGE

RECORD = "slim.json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,100}")


def slim_bank(
    deltas: Mapping[str, str | Path],
    bank: str | Path,
    settings: SlimSettings,
    *,
    base: str | None = None,
    files: Mapping[str, Files] | None = None,
    say: Say = print_line,
) -> dict[str, Any]:
    """Makes deltas of one base small, and writes them into a folder that ``paring.Bank`` opens.

    Args:
        deltas: a file for each name that the bank is to have.
        bank: a new folder; it gets ``NAME.delta.safetensors`` for each, and the record as ``slim.json``.
        settings: of all, with one keep. Without a method, those without ``files`` are pruned without data.
        base, say: as ``paring.recipes.slim.run.slim``.
        files: rows by name; those that have none are not scored.

    Returns:
        The record: for each task what was tried and its scores, and the bytes of both ways to keep the fine-tunes.

    Raises:
        ValueError, OSError, ImportError: as ``slim``; or the deltas have different bases. Nothing is written then.
    """
    bank, files = Path(bank), dict(files or {})
    if len(settings.keep) != 1:
        raise ValueError(f"keep is {settings.keep}; expected one share: a bank holds one delta of each name")
    if settings.report is not None:
        raise ValueError(f"--report is for one delta; a bank's numbers are written into it, as {RECORD}")
    _check_names(deltas, files)
    ours = _files_of(bank)
    check_new(bank, "--bank", settings.overwrite, ours)
    refuse_inputs(bank, "--bank", map(Path, deltas.values()))
    refuse_same({"--bank": bank, "--search": settings.search})
    settings.refuse_idle([settings.chosen(name in files) for name in deltas])
    vectors = {name: load_delta(path) for name, path in deltas.items()}
    first, *others = vectors
    for name in others:
        vectors[first].base.refuse_other(vectors[name].base, f"deltas {first!r} and {name!r} in one bank")

    for name, path in deltas.items() if len(deltas) > 1 else ():  # what the last one lacks is said before the first one's work
        _opened(name, Path(path), base, files.get(name), settings)

    (keep,) = settings.keep
    records, made = {}, {}
    for name, path in deltas.items():
        made[name], records[name] = _one(name, Path(path), base, files.get(name), settings, say)
        records[name]["checkpoint_bytes"] = checkpoint_bytes(vectors[name])
    record: dict[str, Any] = {"keep": keep, "base_bytes": base_bytes(vectors[first].base), "tasks": records}
    record |= made_with(asdict(settings), LOCAL)
    with replacing_folder(bank, settings.overwrite, empty=True, ours=ours) as folder:
        for name, (vector, facts) in made.items():
            path = folder / f"{name}{SUFFIX}"
            records[name]["slim_bytes"] = save_delta(vector, path, facts, values=settings.values, group=settings.group)
            records[name]["bits_per_parameter"] = summarise(path).bits_per_parameter
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    for line in lines(record):
        say(line)
    say(f"Wrote {bank}: see `paring bank ls {bank}`; in Python, paring.Bank(model, {str(bank)!r}) swaps between them")
    return record


def _files_of(bank: Path) -> tuple[str, ...]:
    """What an earlier run wrote into a bank, by its record."""
    tasks: Any = {}
    with suppress(OSError, ValueError, KeyError, TypeError):
        tasks = json.loads((bank / RECORD).read_bytes())["tasks"]
    return (*(f"{name}{SUFFIX}" for name in tasks if _NAME.fullmatch(name)), RECORD, PAGE)


def _opened(
    name: str, path: Path, base: str | None, files: Files | None, settings: SlimSettings
) -> tuple[SlimSettings, str, Problem | TaskVector]:
    """One delta's own settings, its method, and what that works on."""
    own = settings if settings.search is None else replace(settings, search=str(Path(settings.search) / name))
    method = own.chosen(files is not None)
    about = opened(path, base, files, method, own)
    refuse_empty(about.vector if isinstance(about, Problem) else about, f"{name}: ")
    return own, method, about


def _one(
    name: str, path: Path, base: str | None, files: Files | None, settings: SlimSettings, say: Say
) -> tuple[tuple[TaskVector, dict[str, Any]], dict[str, Any]]:
    """One delta made small, with the facts of its file; and its part of the record."""
    own, method, about = _opened(name, path, base, files, settings)
    problem = about if isinstance(about, Problem) else None
    vector = problem.vector if problem is not None else about
    assert isinstance(vector, TaskVector)
    for note in problem.notes if problem is not None else ():
        say(f"paring: {name}: {note}")
    (attempts,) = try_all(vector, method, own, problem, say, f"{name}: ").values()
    best = choose(attempts)
    scores = final_scores(best, problem, own)
    record = begin_record(path, method, own, problem) | {
        "chosen": best.label,
        "scores": {split: s.as_dict() for split, s in scores.items()},
        "tried": [summary(a) for a in attempts],
    }
    for key in ("keeps", "settings", "versions", "machine"):  # the last three are the bank's
        del record[key]
    return (best.vector, facts_of(best, problem, scores, attempts)), record


def lines(record: Mapping[str, Any]) -> list[str]:
    """The record for a terminal: a row a task, and the bytes of both ways."""
    header = [
        f"keep {record['keep']:g}",
        "method",
        "delta was",
        "is now",
        "bits/param",
        "fine-tune",
        "slim",
        "share",
        "scored on",
    ]
    rows = []
    for name, task in record["tasks"].items():
        split = next((s for s in ("test", "validation", "calibration") if s in task["scores"]), None)
        scored = ["not known", "", "", ""]
        if split is not None:
            metric, whole = list(task["tuned"][split].items())[-1]
            value = task["scores"][split][metric]
            share = f"{100 * value / whole:.1f} %" if metric == "accuracy" and whole and value is not None else ""
            scored = [*("NaN" if v is None else f"{v:.4f}" for v in (whole, value)), share, f"{split} {metric}"]
        sizes = [f"{task['bytes']:,}", f"{task['slim_bytes']:,}", f"{task['bits_per_parameter']:.3f}"]
        rows.append([name, task["chosen"], *sizes, *scored])
    out = ["", *aligned([header, *rows])]
    tasks = record["tasks"].values()
    slim, whole = record["base_bytes"] + sum(t["slim_bytes"] for t in tasks), sum(t["checkpoint_bytes"] for t in tasks)
    out.append(
        f"One base of {record['base_bytes']:,} bytes and {len(rows)} delta(s): {slim:,} bytes; {len(rows)} checkpoint(s): "
        f"{whole:,} bytes, {whole / slim:.2f} times as many. Each further task: "
        f"{sum(t['slim_bytes'] for t in tasks) / len(rows):,.0f} bytes in place of {whole / len(rows):,.0f}"
    )
    if any(not t["scores"] for t in tasks):
        out.append(NOT_KNOWN)
    return out


def base_bytes(base: Base) -> int:
    """Of the base's tensors."""
    return sum(_size(facts.shape) * facts.torch_dtype.itemsize for facts in base.tensors.values())


def checkpoint_bytes(vector: TaskVector) -> int:
    """Of the tensors of the tuned model: those of the base but for those removed, and the new ones."""
    gone = {name: facts for name, facts in vector.base.tensors.items() if name in vector.removed}
    new = sum(vector.changes[name].shape.numel() * vector.changes[name].dtype.itemsize for name in vector.new)
    return base_bytes(vector.base) - sum(_size(f.shape) * f.torch_dtype.itemsize for f in gone.values()) + new


def named(text: str) -> tuple[str, str]:
    """NAME and path of ``NAME=PATH`` or ``PATH``, which is named as its file, or as the folder that ``paring tune`` wrote.

    Raises:
        FileNotFoundError: the folder of a run has no delta.
    """
    name, equals, rest = text.partition("=")
    path = Path(text if not equals or Path(text).exists() else rest)
    if path.is_dir() and not (path / INDEX).is_file():
        inside = path / f"model{SUFFIX}"
        if not inside.is_file():
            raise FileNotFoundError(f"{path} holds no model{SUFFIX}; expected a delta, or the folder of a `paring tune`")
        path = inside
    if equals and not Path(text).exists():
        return name, str(path)
    stem = path.name.removesuffix(".safetensors").removesuffix(".delta")
    return (path.absolute().parent.name if stem == "model" else stem), str(path)


def _check_names(deltas: Mapping[str, str | Path], files: Mapping[str, Files]) -> None:
    for name in deltas:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a delta; expected letters, digits, . _ -: give it as NAME=FILE")
    unknown = [name for name in files if name not in deltas]
    if unknown:
        raise DeltaError(f"rows are given for {unknown[0]!r}, and there is no such delta; there are {', '.join(deltas)}")


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
