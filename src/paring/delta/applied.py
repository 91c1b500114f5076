"""A task vector on a model, in place, and the way back.

Everything is checked before anything is written: that the model is the base (names, types, shapes and content), and that
its tensors can take every change. Should a write fail all the same, what was written is taken back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from torch import Tensor, nn

from paring.delta.align import located
from paring.delta.change import unchanged
from paring.delta.checkpoint.fingerprint import tensor_hash
from paring.delta.claims import refuse_claimed
from paring.delta.errors import DeltaError
from paring.delta.names import split_part
from paring.delta.places import Places, same_places
from paring.delta.sources import MemorySource
from paring.delta.taskvector import TaskVector


@dataclass(frozen=True)
class Written:
    """Entries that were changed in one tensor: what stood there before, and a hash of what was written."""

    tensor: Tensor
    name: str
    places: Places
    before: Tensor
    after_hash: str


class Applied:
    """A task vector that is on a model; leave with ``revert`` or a ``with`` block."""

    def __init__(self, model: nn.Module, written: list[Written]) -> None:
        self._model, self._written = model, written
        self.reverted = False

    def revert(self) -> None:
        """Puts back, bitwise, what stood in the model before.

        Raises:
            DeltaError: the entries have changed since; nothing is changed then. RuntimeError: it was reverted already, or
                a session is open on the model.
        """
        if self.reverted:
            raise RuntimeError("this task vector was taken off the model already")
        refuse_claimed(self._model, "the delta cannot be taken back")
        for w in self._written:
            if tensor_hash([w.places.gather(w.tensor)]) != w.after_hash:
                raise DeltaError(f"'{w.name}' has changed since the delta was applied: nothing is taken back; undo that first")
        _restore(self._written)
        self.reverted = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.reverted:
            self.revert()


def apply(vector: TaskVector, model: nn.Module) -> Applied:
    """See ``TaskVector.apply``."""
    refuse_claimed(model, "the delta cannot be applied")
    source = MemorySource(model)
    found = vector.base.check(source)
    tensors = {name: room(vector, source, found, name) for name in vector.changes}
    written: list[Written] = []
    by_memory: dict[tuple[int, ...], Written] = {}
    try:
        for name, change in vector.load_all():
            first = by_memory.get(memory_of(tensors[name]))  # tied here, and two tensors where the delta was made
            if first is not None and not same_places(change.places, first.places):
                raise DeltaError(told_apart(first.name, name))
            before = change.places.gather(tensors[name]) if first is None else first.before
            after = change.after(before, f"'{name}'")
            made = Written(tensors[name], name, change.places, before, tensor_hash([after]))
            if first is not None:
                if made.after_hash != first.after_hash:
                    raise DeltaError(told_apart(first.name, name))
                continue
            written.append(by_memory.setdefault(memory_of(tensors[name]), made))
            change.places.scatter_(tensors[name], after)
    except BaseException:
        _restore(written)
        raise
    return Applied(model, written)


def state_with(vector: TaskVector, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See ``TaskVector.applied_to``."""
    source = MemorySource(state)
    found, tied = vector.base.check(source), source.tied()
    gone, out = set(vector.removed), {}
    for name, tensor in state.items():
        if name not in gone:
            out[name] = tensor
    for name, change in vector.load_all():
        if change.kind == "new":
            out[name] = change.values.view(change.shape).clone()
            continue
        if unchanged(change):
            continue
        there = located(name, found)
        whole, index = split_part(there) if there not in out else (there, -1)
        if out[whole] is state[whole]:
            out[whole] = state[whole].detach().clone()
        target = out[whole] if index < 0 else out[whole][index]
        change.places.scatter_(target, change.after(change.places.gather(target), f"'{name}'"))
    return out | {alias: out[name] for alias, name in tied.items() if alias in out}


def take_back(vector: TaskVector, model: nn.Module) -> None:
    """See ``TaskVector.revert``, for a model that this process has not put the task vector on."""
    refuse_claimed(model, "the delta cannot be taken back")
    if not vector.exact:
        raise DeltaError(
            "the delta was not applied to this model here, and differences in numbers cannot be taken back bitwise; "
            "keep what apply() returns"
        )
    source = MemorySource(model)
    found = vector.base.places_in(source)
    tensors = {name: room(vector, source, found, name) for name in vector.changes}
    written: list[Written] = []
    seen: set[tuple[int, ...]] = set()
    try:
        for name, change in vector.load_all():
            if (change.kind == "new" and change.before is None) or memory_of(tensors[name]) in seen:
                continue
            seen.add(memory_of(tensors[name]))
            after = change.places.gather(tensors[name])
            before = change.before() if change.kind == "new" and change.before is not None else change.back(after)
            written.append(Written(tensors[name], name, change.places, after, ""))
            change.places.scatter_(tensors[name], before)
        vector.base.check(source)
    except BaseException as error:
        _restore(written)
        if isinstance(error, DeltaError):
            raise DeltaError(f"this model is not the base with the delta on it, so nothing is taken back: {error}") from None
        raise


def room(vector: TaskVector, source: MemorySource, found: dict[str, str], name: str) -> Tensor:
    """The model's tensor that the change of this name goes into."""
    lazy = vector.changes[name]
    try:
        tensor = source.tensor(located(name, found))
    except (KeyError, IndexError):
        raise DeltaError(
            f"{source.called} has no tensor '{name}', which the delta brings; make the model with that head (AutoModelFor…), "
            "or restrict the task vector with only()"
        ) from None
    if tensor.shape != lazy.shape or tensor.dtype != lazy.dtype:
        raise DeltaError(
            f"{source.called}: '{name}' is {list(tensor.shape)} {tensor.dtype}, the delta's is {list(lazy.shape)} {lazy.dtype}"
        )
    return tensor


def memory_of(tensor: Tensor) -> tuple[int, ...]:
    """Equal for tied tensors."""
    return (tensor.data_ptr(), *tensor.shape, -1, *tensor.stride())


def told_apart(first: str, second: str) -> str:
    """The error for a delta that changes one tensor of a model differently under two of its names."""
    return f"'{first}' and '{second}' are one tensor in this model, and the delta changes them differently; untie them first"


def _restore(written: Sequence[Written]) -> None:
    for w in reversed(written):  # of what was written twice, the first knows what stood there
        w.places.scatter_(w.tensor, w.before)
