"""One base in memory, many deltas beside it.

    bank = paring.Bank(model, "deltas/")      # the model is the base; the folder holds TASK.delta.safetensors
    bank.activate("legal")                    # the model is now base + legal, bitwise
    bank.activate("medical")                  # only entries of the two are touched
    bank.deactivate()                         # bitwise the base

    with bank.use("legal") as model:          # and nobody swaps while this block runs
        model.generate(...)

A swap writes the base's entries under the leaving delta, then the entering delta's. Both are kept as they are in the base and
in the tuned model, made once when a delta is first used: so a swap computes nothing, and no rounding adds up however often
one swaps. Running forwards are waited for.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from paring.bank.found import find_deltas
from paring.bank.lock import SwapLock
from paring.bank.masked import SUFFIX as _MASKED
from paring.bank.masked import Common, Masked, MaskedEntries, open_masked
from paring.delta.align import located
from paring.delta.applied import memory_of, room, told_apart
from paring.delta.blocks import same_bits
from paring.delta.change import without_zeros
from paring.delta.claims import refuse_claimed
from paring.delta.errors import DeltaError
from paring.delta.files import load_delta
from paring.delta.places import Places, same_places
from paring.delta.sources import MemorySource
from paring.delta.taskvector import TaskVector


@dataclass(frozen=True)
class Entries:
    """What one delta writes into one tensor, and what stands there in the base."""

    name: str
    places: Places
    before: Tensor
    after: Tensor


Prepared = Entries | MaskedEntries


class _Known(MemorySource):
    """The model's tensors, with the hashes that they had as the base."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._hashes = {name: super(_Known, self).hash(name) for name in self.names()}

    def hash(self, name: str) -> str:
        return self._hashes[name]


