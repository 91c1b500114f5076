"""A probe from beginning to end: what is asked, which cells are missing, measuring them, and what they say."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import paring
from paring.probe.bench import Bench, versions
from paring.probe.folder import FIGURE, FORMAT, VERDICT, Finished, Folder, Record, as_csv, gathered
from paring.probe.kind import Kind, Tables, Verdict, key_of
from paring.probe.progress import Lines
from paring.probe.registry import kind_named
from paring.probe.subject import PLACES, Subject
from paring.resumed import differences

Say = Callable[[str], None]
FORMATS = ("svg", "png")


@dataclass(frozen=True)
class Result:
    """What a probe found: its folder, the record as it is in ``probe.json``, all tables, and the verdict."""

    folder: Path
    record: Record
    tables: Tables
    verdict: Verdict


def _print(line: str) -> None:
    print(line, flush=True)  # a pipe would hold it back


def run(kind: str, model: str, *, out: str | Path, figure: bool = True, say: Say = _print, **given: Any) -> Result:
    """Probes a model and writes numbers, figure and verdict into a folder; goes on where an earlier run was killed.

    Args:
        kind: one of ``KINDS``.
        model: a model's folder, a checkpoint file, or a name on the hub.
        out: a new folder, or that of the same probe: finished cells are kept.
        figure: also draw it, which needs matplotlib.
        say: takes lines for the user.
        given: fields of ``Subject`` (data, task, targets …) and of the kind's settings.

    Raises:
        ValueError, OSError, ImportError: an unknown kind or setting, bad input, or ``out`` holds something else. Cells that
            were finished by then are kept.
    """
    found = kind_named(kind)
    subject, settings = _split(found, model, given)
    if figure:
        _drawing(found)
    with Bench(subject) as bench, found.plan(bench, settings) as plan:
        head = _head(found, bench, settings, plan.facts, len(plan.cells))
        bench.note(*plan.notes)
        notes = _Notes(bench.notes, say)
        notes.say_new()
        identity = {name: head[name] for name in ("kind", "revision", "model", "config", "data")} | subject.identity()
        keys = [key_of(cell, identity, plan.given) for cell in plan.cells]
        assert len(set(keys)) == len(keys), "two cells of one plan are the same"
        with Folder(Path(out), head) as folder:
            todo = [(key, cell) for key, cell in zip(keys, plan.cells, strict=True) if key not in folder.cells]
            if folder.cells and (changed := list(differences(folder.record["versions"], head["versions"], ""))):
                bench.note(
                    f"cells of an earlier run are kept that were measured otherwise: {'; '.join(changed)}".replace(" .", " ")
                )
            lines = Lines(len(keys), len(keys) - len(todo), sum(cell.weight for _, cell in todo), say)
            for number, (key, cell) in enumerate(todo):
                if number == 0:
                    lines.begun(cell)
                begun = time.perf_counter()
                tables = plan.measure(cell)
                notes.say_new()
                _check_columns(found, {name: [{**cell.what, **row} for row in rows] for name, rows in tables.items()})
                folder.add(key, cell, time.perf_counter() - begun, tables)
                lines.finished(cell)
            said = list(dict.fromkeys([*folder.record["notes"], *bench.notes]))  # of cells that were kept, too
            if todo:
                folder.record |= {"versions": head["versions"], "finished": _now()}
            folder.record.setdefault("finished", _now())
            folder.record |= {"notes": said}
            return _finish(found, settings, folder, [folder.cells[key] for key in keys], figure, say)


class _Notes:
    """Sentences that came up, each said once."""

    def __init__(self, notes: list[str], say: Say) -> None:
        self._notes, self._say, self._said = notes, say, 0

    def say_new(self) -> None:
        for note in self._notes[self._said :]:
            self._say(f"paring: {note}")
        self._said = len(self._notes)


def _finish(kind: Kind, settings: Any, folder: Folder, cells: list[Finished], figure: bool, say: Say) -> Result:
    tables = gathered(cells)
    verdict = kind.verdict(tables, settings)
    summaries = kind.summaries(tables)
    _check_columns(kind, summaries)
    everything = summaries | tables
    names = {name: f"{name}.csv" for name in everything}
    drawings = [f"{FIGURE}.{ending}" for ending in FORMATS] if figure else []
    record = {
        **folder.record,
        "state": "finished",
        "seconds": round(sum(cell.seconds for cell in cells), 1),
        "num_cells": len(cells),
        "verdict": {
            "holds": verdict.holds,
            "measured": verdict.measured,
            "sentence": verdict.sentence,
            "numbers": dict(verdict.numbers),
        },
        "tables": names,
        "figures": drawings,
        "columns": {
            column: kind.columns[column]
            for column in dict.fromkeys(c for rows in everything.values() for row in rows for c in row)
        },
    }
    content = {names[name]: as_csv(rows) for name, rows in everything.items()}
    if figure:
        from paring.probe.plots.drawing import drawn

        picture = _drawing(kind)(record, everything)
        content |= {f"{FIGURE}.{ending}": drawn(picture, ending) for ending in FORMATS}
    content[VERDICT] = f"{kind.claim} ({kind.source})\n{verdict.sentence}\n".encode()
    folder.save(record, content)
    say(f"{kind.title}: {verdict.sentence}")
    say(f"Written to {folder.path}: {', '.join(sorted(content))}, cells.jsonl, probe.json")
    return Result(folder.path, record, everything, verdict)


def _head(kind: Kind, bench: Bench, settings: Any, facts: Mapping[str, Any], num_planned: int) -> Record:
    return {
        "format": FORMAT,
        "kind": kind.name,
        "revision": kind.revision,
        "title": kind.title,
        "claim": kind.claim,
        "source": kind.source,
        "state": "running",
        "begun": _now(),
        "places": {name: _called(getattr(bench.subject, name)) for name in PLACES},
        "model": bench.model_hash,
        "config": bench.config_hash if kind.needs == "rows" else None,
        "data": bench.data_hash if kind.needs == "rows" else None,
        "subject": dict(bench.subject.identity()),
        "settings": asdict(settings),
        "num_planned": num_planned,
        "facts": dict(facts),
        "notes": list(bench.notes),
        "versions": versions() | {"paring": paring.__version__},
    }


def _split(kind: Kind, model: str, given: Mapping[str, Any]) -> tuple[Subject, Any]:
    """What is probed, and how.

    Raises:
        ValueError: a setting is unknown (names the nearest), or the kind needs rows and there are none.
    """
    of_subject = {f.name for f in fields(Subject)} - {"model"}
    of_kind = {f.name for f in fields(kind.settings)}
    assert not of_subject & of_kind
    for name in given:
        if name not in of_subject | of_kind:
            near = get_close_matches(name, of_subject | of_kind, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(of_subject | of_kind))}"
            raise ValueError(f"probe {kind.name}: there is no setting {name!r}{hint}")
    subject = Subject(model=model, **{k: v for k, v in given.items() if k in of_subject})
    if kind.needs == "rows":
        subject.tuning()  # says what is missing
    elif subject.data is not None:
        raise ValueError(f"probe {kind.name} looks at weights alone: data is {subject.data!r}; leave --data out")
    return subject, kind.settings(**{k: v for k, v in given.items() if k in of_kind})


def _drawing(kind: Kind) -> Callable[[Record, Tables], Any]:
    from importlib import import_module

    from paring.tasks.extras import require

    require("matplotlib", "the figure of a probe (leave it out: --no-figure)")
    return import_module(f"paring.probe.plots.{kind.figure}").figure  # type: ignore[no-any-return]


def _check_columns(kind: Kind, tables: Tables) -> None:
    unknown = {column for rows in tables.values() for row in rows for column in row} - set(kind.columns)
    assert not unknown, f"kind {kind.name}: its columns do not tell what {', '.join(sorted(unknown))} is"


def _called(place: str | None) -> str | None:
    """The last part of a path that is there, else the name on the hub whole: enough for a reader, and nobody's folders."""
    return place if place is None or not Path(place).expanduser().exists() else Path(place).expanduser().resolve().name


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
