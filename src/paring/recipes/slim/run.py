"""``paring slim`` of one delta, from settings to what is printed in the end."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paring.delta.errors import DeltaError
from paring.delta.files import load_delta
from paring.delta.inspect import summarise
from paring.delta.taskvector import TaskVector
from paring.files import write_bytes
from paring.recipes.calibration import Files
from paring.recipes.made_with import made_with
from paring.recipes.scoring import Scores
from paring.recipes.slim.methods import Attempt, attempt, choose, plan, summary
from paring.recipes.slim.output import KEEPS, check_new, check_report, facts_of, refuse_inputs, refuse_same, write
from paring.recipes.slim.problem import Problem, described, problem
from paring.recipes.slim.progress import Lines
from paring.recipes.slim.refused import refuse_empty, refuse_nan
from paring.recipes.slim.report import NOT_KNOWN, against, kept_line, table
from paring.recipes.slim.settings import PLAIN, SlimSettings
from paring.recipes.tuned import base_of, load_model
from paring.search.settings import NoScoreError, SearchError
from paring.slim.identity import digest
from paring.slim.lost import as_stored, kept_energy
from paring.slim.nps import Nps
from paring.slim.pruners import num_entries
from paring.slim.refit import Refit

Say = Callable[[str], None]
RUN = "run.json"  # in the folder of a search: whose it is
LOCAL = ("search", "report", "config", "overwrite", "workers")  # settings that say nothing about the result


def print_line(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)  # a pipe would hold it back


def slim(
    delta: str | Path,
    out: str | Path,
    settings: SlimSettings,
    *,
    base: str | None = None,
    files: Files | None = None,
    say: Say = print_line,
) -> dict[str, Any]:
    """Makes a delta small.

    Args:
        delta: a delta file, or a folder of shards.
        out: a new file; with several keeps a new folder.
        base: what it was made on; may be left out where the delta names a model of the hub, or holds numbers and ``files``
            is None.
        files: rows to search, select and report on; None: pruning without data.
        say: takes lines for the user.

    Returns:
        The record: scores of the fine-tune, and for each keep what was tried, what was chosen and the scores of that.

    Raises:
        ValueError, OSError, ImportError: settings, delta, base or files are not what they should be. Nothing is written then.
    """
    delta, out = Path(delta), Path(out)
    method = settings.chosen(files is not None)
    settings.refuse_idle([method])
    check_new(out, "OUT", settings.overwrite, KEEPS if len(settings.keep) > 1 else ())
    refuse_inputs(out, "OUT", [delta])
    refuse_same({"OUT": out, "--report": settings.report, "--search": settings.search})
    check_report(settings)
    about = opened(delta, base, files, method, settings)
    made = about if isinstance(about, Problem) else None
    vector = made.vector if made is not None else about
    assert isinstance(vector, TaskVector)
    refuse_empty(vector)
    for note in made.notes if made is not None else ():
        say(f"paring: {note}")
    tried = try_all(vector, method, settings, made, say)

    finished, facts, record = {}, {}, begin_record(delta, method, settings, made)
    for keep, attempts in tried.items():
        best = choose(attempts)
        scores = final_scores(best, made, settings)
        finished[keep], facts[keep] = best, facts_of(best, made, scores, attempts)
        record["keeps"].append(
            {
                "keep": keep,
                "chosen": best.label,
                "scores": {split: s.as_dict() for split, s in scores.items()},
                "tried": [summary(a) for a in attempts],
            }
        )
        if made is not None:
            say("\n".join(["", *table(attempts, made, best, keep)]))
        say(kept_line(best, keep, num_entries(vector), kept_energy(vector, best.vector)))
        if "test" in scores and made is not None:
            say(against(scores, made.tuned, "test"))
    written = write(out, finished, facts, settings)
    for keep, file in written.items():
        bits = summarise(file.path).bits_per_parameter
        say(f"Wrote {file.path}: {file.num_bytes:,} bytes, {bits:.3f} bits for each parameter; were {record['bytes']:,}")
        next(k for k in record["keeps"] if k["keep"] == keep)["bytes"] = file.num_bytes
    if made is None:
        say(NOT_KNOWN)
    if settings.report is not None:
        from paring.recipes.slim.plots import write_report

        say(f"Wrote {settings.report}: {', '.join(write_report(record, Path(settings.report), settings.overwrite))}")
    return record


def opened(delta: Path, base: str | None, files: Files | None, method: str, settings: SlimSettings) -> Problem | TaskVector:
    """The task vector, with all that it takes to score it where there are ``files``.

    Raises:
        DeltaError: the base is needed and not given, or another.
    """
    if files is not None:
        model = base_of(load_delta(delta), base, f"--method {method} with data")
        return problem(delta, model, files, settings)
    vector = load_delta(delta)
    if base is None and any(vector.changes[name].kind == "exact" for name in vector.names):
        raise DeltaError(f"{delta} holds exact differences, numbers only beside the base; give it with --base BASE")
    return vector if base is None else beside_base(vector, delta, base, settings)


def beside_base(vector: TaskVector, delta: Path, base: str, settings: SlimSettings) -> TaskVector:
    """The task vector with its base at hand: the checkpoint's tensors, or those of the model that transformers makes of it
    where the two have other names.

    Raises:
        DeltaError: it is another base.
    """
    try:
        return load_delta(delta, base=base)
    except DeltaError as error:
        if not (Path(base) / "config.json").is_file() or not isinstance(vector.facts.get("settings"), dict):
            raise
        config, tuning = described(vector, delta, base, settings)
        try:
            return load_delta(delta, base=load_model(tuning, config))
        except (ValueError, OSError):
            raise error from None


def try_all(
    vector: TaskVector, method: str, settings: SlimSettings, about: Problem | None, say: Say, name: str = ""
) -> dict[float, list[Attempt]]:
    """Every method of the plan at every keep; of "auto" those that come to nothing are said and left out. ``name`` stands
    before each line of progress.

    Raises:
        SearchError: nothing has a score, but for "auto"; a search cannot be run, or gone on with.
        DeltaError: the fine-tune made small gives no number.
    """
    todo = plan(settings, method)
    num_searches = len(settings.keep) * sum(isinstance(how, Nps) for how in todo.values())
    if about is not None and num_searches:
        claim(settings, about)
    lines = Lines(settings.objective, num_searches, settings.budget, say)
    tried: dict[float, list[Attempt]] = {}
    try:
        for keep in settings.keep:
            for label, how in todo.items():
                title = f"{name}{label}, keep {keep:g}"
                report = lines.of(title) if isinstance(how, Nps) else None
                step = lines.of_steps(title, how.steps) if isinstance(how, Refit) else None
                try:
                    found = attempt(label, how, vector, keep, settings, about, report, step)
                except NoScoreError as error:
                    if method != "auto":
                        raise
                    say(f"paring: {title}: no score is a number; it is out ({error})")
                    continue
                tried.setdefault(keep, []).append(found)
                if settings.values in PLAIN and found.num_lost:
                    say(
                        f"paring: {title}: {found.num_lost:,} of {found.num_kept:,} values are too small for {settings.values} "
                        "and are 0 in the file; --values bf16 or fp32 holds them"
                    )
            refuse_nan(choose(tried.get(keep, [])), keep)
    except KeyboardInterrupt:
        if settings.search is not None:
            say(f"paring: stopped; the same command goes on with the evaluations in {settings.search}")
        raise
    return tried


def claim(settings: SlimSettings, about: Problem) -> None:
    """Marks the folder of the search as this run's, or finds that it is.

    Raises:
        SearchError: it holds another run, or something else.
    """
    if settings.search is None:
        return
    folder = Path(settings.search)
    ours = {
        "base": about.vector.base.total,
        "delta": digest(about.vector),
        "calibration": about.scorings["calibration"].digest,
        "objective": settings.objective,
        "budget": settings.budget,
        "seed": settings.seed,
        "parts": settings.parts,
    }
    if folder.is_dir() and (folder / RUN).is_file():
        try:
            theirs = json.loads((folder / RUN).read_text())
        except ValueError:
            theirs = None
        if not isinstance(theirs, dict):
            raise SearchError(f"--search: {folder / RUN} is not what a search writes; take another folder")
        differing = [f"{k} is {theirs.get(k)!r} there, {v!r} asked for" for k, v in ours.items() if theirs.get(k) != v]
        if differing:
            raise SearchError(
                f"--search: {folder} holds the search of another run; take another folder, or search as there. What differs: "
                + "; ".join(differing)
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SearchError(f"--search: {folder} is there and holds no search; take a new folder")
    write_bytes(folder / RUN, (json.dumps(ours, indent=2) + "\n").encode())


def final_scores(best: Attempt, about: Problem | None, settings: SlimSettings) -> Mapping[str, Scores]:
    """Of the one that was chosen, on the test rows too."""
    if about is None or "test" not in about.scorings:
        return best.scores
    stored, _ = as_stored(best.vector, settings.values, settings.group)
    return {**best.scores, **about.scores(stored, ("test",))}


def begin_record(delta: Path, method: str, settings: SlimSettings, about: Problem | None) -> dict[str, Any]:
    """What is known before the first keep."""
    scores = {} if about is None else {split: s.as_dict() for split, s in about.tuned.items()}
    return {
        "delta": delta.name,
        "bytes": summarise(delta).num_bytes,
        "method": method,
        "objective": settings.objective,
        "budget": settings.budget,
        "seed": settings.seed,
        "values": settings.values,
        "rows": {} if about is None else {split: s.num_rows for split, s in about.scorings.items()},
        "tuned": scores,
        "keeps": [],
        **made_with(asdict(settings), LOCAL),
    }