class Bank:
    """See the module's text.

    Args:
        model: the base, alone or inside what uses it (a ``transformers`` pipeline's ``.model``); changed in place.
        folder: deltas to begin with: every ``NAME.delta.safetensors`` in it, every folder of shards, and every task
            ``NAME.mask.safetensors`` of a shared vector.

    Raises:
        DeltaError: a delta is damaged or was made on another base. RuntimeError: a session is open on the model.
    """

    def __init__(self, model: nn.Module, folder: str | Path | None = None) -> None:
        refuse_claimed(model, "a bank cannot be made of this model")
        self.model = model
        self._source = _Known(model)
        self._vectors: dict[str, tuple[TaskVector, dict[str, str]]] = {}
        self._masked: dict[str, Masked] = {}
        self._common: WeakValueDictionary[str, Common] = WeakValueDictionary()
        self._prepared: dict[str, tuple[Prepared, ...]] = {}
        self._active: str | None = None
        self._on: tuple[Prepared, ...] = ()  # the entries of the active delta, also when they were unloaded meanwhile
        self._home: str | None = None  # what is active outside of `use`
        self._users, self._mutex = 0, Lock()
        self._lock = SwapLock()
        self._hooks = (
            model.register_forward_pre_hook(self._forward_begins, prepend=True),
            model.register_forward_hook(self._forward_ends, always_call=True),
        )
        for name, path in (find_deltas(folder) if folder is not None else {}).items():
            self.add(name, path)

    # Which deltas there are.

    @property
    def active(self) -> str | None:
        """The name of the delta that is on the model; None: the model is the base."""
        return self._active

    def list(self) -> list[str]:
        """The names of all deltas, sorted."""
        return sorted(self._vectors)

    def add(self, name: str, delta: TaskVector | str | Path) -> None:
        """Adds a delta under ``name``: a task vector, or a file. Its entries are read when it is first used.

        Raises:
            ValueError: the name is taken. DeltaError: the delta is damaged, or was made on another base.
        """
        if name in self._vectors:
            raise ValueError(f"the bank has a delta {name!r} already; remove it first, or take another name")
        masked = None if isinstance(delta, TaskVector) or not str(delta).endswith(_MASKED) else open_masked(delta)
        vector = masked.vector if masked else delta if isinstance(delta, TaskVector) else load_delta(delta)
        try:
            found = vector.base.check(self._source)
            for tensor in vector.changes:
                room(vector, self._source, found, tensor)
        except DeltaError as error:
            raise DeltaError(f"delta {name!r}: {error}") from None
        self._vectors[name] = vector, found
        if masked:
            self._masked[name] = masked

    def remove(self, name: str) -> None:
        """Forgets a delta; the active one is taken off the model first."""
        self._refuse_unknown(name)
        if self._active == name:
            self.deactivate()
        del self._vectors[name]
        self._masked.pop(name, None)
        self._prepared.pop(name, None)

    def unload(self, name: str) -> None:
        """Frees the memory of a delta's entries; they are read again when it is next used."""
        self._refuse_unknown(name)
        self._prepared.pop(name, None)

    # Swapping.

    def activate(self, name: str, *, timeout: float | None = None) -> None:
        """Makes the model bitwise base + ``name``, once no forward is running.

        Args:
            timeout: seconds to wait for running forwards; None: as long as it takes.

        Raises:
            KeyError: there is no such delta. BankBusy: forwards still run after ``timeout``, or this thread is in one.
            DeltaError: the delta is damaged, or changes a tied tensor differently under two names.
            The model is as it was in each of these cases.
        """
        self._refuse_unknown(name)
        self._lock.write(timeout)
        try:
            self._swap(name)
            self._home = name
        finally:
            self._lock.written()

    def deactivate(self, *, timeout: float | None = None) -> None:
        """Makes the model bitwise the base. Raises as ``activate``."""
        self._lock.write(timeout)
        try:
            self._swap(None)
            self._home = None
        finally:
            self._lock.written()

    @contextmanager
    def use(self, name: str, *, timeout: float | None = None) -> Iterator[nn.Module]:
        """Base + ``name`` for as long as the block runs: other threads' swaps wait. Then what was last activated.

        Threads may use the same delta side by side, once each is in; the last one out swaps back.
        """
        self._refuse_unknown(name)
        if not self._joined(name):
            self._lock.write(timeout)
            try:
                self._swap(name)
            except BaseException:
                self._lock.written()
                raise
            with self._mutex:
                self._users += 1
            self._lock.written(then_read=True)
        try:
            yield self.model
        finally:
            self._lock.done()
            self._leave()

    def close(self) -> None:
        """Takes the active delta off and the bank's hooks out: the model is plain again."""
        self.deactivate()
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> "Bank":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Bank({type(self.model).__name__}, {len(self._vectors)} deltas, active: {self._active!r})"

    # Inside.

    def _swap(self, name: str | None) -> None:
        """From the active delta to ``name`` (None: the base); either whole or not at all."""
        if name == self._active:
            return
        refuse_claimed(self.model, "the bank cannot swap")
        previous, self._active = self._active, None
        if previous is not None:
            self._take_off(self._on)
        if name is None:
            return
        try:
            if name not in self._prepared:
                self._prepared[name] = self._prepare(name)
            self._on = self._prepared[name]
            for e in self._on:
                e.places.scatter_(self._source.tensor(e.name), e.after)
            self._active = name
        except BaseException:
            if name in self._prepared:
                self._take_off(self._prepared[name])
            if previous is not None:
                self._swap(previous)
            raise

    def _prepare(self, name: str) -> tuple[Prepared, ...]:
        """The entries of base + delta; the model is the base now."""
        vector, found = self._vectors[name]
        masked = self._masked.get(name)
        common = self._common.setdefault(masked.shared_id, Common(masked.shared)) if masked else None
        prepared: dict[tuple[int, ...], Prepared] = {}
        names: dict[tuple[int, ...], str] = {}
        for tensor_name, lazy in vector.changes.items():
            there = located(tensor_name, found)
            tensor, where = self._source.tensor(there), f"delta {name!r}: '{tensor_name}'"
            if tensor.dtype != lazy.dtype or tensor.shape != lazy.shape:
                raise DeltaError(f"{where} of the model has become {list(tensor.shape)} {tensor.dtype}")
            made: Prepared
            if masked and common and tensor_name in masked.masked:
                change, before = common.held(tensor_name, tensor)
                made = MaskedEntries(there, common, change, before, masked.bits(tensor_name), masked.scale, where)
                made.after  # noqa: B018 - an error shows before anything is written
            else:
                change = without_zeros(lazy.load())
                before = change.places.gather(tensor)
                made = Entries(there, change.places, before, change.after(before, where))
            key = memory_of(tensor)
            first = prepared.setdefault(key, made)  # another name's, where both are one tensor here
            if first is not made and not (same_places(first.places, made.places) and same_bits(first.after, made.after)):
                raise DeltaError(f"delta {name!r}: {told_apart(names[key], tensor_name)}")
            names.setdefault(key, tensor_name)
        return tuple(prepared.values())

    def _take_off(self, entries: Iterable[Prepared]) -> None:
        for e in entries:
            e.places.scatter_(self._source.tensor(e.name), e.before)

    def _joined(self, name: str) -> bool:
        """Whether ``name`` is in use by another thread, which this one now reads beside."""
        with self._mutex:
            if not self._users or self._active != name or not self._lock.try_read():
                return False
            self._users += 1
            return True

    def _leave(self) -> None:
        """The end of a ``use``: the last one out swaps back."""
        with self._mutex:
            self._users -= 1
            if self._users:
                return
        self._lock.write(None)
        try:
            if not self._users:  # nobody came in while we waited
                self._swap(self._home)
        finally:
            self._lock.written()

    def _refuse_unknown(self, name: str) -> None:
        if name not in self._vectors:
            raise KeyError(f"the bank has no delta {name!r}; it has {', '.join(map(repr, self.list())) or 'none'}")

    @torch.compiler.disable
    def _forward_begins(self, *_: Any) -> None:
        self._lock.read()

    @torch.compiler.disable
    def _forward_ends(self, *_: Any) -> None:
        self._lock.done()
