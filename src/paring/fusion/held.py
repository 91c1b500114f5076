"""What tasks change in the body that their models share, held as a merge method reads it, and their heads.

Plain data without a model, so that it can travel to other processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from paring.delta.align import located
from paring.delta.applied import memory_of, room, told_apart
from paring.delta.change import Change, unchanged
from paring.delta.errors import DeltaError
from paring.delta.names import split_part
from paring.delta.places import Everywhere, Places, Scattered
from paring.delta.sources import MemorySource
from paring.delta.taskvector import TaskVector


@dataclass(frozen=True, eq=False)
class Task:
    """A task: its model, which is the base but for a head of its own, and what its fine-tune changes in it."""

    model: nn.Module
    vector: TaskVector


@dataclass(frozen=True, eq=False)
class Held:
    """What one task has in the place of a tensor of the base.

    Attributes:
        places: the entries that differ.
        values: there, flat: weights as the fine-tune stores them, or differences in fp32.
        difference: which of the two.
    """

    places: Places
    values: Tensor
    difference: bool

    def read(self, base: Tensor) -> Tensor:
        """The tensor whole, as ``paring.fuse.inputs.Inputs`` takes it: weights, or the difference; not copied if held whole."""
        if isinstance(self.places, Everywhere):
            return self.values.view(base.shape)
        out = torch.zeros(base.shape, device=base.device) if self.difference else base.clone()
        self.places.scatter_(out, self.values)
        return out

    def weights(self, base: Tensor) -> Tensor:
        """As weights: a difference in fp32 on the base."""
        found = self.read(base)
        return found + base if self.difference else found

    def to(self, device: torch.device) -> "Held":
        places = self.places
        if isinstance(places, Scattered):
            places = Scattered(places.positions.to(device))
        return Held(places, self.values.to(device), self.difference)


@dataclass(frozen=True, eq=False)
class Parts:
    """Of all tasks.

    Attributes:
        tasks: names.
        where: every tensor of the base that can be merged: its name in the output -> in the first task's model.
        held: of those that a task changes, by name in the output: for each task what it has there; None: the base's.
        heads: for each task the tensors that the base does not have, by name in its model.
        sizes: entries of every tensor of the output, in its order, those too that no task's model has (a base's own head): a
            threshold over all tensors counts them.
        beside: tensors of the output that are no part of the merge, since each task keeps its own; a threshold over all tensors
            counts them as ``paring fuse`` does, which reads the fine-tunes whole. By name in the output: the name in the first
            task's model, and what each has.
    """

    tasks: tuple[str, ...]
    where: Mapping[str, str]
    held: Mapping[str, tuple[Held | None, ...]]
    heads: tuple[Mapping[str, tuple[Places, Tensor]], ...]
    sizes: Mapping[str, int]
    beside: Mapping[str, tuple[str, tuple[Held | None, ...]]] = field(default_factory=dict)

    def on_cpu(self) -> "Parts":
        """The same, to travel."""
        cpu = torch.device("cpu")
        held = {name: tuple(None if h is None else h.to(cpu) for h in of) for name, of in self.held.items()}
        return replace(self, held=held)


def hold(tasks: Mapping[str, Task], names: Mapping[str, str] | None = None, sizes: Mapping[str, int] | None = None) -> Parts:
    """Reads the task vectors, whole, into memory.

    Args:
        tasks: by name; the models share the tensors that any of the task vectors changes, the same memory, and are the base.
        names: tensors of the base by the names that they have in the output, with those in the first task's model; None: as
            the first task vector has them.
        sizes: entries of every tensor of the output, in its order; None: the models have all of them.

    Raises:
        DeltaError: a model is not the base, or has no room for a head; a task vector changes a tensor that the models do not
            share, or one tensor differently under two names.
    """
    first = next(iter(tasks.values()))
    source = MemorySource(first.model)
    found = first.vector.base.check(source)
    named = dict(names) if names is not None else {n: found[n] for n in first.vector.base.tensors}
    where = {n: there for n, there in named.items() if source.extent(there)[0].is_floating_point}
    by_memory = {memory_of(source.tensor(there)): n for n, there in reversed(where.items())}
    held: dict[str, list[Held | None]] = {}
    heads: list[dict[str, tuple[Places, Tensor]]] = []
    for i, (task, one) in enumerate(tasks.items()):
        moved, new = _read(task, one, by_memory)
        heads.append(new)
        for name, of_task in moved.items():
            held.setdefault(name, [None] * len(tasks))[i] = of_task
    # What is a task's own is no part of a merge, also where the base has a tensor of that name.
    own = {memory_of(source.tensor(there)) for there in heads[0]}
    left = {name: there for name, there in where.items() if memory_of(source.tensor(there)) in own}
    where = {name: there for name, there in where.items() if name not in left}
    beside = {name: (there, tuple(_head(new, there) for new in heads)) for name, there in left.items()}
    ordered = {name: tuple(held[name]) for name in where if name in held}
    every = sizes if sizes is not None else {name: source.tensor(there).numel() for name, there in where.items()}
    return Parts(tuple(tasks), where, ordered, tuple(heads), dict(every), beside)


def _head(new: Mapping[str, tuple[Places, Tensor]], name: str) -> Held | None:
    return Held(*new[name], difference=False) if name in new else None


def _read(
    task: str, one: Task, by_memory: Mapping[tuple[int, ...], str]
) -> tuple[dict[str, Held], dict[str, tuple[Places, Tensor]]]:
    """What a task changes of the body, by name in the output, and its head."""
    source = MemorySource(one.model)
    found = one.vector.base.check(source)
    pieces: dict[str, list[tuple[str, int, Change, Tensor]]] = {}
    new: dict[str, tuple[Places, Tensor]] = {}
    for name, change in one.vector.load_all():
        tensor, there = room(one.vector, source, found, name), located(name, found)
        if change.kind == "new":
            new[there] = change.places, change.values
            continue
        if unchanged(change):
            continue
        if not change.dtype.is_floating_point:
            raise DeltaError(
                f"{task!r} changes '{name}', whole numbers ({change.dtype}): there is no merge of these; leave it out"
            )
        whole, index = split_part(there)
        output = by_memory.get(memory_of(source.tensor(whole)))
        if output is None:
            raise DeltaError(f"{task!r} changes '{name}', which is no tensor that the tasks' models share; expected one body")
        pieces.setdefault(output, []).append((name, index, change, tensor))
    return {name: _held(of) for name, of in pieces.items()}, new


def _held(pieces: Sequence[tuple[str, int, Change, Tensor]]) -> Held:
    """The changes of one tensor: of the whole of it, perhaps under two names, or of parts of it (``name[i]``)."""
    difference = any(change.kind == "real" for _, _, change, _ in pieces)
    found = []
    for name, index, change, tensor in pieces:
        where = f"'{name}'"
        before = change.places.gather(tensor)
        values = change.real(where).values if difference else change.after(before, where)
        found.append((name, index, change, values.to(tensor.device)))
    whole = [of for of in found if of[1] < 0]
    if not whole:
        positions = torch.cat([c.places.flat(c.shape) + index * c.shape.numel() for _, index, c, _ in found])
        order = positions.argsort()
        return Held(Scattered(positions[order]), torch.cat([v for *_, v in found])[order], difference)
    name, _, change, values = whole[0]
    for other, index, again, more in found:
        same = index < 0 and again.places.count == change.places.count and torch.equal(more, values)
        if not same or not torch.equal(again.places.flat(again.shape), change.places.flat(change.shape)):
            raise DeltaError(told_apart(name, other))
    return Held(change.places, values, difference)
