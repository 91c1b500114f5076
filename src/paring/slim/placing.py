"""Candidates on a model in place: what they keep is written in, scored, and taken out again, bitwise.

A candidate costs a gather and two scatters of the entries it keeps; nothing as large as the model is made for it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from paring.delta.align import located
from paring.delta.applied import room
from paring.delta.change import wide
from paring.delta.claims import refuse_claimed
from paring.delta.sources import MemorySource
from paring.delta.taskvector import TaskVector

Entries = tuple[str, Tensor, Tensor]  # a tensor's name, positions in it (int64, increasing), differences there


class Placing:
    """A model that is the base of ``vector``, with its new tensors (a head) put in until this is left.

    Raises:
        DeltaError: the model is another base, or has no room for a new tensor. RuntimeError: a session is open on it.
    """

    def __init__(self, model: nn.Module, vector: TaskVector) -> None:
        refuse_claimed(model, "candidates cannot be put in place")
        self.model = model
        source = MemorySource(model)
        found = vector.base.check(source)
        for name in vector.changes:
            room(vector, source, found, name)
        self._tensors = {name: source.tensor(located(name, found)) for name in vector.changes}
        named = dict(model.named_parameters(remove_duplicate=False))
        self._parameters = {name: named[at] for name in vector.changes if (at := located(name, found)) in named}
        self._new = {name: vector.change(name) for name in vector.new}
        self._before: dict[str, Tensor] = {}

    def parameters(self, names: Iterable[str]) -> dict[str, nn.Parameter]:
        """The model's parameters of floating point, by the names that the task vector gives them; not its buffers."""
        return {n: p for n in names if (p := self._parameters.get(n)) is not None and p.is_floating_point()}

    def __enter__(self) -> Self:
        for name, change in self._new.items():
            self._before[name] = change.places.gather(self._tensors[name])
            change.places.scatter_(self._tensors[name], change.values)
        return self

    def __exit__(self, *_: object) -> None:
        for name, before in reversed(self._before.items()):  # of what has two names the first knows what stood there
            self._new[name].places.scatter_(self._tensors[name], before)
        self._before.clear()

    @contextmanager
    def candidate(self, entries: Iterable[Entries]) -> Iterator[nn.Module]:
        """Base + ``entries`` for as long as the block runs; then bitwise the base, also by an exception."""
        written: list[tuple[Tensor, Tensor, Tensor]] = []
        try:
            with torch.no_grad():
                for name, positions, values in entries:
                    flat = self._flat(name)
                    positions = positions.to(flat.device)
                    before = flat[positions]
                    written.append((flat, positions, before))
                    to = wide(before.dtype)
                    flat.index_copy_(0, positions, (before.to(to) + values.to(flat.device, to)).to(before.dtype))
            yield self.model
        finally:
            with torch.no_grad():
                for flat, positions, before in written:
                    flat.index_copy_(0, positions, before)

    def _flat(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if not tensor.is_contiguous():
            raise ValueError(f"'{name}' is not contiguous, so that candidates cannot be put in place; call .contiguous() first")
        return tensor.view(-1)
