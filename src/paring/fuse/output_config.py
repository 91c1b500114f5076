"""The output's ``config.json``: the main model's, with the number of layers and the type that the output has."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from paring.fuse.stacks import LAYER_KEYS, configs_in

_TYPE_KEYS = ("dtype", "torch_dtype")  # newer and older versions of transformers


class LayerFrom(NamedTuple):
    """Where a layer of the output is from: the configuration of the model, how many layers that has, and which it is."""

    config: Mapping[str, Any]
    num_layers: int
    layer: int


def output_config(
    main: Mapping[str, Any] | None, dtype: torch.dtype | None, layers: Sequence[LayerFrom], before: int
) -> dict[str, Any] | None:
    """See above; None where the main model has none.

    Args:
        dtype: that most of the output's entries have; None: nothing in it is merged.
        layers: of a stack, of every layer of the output; empty: the main model's. before: of how many the main model has.
    """
    if main is None:
        return None
    found: dict[str, Any] = json.loads(json.dumps(main))
    places = configs_in(found)
    if dtype:
        for i, place in enumerate(places):
            for key in [k for k in _TYPE_KEYS if k in place] or list(_TYPE_KEYS[:1] if i == 0 else ()):
                place[key] = str(dtype).removeprefix("torch.")
    for place in places if layers else ():
        for key, value in place.items():
            if isinstance(value, list) and len(value) == before and before > 1:  # one entry a layer: layer_types, windows
                place[key] = [_entry(key, one, value) for one in layers]
        for key in LAYER_KEYS:
            if place.get(key) == before:
                place[key] = len(layers)
    return found


def most_common_type(sizes: Mapping[torch.dtype, int]) -> torch.dtype | None:
    """That most entries have; of two with as many, the first by name."""
    return max(sizes, key=lambda dtype: (sizes[dtype], str(dtype)), default=None)


def entries_by_type(infos: Sequence[tuple[torch.dtype, int]]) -> Counter[torch.dtype]:
    """How many entries there are of each float type."""
    sizes: Counter[torch.dtype] = Counter()
    for dtype, entries in infos:
        if dtype.is_floating_point:
            sizes[dtype] += entries
    return sizes


def _entry(key: str, one: LayerFrom, value: Sequence[Any]) -> Any:
    """What a layer's own model says of it; of one that says nothing, what the main model says of that layer, or of its last."""
    for place in configs_in(one.config):
        own = place.get(key)
        if isinstance(own, list) and len(own) == one.num_layers:
            return own[one.layer]
    return value[min(one.layer, len(value) - 1)]
