"""A delta applied to a checkpoint on disk: tensor by tensor, into a new checkpoint beside the old."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from torch import Tensor

from paring.delta.checkpoint.read import open_checkpoint
from paring.delta.checkpoint.tensorinfo import TensorInfo
from paring.delta.checkpoint.write import write_checkpoint
from paring.delta.errors import DeltaError
from paring.delta.names import split_part
from paring.delta.places import Everywhere
from paring.delta.sources import CheckpointSource
from paring.delta.taskvector import TaskVector

Report = Callable[[int], None]

_AHEAD = 2  # tensors made while another is written


def apply_to_checkpoint(
    base: str | Path,
    vector: TaskVector,
    out: str | Path,
    *,
    shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
    report: Report = lambda num_bytes: None,
) -> list[Path]:
    """Writes ``base`` + ``vector`` as a checkpoint, with the base's configuration and tokenizer files.

    Args:
        base: a checkpoint on disk, or a name in the hub's local cache: the one the task vector was made on.
        out: a new folder, or a new ``.safetensors`` file.
        shard_bytes: the most bytes of a file of the output.
        overwrite: whether an old ``out`` is replaced (all at once, when the new one is whole).
        report: is told of bytes shortly before they are written, by one thread at a time.

    Returns:
        The files written.

    Raises:
        DeltaError: another base, or a damaged delta. FileExistsError: ``out`` is there. Nothing is written then.
    """
    checkpoint = open_checkpoint(base)
    source = CheckpointSource(checkpoint, base)
    found = vector.base.check(source)
    plan = outline(vector, source, found)
    parts = changes_of(vector, source, plan)

    reporting = Lock()

    def content(name: str) -> Iterator[Tensor]:
        tensor = made(vector, source, plan[name], parts.get(plan[name].name, []))
        with reporting:
            report(tensor.numel() * tensor.itemsize)
        yield tensor

    infos = [(name, planned.info) for name, planned in plan.items()]
    return write_checkpoint(
        Path(out),
        infos,
        content,
        shard_bytes=shard_bytes,
        source=checkpoint.folder,
        overwrite=overwrite,
        files=_files(vector),
        ahead=_AHEAD,
    )


class Planned(NamedTuple):
    """A tensor of the output: what it is, its name in the base (None: it is new), and in the delta."""

    info: TensorInfo
    there: str | None
    name: str


def outline(vector: TaskVector, source: CheckpointSource, found: Mapping[str, str]) -> dict[str, Planned]:
    """The tensors of the output by name, in the base's order, new ones last."""
    ours = {there: name for name, there in found.items()}
    rename = _renaming(found)
    removed, plan = set(vector.removed), {}
    for there in source.names():
        name = ours.get(there) or rename(there)
        if there not in removed and name not in vector.new:
            plan[name] = Planned(TensorInfo(*source.extent(there)), there, name)
    for alias, there in source.tied().items():  # a file that has a tied tensor under each of its names keeps them
        name, aliased = ours.get(there) or rename(there), rename(alias)
        if alias not in removed and aliased not in plan and aliased not in vector.new:
            plan[aliased] = Planned(TensorInfo(*source.extent(there)), there, name)
    for name in vector.new:
        lazy = vector.changes[name]
        plan[name] = Planned(TensorInfo(lazy.dtype, lazy.shape), None, name)
    return plan


def changes_of(vector: TaskVector, source: CheckpointSource, plan: Mapping[str, Planned]) -> dict[str, list[str]]:
    """For each planned tensor (by its name in the delta) the changes of it, or of parts of it.

    Raises:
        DeltaError: a change of a tensor that is not there.
    """
    parts: dict[str, list[str]] = {}
    for name in vector.changes:
        whole = name if name in plan else split_part(name)[0]
        if whole not in plan:
            raise DeltaError(f"{source.called} has no tensor '{whole}', which the delta changes")
        parts.setdefault(whole, []).append(name)
    return parts


def _renaming(found: Mapping[str, str]) -> Callable[[str], str]:
    """From names in the base to names in the delta, as ``align`` found them: the same, a prefix more, or one less."""
    for name, there in found.items():
        if name != there and name.endswith(there):
            more = name.removesuffix(there)
            return lambda n: more + n
        if name != there and there.endswith(name):
            less = there.removesuffix(name)
            return lambda n: n.removeprefix(less)
    return lambda n: n


def made(vector: TaskVector, source: CheckpointSource, planned: Planned, changes: list[str]) -> Tensor:
    """A tensor of base + delta, in memory of its own."""
    if planned.there is None:
        return vector.change(planned.name).values.view(planned.info.shape)
    tensor = source.tensor(planned.there)
    for part in changes:
        change = vector.change(part)
        if part == planned.name and isinstance(change.places, Everywhere):
            tensor = change.after(tensor.view(-1), f"'{part}'").view(tensor.shape)
            continue
        target = tensor if part == planned.name else tensor[split_part(part)[1]]
        after = change.after(change.places.gather(target), f"'{part}'")
        change.places.scatter_(target, after)
    return tensor


def _files(vector: TaskVector) -> dict[str, bytes]:
    """Files that the delta brings: the fine-tune's configuration, in place of the base's."""
    config = vector.facts.get("config")
    return {"config.json": json.dumps(config, indent=2).encode() + b"\n"} if isinstance(config, dict) else {}
