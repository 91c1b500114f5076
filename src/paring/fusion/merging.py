"""A merge of task vectors in place, on models that share a body: what ``paring fuse`` would write, without a file.

Beside the models there are in memory what the tasks change (``held``) and one copy of the base's tensors that a merge touches.
A merge reads these and writes each merged tensor into the model: what is made for it is of one tensor's size at a time (for
each task that changes part of it), never of the model's. The same methods work on the same numbers as in
``paring.fuse.engine``, so what was scored is bitwise what is written.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor, nn

from paring.delta.claims import refuse_claimed
from paring.delta.places import Places
from paring.delta.sources import MemorySource
from paring.fuse.inputs import Cuts, Inputs
from paring.fuse.method import Method, Resolved
from paring.fuse.runner import one_thread_each
from paring.fuse.scope import global_cuts, local_cuts
from paring.fusion.held import Held, Parts

Settings = Callable[[str], Resolved]  # of a tensor, by its name in the output


class Merging:
    """Models on which merges are put. A context manager: inside, each model has its task's head; afterwards all are bitwise as
    they were.

    Args:
        models: of the tasks, in their order, sharing a body.
        parts: what ``held.hold`` made of them.
        how: the method.
        settings: its parameters for each tensor. Thresholds are taken with these, once: no method's depend on weights or on
            lambda, which are what a search tries.
        keys: what the models are called, for methods that draw; None: the tasks' names.
        seed, scope: as in a configuration.

    Raises:
        RuntimeError: a session is open on a model.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        parts: Parts,
        how: Method,
        settings: Settings,
        *,
        keys: tuple[str, ...] | None = None,
        seed: int = 0,
        scope: str = "tensor",
    ) -> None:
        for model in models:
            refuse_claimed(model, "merges cannot be put in place")
        self.models, self.parts, self.how = tuple(models), parts, how
        self._settings, self.keys, self.seed, self.scope = settings, keys or parts.tasks, seed, scope
        source = MemorySource(models[0])
        self._tensors = {name: source.tensor(there) for name, there in parts.where.items()}
        # A method that merges differences leaves what no task changes as it is.
        self.names = tuple(parts.held if how.base == "required" else parts.where)
        self._base = {name: self._tensors[name].clone() for name in self.names}
        self._held = {
            name: tuple(None if h is None else h.to(self._tensors[name].device) for h in of) for name, of in parts.held.items()
        }
        self._cuts: dict[str, Cuts] = {}
        if scope == "global":
            self._cuts = global_cuts(how, list(parts.sizes), lambda name: self._ranked(name, settings(name)))
        elif how.stages:
            self._cuts = {name: local_cuts(self.inputs(name, settings(name)), how.stages) for name in self.names}
        self._heads = [MemorySource(model) for model in models]
        self._before: list[tuple[Tensor, Places, Tensor]] = []

    def __enter__(self) -> Self:
        for source, new in zip(self._heads, self.parts.heads, strict=True):
            for there, (places, values) in new.items():
                tensor = source.tensor(there)
                self._before.append((tensor, places, places.gather(tensor)))
                places.scatter_(tensor, values)
        return self

    def __exit__(self, *_: object) -> None:
        self.back()
        for tensor, places, before in reversed(self._before):
            places.scatter_(tensor, before)
        self._before.clear()

    @torch.no_grad()
    def to(self, settings: Settings | None = None) -> None:
        """Puts a merge on the models; None: with the settings that this was made with.

        Raises:
            FuseError: as the method.
        """
        with one_thread_each():  # as the engine: a sum by several threads may end in other bits
            for name in self.names:
                tensor = self._tensors[name]
                inputs = self.inputs(name, (settings or self._settings)(name))
                if tensor.is_contiguous():
                    self.how(inputs, tensor)
                else:
                    tensor.copy_(self.how(inputs, torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)))

    @torch.no_grad()
    def back(self) -> None:
        """The base's body, bitwise."""
        for name, before in self._base.items():
            self._tensors[name].copy_(before)

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor], heads: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({})) -> None:
        """Puts other values on the models, in the place of a merge's.

        Args:
            values: by name in the output, of ``names`` alone.
            heads: by task and name in its model, of the tasks' own heads; until the context is left.

        Raises:
            ValueError: a head is no task's, or the context is not open.
        """
        own = dict(zip(self.parts.tasks, zip(self._heads, self.parts.heads, strict=True), strict=True))
        for task, of in heads.items():
            if task not in own or not self._before or (unknown := set(of) - set(own[task][1])):
                what = f"{min(unknown)!r} of {task!r} is" if task in own and self._before else f"those of {task!r} are"
                raise ValueError(f"heads: {what} not on the models; expected tensors of the tasks' heads, in the context")
        for name, tensor in values.items():
            self._tensors[name].copy_(tensor)
        for task, of in heads.items():
            for name, tensor in of.items():
                own[task][0].tensor(name).copy_(tensor)

    def base(self, name: str) -> Tensor:
        """The base's tensor, whatever is on the models now; by name in the output."""
        return self._base.get(name, self._tensors[name])

    def inputs(self, name: str, settings: Resolved) -> Inputs:
        """What the method is given of one tensor."""
        return self._inputs(name, settings, self.base(name), self._held.get(name, (None,) * len(self.models)))

    def _inputs(self, name: str, settings: Resolved, base: Tensor, held: Sequence[Held | None]) -> Inputs:
        plain = self.how.base == "unused"
        models = tuple(base if h is None else h.weights(base) if plain else h.read(base) for h in held)
        return Inputs(
            name,
            models,
            None if plain else base,
            settings.parameters,
            settings.per_model,
            self.keys,
            tuple(h is not None and h.difference and not plain for h in held),
            self.seed,
            self._cuts.get(name),
        )

    def _ranked(self, name: str, settings: Resolved) -> Inputs:
        """``inputs`` for a threshold over all tensors: of one that no task's model has, nothing but its size."""
        if name in self._tensors:
            return self.inputs(name, settings)
        if name in self.parts.beside:
            there, held = self.parts.beside[name]
            base = MemorySource(self.models[0]).tensor(there)
            return self._inputs(name, settings, base, [None if h is None else h.to(base.device) for h in held])
        none = torch.zeros(1).expand(self.parts.sizes[name])
        beside = None if self.how.base == "unused" else none
        models = (none,) * len(self.models)
        return Inputs(
            name, models, beside, settings.parameters, settings.per_model, self.keys, (False,) * len(models), self.seed
        )

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """What is on the models now, by name in the output."""
        for name in self.names:
            yield name, self._tensors[name]


def same_for_all(settings: Resolved) -> Settings:
    """One setting for every tensor."""
    return lambda name: settings
