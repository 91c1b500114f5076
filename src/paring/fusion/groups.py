"""Runs of layers that have a weight of their own, by tensors' names; as filters, so that a configuration can say them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from paring.fuse.stacks import stacks_of

OUTSIDE = "outside"


@dataclass(frozen=True)
class Group:
    """Some layers of a model.

    Attributes:
        name: for people: "all", "layers 0 to 3", "outside" (what is in no layer).
        filters: a tensor belongs to it whose name contains one of them; none: what belongs to no other.
    """

    name: str
    filters: tuple[str, ...] = ()


ALL = (Group("all"),)


def layer_groups(
    names: Iterable[str], moved: Collection[str], parts: int, config: Mapping[str, Any] | None = None
) -> tuple[Group, ...]:
    """The layers cut into ``parts`` runs of equal length (to one), first to last, and what is outside of them where it is any.

    Args:
        names: of the base's tensors, by which layers are found.
        moved: of those that a task changes; layers that none does are in no group.
        parts: at least 1; 1: one group of everything.
        config: of the model, whose number of layers is believed.

    Raises:
        ValueError: there are fewer layers than that.
    """
    if parts == 1:
        return ALL
    stacks = stacks_of(names, config)
    layers: dict[str, str] = {}  # filter -> what people call the layer
    outside = False
    for name in moved:
        place = stacks.place(name)
        if place.layer < 0 or not place.rest.startswith("."):
            outside = True
            continue
        only = len(stacks.sizes) == 1
        layers[f"{place.stack}{place.layer}."] = str(place.layer) if only else f"{place.stack}{place.layer}"
    ordered = sorted(layers, key=lambda f: (f.rstrip("0123456789."), int(f.rstrip(".").rpartition(".")[2])))
    if parts > len(ordered):
        raise ValueError(f"layer_groups is {parts}, and the tasks change {len(ordered)} layers; expected no more")
    ends = [round(len(ordered) * i / parts) for i in range(parts + 1)]
    runs = [ordered[a:b] for a, b in pairwise(ends)]
    groups = [Group(_called([layers[f] for f in run]), tuple(run)) for run in runs]
    return (*groups, Group(OUTSIDE)) if outside else tuple(groups)


def group_of(name: str, groups: Sequence[Group]) -> int:
    """The group of a tensor: the first with a filter that is in its name, else the one without filters.

    Raises:
        ValueError: there is none.
    """
    for i, group in enumerate(groups):
        if any(f in name for f in group.filters):
            return i
    for i, group in enumerate(groups):
        if not group.filters:
            return i
    raise ValueError(f"tensor '{name}' is in no group of layers")


def _called(layers: Sequence[str]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
