"""The model at any place of theta_pre + lambda * tau, in place.

Everything is read and checked once. A place then costs one pass over the entries that tau changes (of a pruned one: over those
that are kept): what stood in the base, plus lambda times the difference, in fp32, rounded to the tensor's type. Nothing is
loaded again, and no error gathers: every place is computed from the base's own entries. Lambda 1 is what the delta gives
(bitwise the fine-tune, where it is exact), lambda 0 bitwise the base but for new tensors: they are no differences and stand
there whole.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from paring.delta.applied import memory_of, room, told_apart
from paring.delta.change import Change
from paring.delta.claims import refuse_claimed
from paring.delta.errors import DeltaError
from paring.delta.places import Scattered, same_places
from paring.delta.sources import MemorySource
from paring.delta.taskvector import TaskVector


@dataclass(frozen=True, eq=False)
class _Moved:
    """One tensor of the model, what changes in it, and what stood there."""

    name: str
    tensor: Tensor
    change: Change
    before: Tensor

    def write(self, lam: float) -> None:
        if lam == 0:
            after = self.before
        elif lam == 1:
            after = self.change.after(self.before, f"'{self.name}'")
        else:
            after = self.change.real(f"'{self.name}'", lam).after(self.before, f"'{self.name}'")
        self.change.places.scatter_(self.tensor, after)


class Path:
    """A model on the path; see ``along``."""

    def __init__(self, model: nn.Module, moved: list[_Moved]) -> None:
        self.model, self._moved = model, moved

    @torch.no_grad()
    def to(self, lam: float) -> nn.Module:
        """The model at lambda.

        Raises:
            ValueError: lambda is not finite. DeltaError: an entry would leave the range of its type.
        """
        if not math.isfinite(lam):
            raise ValueError(f"lambda is {lam}; expected a finite number")
        try:
            for moved in self._moved:
                moved.write(lam)
        except DeltaError as error:
            raise DeltaError(f"at lambda {lam:g}: {error}") from None
        return self.model


@contextmanager
def along(model: nn.Module, vector: TaskVector) -> Iterator[Path]:
    """The path from a base in the direction of a task vector; on leaving, the model is bitwise as before, also by an exception.

    Takes the memory of the entries that change, once as they are in the base and once as differences.

    Args:
        model: holds the task vector's base (checked by hash), and room for its new tensors, which are put in.
        vector: whole or pruned.

    Raises:
        DeltaError: the model is not the base, or has no room for a new tensor; nothing is changed then.
        RuntimeError: a session is open on the model.
    """
    refuse_claimed(model, "the delta cannot be put on")
    source = MemorySource(model)
    found = vector.base.check(source)
    first: dict[tuple[int, ...], _Moved] = {}
    fresh: list[_Moved] = []
    for name in vector.changes:
        tensor = room(vector, source, found, name)
        change = vector.change(name)
        known = first.get(memory_of(tensor))
        if known is not None:  # tied here, and two tensors where the delta was made
            if not _same(known, change):
                raise DeltaError(told_apart(known.name, name))
            continue
        before = change.places.gather(tensor).clone()
        moved = _Moved(name, tensor, _beside(change, before), before)
        first[memory_of(tensor)] = moved
        if change.kind == "new":
            fresh.append(moved)
    differences = [moved for moved in first.values() if moved.change.kind != "new"]
    try:
        with torch.no_grad():
            for moved in fresh:
                moved.write(1)
        yield Path(model, differences)
    finally:
        with torch.no_grad():
            for moved in first.values():
                moved.change.places.scatter_(moved.tensor, moved.before)


def _beside(change: Change, before: Tensor) -> Change:
    """The change on the device of the entries that it changes, exact differences beside these."""
    return replace(_on(change, before.device), before=lambda: before)


def _on(change: Change, device: torch.device) -> Change:
    places = change.places
    if isinstance(places, Scattered):
        places = Scattered(places.positions.to(device, torch.int64))
    return replace(change, places=places, values=change.values.to(device))


def _same(known: _Moved, change: Change) -> bool:
    if known.change.kind == "new" or change.kind == "new":
        return known.change.kind == change.kind and torch.equal(known.change.values, change.values.to(known.before.device))
    if not same_places(known.change.places, _on(change, known.before.device).places):
        return False
    where = f"'{known.name}'"
    return torch.equal(known.change.after(known.before, where), change.after(known.before, where))
