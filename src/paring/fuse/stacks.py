"""Which layer of a model a tensor belongs to, by names alone: ``model.layers.3.mlp.up_proj.weight`` is in layer 3.

A *stack* is a run of numbered modules, 0, 1, 2 …, under one prefix; of numbers in numbers (experts in a layer) the first
counts.
Numbered modules that are no blocks of the model (a head that is an ``nn.Sequential``) are told from them by their number: the
blocks are as many as the configuration says, or one that is nested in it (of a text or a vision tower), or else as many as
the longest stack has.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from paring.delta.errors import DeltaError

# As configurations of transformers call the number of blocks.
LAYER_KEYS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
    "depth",  # of vision towers
)
_NUMBERED = re.compile(r"(?:^|\.)(\d{1,6})(?=\.|$)")
# What stands before the blocks, by its name: embeddings and what works on them.
_BEFORE = re.compile(r"embed(?!_out)|(^|[._])(wte|wpe|wtte|tok|shared|patch|project_in|conv1|conv2|cls_token)", re.IGNORECASE)


class Place(NamedTuple):
    """Where a tensor is: the prefix of its stack, its layer, and the rest of its name; in no stack: ("", -1, its name)."""

    stack: str
    layer: int
    rest: str

    def name(self, layer: int) -> str:
        """The tensor's name in another layer."""
        return f"{self.stack}{layer}{self.rest}"


@dataclass(frozen=True)
class Stacks:
    """The stacks of blocks of one model: prefix (with its dot) -> number of layers."""

    sizes: Mapping[str, int]

    def place(self, name: str) -> Place:
        found = _split(name)
        return found if found.layer >= 0 and found.stack in self.sizes else Place("", -1, name)

    def only(self, called: str) -> str:
        """The prefix of the one stack that there is.

        Raises:
            DeltaError: there is none, or more than one.
        """
        if len(self.sizes) != 1:
            got = f"{len(self.sizes)} stacks ({', '.join(self.sizes)})" if self.sizes else "no numbered layers"
            raise DeltaError(f"{called} has {got}; slices and layer_range need one: take models in place of slices")
        return next(iter(self.sizes))


def stacks_of(names: Iterable[str], config: Mapping[str, Any] | None) -> Stacks:
    """The stacks of blocks among tensors of these names.

    Args:
        config: of the model, whose number of layers is believed.
    """
    layers: dict[str, set[int]] = {}
    for name in names:
        place = _split(name)
        if place.layer >= 0:
            layers.setdefault(place.stack, set()).add(place.layer)
    sizes = {prefix: len(found) for prefix, found in sorted(layers.items()) if max(found) == len(found) - 1}
    said = {one[key] for one in configs_in(config or {}) for key in LAYER_KEYS if isinstance(one.get(key), int)}
    blocks = {prefix: n for prefix, n in sizes.items() if n in said}
    most = max(sizes.values(), default=0)
    return Stacks(blocks or {prefix: n for prefix, n in sizes.items() if n == most})


def configs_in(config: Mapping[str, Any]) -> list[Any]:
    """A configuration and those nested in it, such as ``text_config`` and ``vision_config``."""
    return [config, *(value for key, value in config.items() if key.endswith("_config") and isinstance(value, dict))]


def before_blocks(name: str) -> bool:
    """Whether a tensor outside of the stacks belongs before them (to the embeddings) rather than after."""
    return _BEFORE.search(name) is not None


def _split(name: str) -> Place:
    found = _NUMBERED.search(name)
    if found is None:
        return Place("", -1, name)
    return Place(name[: found.start(1)], int(found[1]), name[found.end(1) :])
