"""A delta's model card: a README.md in the form of the Hugging Face hub, from what the delta itself says."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from paring.delta.base import Base
from paring.delta.change import unchanged
from paring.delta.files import load_delta
from paring.delta.inspect import Row, Summary, summarise
from paring.delta.taskvector import TaskVector

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")
_LONGEST = 200


def card(what: TaskVector | str | Path) -> str:
    """The model card of a task vector, or of a delta file or folder (which adds its bytes and a table by layer).

    Raises:
        DeltaError: the file is no delta, or a damaged one. FileNotFoundError: no such file.
    """
    summary = None if isinstance(what, TaskVector) else summarise(what)
    vector = what if isinstance(what, TaskVector) else load_delta(what)
    name = summary.path.name if summary else "task.delta.safetensors"
    lines = [
        *front_matter(vector, "paring", ("paring", "delta", "task-vector")),
        f"# {_title(vector, summary)}",
        "",
        "What a fine-tune adds to its base, without the base: a *delta*. It applies to that base and refuses any other.",
        "",
        *_facts(vector, summary),
        "",
        "## How to apply it",
        "",
        "```python",
        "import paring",
        "",
        f"delta = paring.load_delta({json.dumps(name)})",
        "applied = delta.apply(model)   # model: the base, of the tuned model's class; changed in place",
        "applied.revert()               # bitwise the base again",
        "```",
        "",
        "On disk, as a checkpoint of its own:",
        "",
        "```sh",
        f"paring apply {vector.base.origin if hub_name(vector) else 'BASE'} {shlex.quote(name)} tuned/",
        "```",
        "",
        *(_table(summary.rows) if summary else ()),
    ]
    return "\n".join(lines).rstrip() + "\n"


def front_matter(vector: TaskVector, library: str, tags: Sequence[str]) -> list[str]:
    """The YAML block at a card's head: the base's name on the hub and the licence where they are known."""
    lines = ["---"]
    if base := hub_name(vector):
        lines += [f"base_model: {json.dumps(base)}", "base_model_relation: adapter"]
    licence = vector.facts.get("licence", vector.facts.get("license"))
    if isinstance(licence, str) and licence:
        if _LICENCE.fullmatch(licence):
            lines.append(f"license: {json.dumps(licence.lower())}")
        else:
            lines += ["license: other", f"license_name: {json.dumps(licence)}"]
    return [*lines, f"library_name: {library}", "tags:", *(f"- {tag}" for tag in tags), "---", ""]


def hub_name(vector: TaskVector) -> str | None:
    """The base's name on the hub, where it was found under it; None for a local folder, of which only the last name is kept."""
    name = vector.base.origin.partition("@")[0]
    return name if HUB_NAME.fullmatch(name) else None


def base_facts(base: Base) -> list[str]:
    """Rows of a table: where the base was found, and by what it is known again."""
    origin = [f"| found at | {cell(base.origin)} |"] if base.origin else []
    return [*origin, f"| base's fingerprint | `{base.total}` ({len(base.tensors)} tensors) |"]


def _facts(vector: TaskVector, summary: Summary | None) -> Iterator[str]:
    yield from ("| | |", "|---|---|", *base_facts(vector.base))
    changed = len(vector.names) if summary else sum(not unchanged(vector.change(n)) for n in vector.names)
    yield f"| changes | {changed} tensors of the base, {len(vector.new)} new ones |"
    if vector.exact:
        yield "| exactness | base + delta is bitwise the fine-tune |"
    else:
        yield "| exactness | differences are rounded numbers |"
    if vector.removed:
        yield f"| left out of the base | {cell(', '.join(vector.removed))} |"
    if summary:
        entries, kept = sum(r.entries for r in summary.rows), sum(r.kept for r in summary.rows)
        yield f"| keep | {kept:,} of {entries:,} entries of these tensors ({kept / entries if entries else 0:.4g}) |"
        yield f"| size | {summary.num_bytes:,} bytes, {summary.bits_per_parameter:.3f} bits for each parameter of the model |"
        yield f"| written by | {cell(summary.manifest.tool)} |"
    for key, value in vector.facts.items():
        if key != "config":  # the fine-tune's whole config.json
            yield f"| {cell(key)} | {cell(value)} |"


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield from ("## Layer by layer", "", "| layer | tensors | entries | kept | bytes | coding |", "|---|--:|--:|--:|--:|---|")
    for r in rows:
        yield f"| {cell(r.name)} | {r.tensors:,} | {r.entries:,} | {r.kept:,} | {r.stored:,} | {cell(r.coding)} |"


def _title(vector: TaskVector, summary: Summary | None) -> str:
    of = f" of {base}" if (base := hub_name(vector)) else ""
    if summary is None:
        return f"A delta{of}"
    return f"{cell(summary.path.name.removesuffix('.safetensors').removesuffix('.delta'))}: a delta{of}"


def cell(value: Any) -> str:
    """Text for one cell of a table: one line, no markup that would break it."""
    text = (
        value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False)
        if isinstance(value, Mapping | list)
        else str(value)
    )
    text = " ".join(text.split())
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return re.sub(r"([|<>`\[\]\\])", r"\\\1", text)
