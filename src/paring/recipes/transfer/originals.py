"""What the base can do: models of the original tasks, each with a head of its own, on the body that the path moves.

The body's tensors are those of the tuned model, the same memory: what is written there is there for every task, and each
further task takes the memory of its head alone.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paring.delta.align import align, located
from paring.delta.applied import memory_of
from paring.delta.base import Base
from paring.delta.blocks import same_bits
from paring.delta.change import Change
from paring.delta.errors import DeltaError
from paring.delta.files import load_delta
from paring.delta.places import Everywhere
from paring.delta.sources import MemorySource
from paring.delta.taskvector import TaskVector, ready
from paring.recipes.models import CLASSES, Loaded, processor
from paring.recipes.quiet import quiet
from paring.recipes.settings import Task, TuneSettings
from paring.recipes.transfer.rows import TaskFiles
from paring.recipes.tuned import config_of, load_tuned, settings_of
from paring.tasks.extras import require


@dataclass(frozen=True)
class Original:
    """An original task.

    Attributes:
        files: its rows.
        head: a delta of the same base with nothing but a head in it; None: the base has one.
        task, text_column, label_column, max_length: where base or head do not say.
    """

    files: TaskFiles
    head: str | None = None
    task: Task | None = None
    text_column: str | None = None
    label_column: str | None = None
    max_length: int | None = None


def load_original(name: str, original: Original, base: str, vector: TaskVector) -> tuple[Loaded, TuneSettings]:
    """The model of an original task as the base has it, in evaluation mode, and how rows become its inputs.

    Args:
        vector: of the tuned task; says what the base is.

    Raises:
        ValueError, OSError: the base cannot do the task. DeltaError: the head's delta is of another base, or more than a head.
    """
    given = {key: getattr(original, key) for key in ("task", "text_column", "label_column", "max_length")}
    if original.head is not None:
        head = load_delta(original.head)
        head.base.refuse_other(vector.base, f"--original-head {original.head}")
        if head.names or not head.new:
            changed = f"changes {head.names[0]!r} of the base" if head.names else "brings no new tensor"
            raise DeltaError(f"--original-head: {original.head} {changed}; expected a head alone, on the base as it is")
        config = config_of(head, Path(original.head), None, base)
        settings = settings_of(head, config, base, given)
        loaded = load_tuned(settings, config)
        head.apply(loaded.model)  # for good: the model is ours
        return loaded, settings
    transformers = require("transformers", "scoring a delta on data")
    try:
        config = transformers.AutoConfig.from_pretrained(base).to_dict()
        settings = settings_of(TaskVector({}, Base({})), config, base, given)
    except ValueError as error:
        if given["task"] is not None:
            raise
        raise ValueError(
            f"the original task {name!r}: the base {base} does not say what it is for ({str(error).splitlines()[0]}); "
            f"give it with --original-task [NAME=]TASK ({', '.join(CLASSES)}), "
            "or a delta with a head for it with --original-head"
        ) from None
    with quiet():
        model, info = getattr(transformers, CLASSES[settings.task]).from_pretrained(
            base, dtype="auto", output_loading_info=True
        )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"the original task {name!r}: the base {base} has no {missing[0]!r}, so it cannot do {settings.task} as it is; "
            "expected a base with a head, or --original-head [NAME=]DELTA, a delta with one for this base"
        )
    return Loaded(model.eval(), processor(transformers, settings, model), ()), settings


def share_body(model: nn.Module, body: nn.Module, own: Collection[str], moved: Collection[str], what: str) -> None:
    """Puts the tensors of ``body`` in the place of those of ``model`` that are bitwise the same, names being equal.

    Args:
        own: names of tensors of ``body`` that belong to its task, its head: these are not shared.
        moved: names of tensors of ``body`` that the path moves.
        what: the original task, for an error.

    Raises:
        ValueError: a tensor that is moved is another one in ``model``, or none of them is part of it.
    """
    names = list(model.state_dict(keep_vars=True))
    theirs = dict(body.state_dict(keep_vars=True))
    ours = dict(model.state_dict(keep_vars=True))
    found = {name: there for name, there in align(names, theirs).items() if there not in own}
    first: dict[tuple[int, ...], Tensor] = {}
    for name, there in found.items():
        a, b = ours[name], theirs[there]
        if a.shape == b.shape and a.dtype == b.dtype and same_bits(a.detach(), b.detach()):
            first.setdefault(memory_of(a), b)
        elif there in moved:
            raise ValueError(
                f"{what}: its model has other values of {name!r} than the tuned task's; expected those of one base"
            )
    shared = {memory_of(tensor) for tensor in first.values()}
    if not any(memory_of(theirs[name]) in shared for name in moved):
        raise ValueError(f"{what}: its model has none of the tensors that the delta changes; expected one of the same body")
    for name in names:  # by memory: what is tied stays tied
        if (tensor := first.get(memory_of(ours[name]))) is not None:
            module, _, leaf = name.rpartition(".")
            holder: Any = model.get_submodule(module)
            (holder._parameters if leaf in holder._parameters else holder._buffers)[leaf] = tensor


def with_own_head(vector: TaskVector, model: nn.Module) -> TaskVector:
    """The task vector with its head as new tensors, as they are in the fine-tune, and a base without them.

    Args:
        model: the base, made for the tuned task.

    Raises:
        ValueError: the model does not say what its head is, or the delta does not change it.
    """
    prefix = getattr(model, "base_model_prefix", "")
    if not prefix or getattr(model, prefix, None) is None or getattr(model, "can_generate", lambda: False)():
        raise ValueError(f"own head: {type(model).__name__} has no head of a task beside its body; leave --own-head out")
    source = MemorySource(model)
    found = vector.base.places_in(source)
    heads = [name for name in vector.changes if not located(name, found).startswith(f"{prefix}.")]
    if not heads:
        raise ValueError("own head: the delta changes no head; leave --own-head out")
    changes = dict(vector.changes)
    for name in heads:
        change = vector.change(name)
        if change.kind == "new":
            continue
        whole = source.tensor(located(name, found)).clone()
        with torch.no_grad():
            change.places.scatter_(whole, change.after(change.places.gather(whole), f"'{name}'"))
        values = Everywhere(whole.numel()).gather(whole)
        changes[name] = ready(Change(change.shape, change.dtype, "new", Everywhere(whole.numel()), values))
    left = {name: facts for name, facts in vector.base.tensors.items() if name not in heads}
    tied = {alias: name for alias, name in vector.base.tied.items() if name in left}
    return TaskVector(changes, Base(left, tied, vector.base.origin), vector.removed, vector.facts)
