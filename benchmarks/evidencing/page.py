"""docs/evidence.md: claim by claim what the paper says, what was measured, the verdict. All numbers come from the records."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evidencing.claims import Claim, read
from evidencing.plan import KINDS, MODELS, TASKS, Probe
from paring.files import write_bytes
from paring.probe.registry import kind_named

Record = dict[str, Any]
_ANSWER = {True: "**holds**", False: "**does not hold**", None: "undecided"}
_MEASURED = {True: " (as measured it holds)", False: " (as measured it does not hold)", None: ""}
_MISSING = "not run"


def write(probes: Sequence[Probe], docs: Path) -> Path:
    """Makes the page anew of what ``docs``/evidence holds.

    Raises:
        ValueError: a record there is damaged.
    """
    records = {probe.name: _record(docs / "evidence" / probe.name) for probe in probes}
    path = docs / "evidence.md"
    write_bytes(path, (text(probes, records) + "\n").encode())
    return path


def text(probes: Sequence[Probe], records: dict[str, Record | None]) -> str:
    """The page; a probe without a record stands there as not run."""
    opening, claims = read()
    parts = [opening, _table(probes, records, claims)]
    for kind in KINDS:
        parts.append(_section(kind, claims[kind], [probe for probe in probes if probe.kind == kind], records))
    return "\n\n".join(parts)


def _table(probes: Sequence[Probe], records: dict[str, Record | None], claims: dict[str, Claim]) -> str:
    columns = [(model, task) for model in MODELS for task in TASKS[model]]
    lines = [
        "| claim | " + " | ".join(f"{MODELS[model]}, {task}" for model, task in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for kind in KINDS:
        answers = []
        for model, task in columns:
            found = [p for p in probes if (p.kind, p.model) == (kind, model) and p.task in (task, None)]
            record = records[found[0].name] if found else None
            answers.append(_answer(record))
        lines.append(f"| [{claims[kind].short}](#{kind}) | " + " | ".join(answers) + " |")
    return "\n".join(lines)


def _section(kind: str, claim: Claim, probes: Sequence[Probe], records: dict[str, Record | None]) -> str:
    lines = [f"## {kind}", "", f"**The paper** ({claim.where}): {claim.paper}", "", f"**Measured**: {claim.measured}", ""]
    for probe in probes:
        record = records[probe.name]
        what = f"{MODELS[probe.model]}, {probe.task}" if probe.task else MODELS[probe.model]
        if record is None:
            lines.append(f"- {what}: {_MISSING}.")
            continue
        sentence = str(record["verdict"]["sentence"])
        _, _, said = sentence.partition(": ") if record["verdict"]["holds"] is not True else ("", "", sentence[len("holds ") :])
        left = "".join(f"; `{name}` ({size:,} bytes) is not kept" for name, size in record.get("left_out", {}).items())
        if other := _other_settings(probe, record):
            left += f"; measured before the plan's settings changed: {', '.join(other)}"
        lines.append(
            f"- {what}: {_answer(record)}{'' if record['verdict']['holds'] is True else ':'} {said}. "
            f"[{record['num_cells']} cells](evidence/{probe.name}/probe.json), "
            f"{_settings(kind, record)}{left}."
        )
    shown = next((p for p in probes if (r := records[p.name]) is not None and r["figures"]), None)
    if shown is not None:
        place = f"{MODELS[shown.model]}, {shown.task}" if shown.task else MODELS[shown.model]
        lines += ["", f"![{claim.short}: {place}](evidence/{shown.name}/figure.svg)"]
    return "\n".join([*lines, "", f"**Where we differ, and why**: {claim.why}"])


def _answer(record: Record | None) -> str:
    if record is None:
        return _MISSING
    verdict = record["verdict"]
    return _ANSWER[verdict["holds"]] + (_MEASURED[verdict.get("measured")] if verdict["holds"] is None else "")


def _settings(kind: str, record: Record) -> str:
    """Seeds, and what was asked for otherwise than by default."""
    usual = json.loads(json.dumps(asdict(kind_named(kind).settings())))
    given: Record = record["settings"]
    chosen = [name for name in given if name != "seeds" and given[name] != usual.get(name)]
    seeds = len(given["seeds"])
    return "; ".join([f"{seeds} seed{'s' if seeds > 1 else ''}", *(f"{n.replace('_', ' ')} {_said(given[n])}" for n in chosen)])


def _said(value: Any) -> str:
    return " ".join(map(str, value)) or "nothing" if isinstance(value, list) else str(value)


def _other_settings(probe: Probe, record: Record) -> list[str]:
    """Names of settings that are not the plan's."""
    there = record["subject"] | record["settings"]
    asked = json.loads(json.dumps(probe.settings))
    return [name for name in asked if name != "figure" and there.get(name) != asked[name]]


def _record(folder: Path) -> Record | None:
    path = folder / "probe.json"
    if not path.exists():
        return None
    try:
        found: Record = json.loads(path.read_bytes())
        found["verdict"]["holds"], found["verdict"]["sentence"], found["num_cells"], found["figures"]
        found["settings"]["seeds"], found["subject"] | found["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record of a finished probe ({error!r}); remove its folder and run it again") from None
    return found
