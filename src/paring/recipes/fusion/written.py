"""What a merge with rows leaves beside its weights: each task's head, what was searched, a longer model card.

    heads/NAME.delta.safetensors    what a task has of its own, a delta of the merged model: `paring apply OUT OUT/heads/NAME…`
                                    gives the task's whole model
    paring-fuse-search.json         every score
    README.md                       with the tasks' scores

The configuration in ``paring-fuse.yml`` is the one that was found, so that it makes the merge again without rows or search; of
a fitted merge the one that it began with.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from paring.delta.align import align, located
from paring.delta.base import Base, TensorFacts, dtype_name
from paring.delta.card import cell
from paring.delta.change import Change, exact_change
from paring.delta.checkpoint.companions import is_text, module_folders
from paring.delta.checkpoint.read import open_checkpoint
from paring.delta.files import save_delta
from paring.delta.places import Everywhere
from paring.delta.sources import CheckpointSource, MemorySource, Source
from paring.delta.taskvector import Lazy, TaskVector, ready
from paring.files import put_in_place, sync
from paring.fuse.output import refuse_present
from paring.fuse.record import CARD, RECORD
from paring.recipes.fusion.problem import One
from paring.recipes.slim.output import SUFFIX

HEADS, SEARCH = "heads", "paring-fuse-search.json"


def under_way(out: Path) -> Path:
    """Where the merged model is until it has its heads."""
    return out.with_name(f".{out.name}.merged")


def refuse_there(out: Path, overwrite: bool) -> None:
    """As ``paring.fuse.output.refuse_present``; but what an earlier search wrote may be overwritten, heads and all."""
    heads = out / HEADS
    if overwrite and (out / SEARCH).is_file() and (not heads.exists() or (heads.is_dir() and _only_deltas(heads))):
        ours = {heads, *(f for f in module_folders(out) if all(is_text(p) for p in f.iterdir()))}
        if all(path in ours for path in out.iterdir() if path.is_dir()):
            return
    refuse_present(out, overwrite)


def finish(
    merged: Path,
    out: Path,
    tasks: Sequence[One],
    base: Source,
    record: Mapping[str, Any],
    table: Sequence[str],
    scores: Mapping[str, Mapping[str, Any]],
    overwrite: bool,
    vectors: Mapping[str, TaskVector],
    fitted: Mapping[str, Mapping[str, Tensor]],
) -> list[str]:
    """Puts everything beside the merged weights, and the folder in its place.

    Args:
        merged: the folder that ``paring.fuse.engine`` wrote. base: of the tasks.
        table: lines for the card. scores: of the merge, by task, for the heads' facts.
        vectors: what was merged, whose heads these are. fitted: of heads that were tuned with the body, by task and name in
            its model.

    Returns:
        Names of the heads.
    """
    source = CheckpointSource(open_checkpoint(merged), out)
    written = []
    for task in tasks:
        if not task.own:
            continue
        facts = {k: v for k, v in task.vector.facts.items() if k in ("config", "settings")}
        facts |= {"config": dict(task.config), "method": "head of a merge", "task": task.name, "scores": scores[task.name]}
        path = merged / HEADS / f"{task.name}{SUFFIX}"
        vector = vectors[task.name]
        if values := fitted.get(task.name):
            vector, facts = _with_head(vector, task.side.model, values), facts | {"fitted": True}
        save_delta(head(vector, base, source), path, facts)
        written.append(f"{HEADS}/{path.name}")
    (merged / SEARCH).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    card = (merged / CARD).read_text("utf-8")
    (merged / CARD).write_text(card + "\n".join(_section(table, written, record)) + "\n", "utf-8")
    for path in merged.rglob("*"):
        sync(path)
    put_in_place(merged, out, overwrite)
    shutil.rmtree(merged, ignore_errors=True)  # the old one, where there was one
    return written


def clear(merged: Path) -> None:
    """Removes what a run left there that was killed between its last two steps."""
    if (merged / RECORD).is_file():
        shutil.rmtree(merged)


def head(vector: TaskVector, base: Source, merged: Source) -> TaskVector:
    """What a task has of its own, on the merged model.

    Args:
        vector: of the fine-tune on ``base``; its new tensors are the head. merged: has the names of ``base``.
    """
    found = vector.base.places_in(base)
    tensors = {name: _facts(merged, found[name]) for name in vector.base.tensors}
    changes: dict[str, Lazy] = {}
    for name in vector.new:
        there = align([name], {*merged.names(), *merged.tied()}).get(name)
        if there is None:
            changes[name] = vector.changes[name]
            continue
        tensors[name], change = _facts(merged, there), vector.change(name)  # the merge of the heads stands in its place
        before, places = merged.tensor(there), Everywhere(change.values.numel())
        changes[name] = ready(exact_change(before.view(-1), change.values, places, change.shape))
    return TaskVector(changes, Base(tensors, vector.base.tied, merged.origin), vector.removed)


def _with_head(vector: TaskVector, model: nn.Module, values: Mapping[str, Tensor]) -> TaskVector:
    """The task vector with other values of its head; by name in the model."""
    found, changes = vector.base.places_in(MemorySource(model)), dict(vector.changes)
    there = {name: at for name in vector.new if (at := located(name, found)) in values}
    if left := values.keys() - there.values():
        raise ValueError(f"'{min(left)}' was tuned as part of a head, and the task vector brings no such tensor")
    for name, at in there.items():
        places = Everywhere(values[at].numel())
        changes[name] = ready(Change(values[at].shape, values[at].dtype, "new", places, places.gather(values[at].cpu())))
    return TaskVector(changes, vector.base, vector.removed, vector.facts)


def _facts(source: Source, name: str) -> TensorFacts:
    dtype, shape = source.extent(name)
    return TensorFacts(dtype_name(dtype), tuple(shape), source.hash(name))


def _section(table: Sequence[str], heads: Sequence[str], record: Mapping[str, Any]) -> list[str]:
    names = ", ".join(cell(name) for name in record["rows"])
    lines = ["", "## Weights found by search" if record["searched"] else "## Chosen on rows", ""]
    lines += [f"On calibration rows of {names}, chosen on validation rows ({record['objective']} over tasks); `{SEARCH}` has "]
    lines[-1] += "every score."
    lines += ["", "```", *table, "```"]
    if heads:
        fit = next((a["fit"] for a in record["tried"] if a["label"] == record["chosen"]), None)
        tuned = ", tuned with the body" if fit and fit["head_entries"] else ""
        lines += [
            "",
            f"Each task keeps its own head{tuned}: `paring apply FOLDER FOLDER/heads/NAME.delta.safetensors OUT` writes its "
            "model.",
        ]
    return lines


def _only_deltas(folder: Path) -> bool:
    return all(p.is_file() and p.name.endswith(SUFFIX) for p in folder.iterdir())
