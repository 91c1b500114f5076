"""Whether runs of layers of several models can stand one on the other: with the tensors of one model, the reference, whose
``config.json`` the output has.

Each layer of the output has the names and shapes of some layer of the reference (its layers need not all be of one make); what
stands outside of the layers has those of the reference. A head that the reference ties to its embeddings is the output's
embeddings: a model with another head cannot stand last.
"""

from collections.abc import Collection, Iterator, Mapping

import torch

from paring.delta.checkpoint.tensorinfo import TensorInfo
from paring.delta.errors import DeltaError
from paring.fuse.agree import Catalogue, extra_of, is_buffer, is_copy, is_head, refuse_extra, refuse_shape
from paring.fuse.stacks import before_blocks

Layers = Mapping[int, Mapping[str, TensorInfo]]  # layer -> rest of a name -> what it is


def layers_of(catalogue: Catalogue, reference: Catalogue, stack: str) -> Layers:
    """A model's layers, by the reference's names."""
    found: dict[int, dict[str, TensorInfo]] = {}
    for name in [*catalogue.names, *catalogue.extra]:
        place = reference.stacks.place(name)
        if place.stack == stack and place.layer >= 0:
            found.setdefault(place.layer, {})[place.rest] = catalogue.info(name)
    return found


def refuse_unlike_layer(stack: str, called: str, layer: int, layers: Layers, there: str, reference: Layers) -> None:
    """That a layer is of the make of one of the reference's.

    Args:
        called, layers: the model and its layers; there, reference: the same of the reference.

    Raises:
        DeltaError: it has a tensor that the nearest of these lacks, or lacks one, or has one of another shape.
    """
    ours = _shapes(stack, layer, layers)
    theirs = {number: _shapes(stack, number, reference) for number in sorted(reference)}
    if ours in theirs.values():
        return
    number = min(theirs, key=lambda n: (len(ours.keys() ^ theirs[n].keys()), n != layer, n))
    refuse_unlike_names(stack, (called, layer, layers), (there, number, reference))
    rest = next(rest for rest in sorted(ours) if ours[rest] != theirs[number][rest])
    raise DeltaError(
        f"'{stack}{layer}{rest}' has shape {list(ours[rest])} in {called}, and '{stack}{number}{rest}' "
        f"{list(theirs[number][rest])} in {there}; layers of one width can be stacked"
    )


def refuse_unlike_names(stack: str, one: tuple[str, int, Layers], other: tuple[str, int, Layers]) -> None:
    """That two layers, each given by its model, its number and that model's layers, have the same tensors. DeltaError: not."""
    ours, theirs = (_shapes(stack, number, layers) for _, number, layers in (one, other))
    if different := sorted(ours.keys() ^ theirs.keys()):
        has, lacks = (one, other) if different[0] in ours else (other, one)
        raise DeltaError(
            f"{has[0]} has '{stack}{has[1]}{different[0]}', and {lacks[0]} no '{stack}{lacks[1]}{different[0]}'; layers of one "
            "make can be merged"
        )


def loose(
    reference: Catalogue, sources: Collection[Catalogue], *, before: bool, vocabulary: bool, allow: Collection[str]
) -> Iterator[tuple[str, str]]:
    """The names of the output's tensors outside of the layers, before or after them, which ``sources`` give; and of a head that
    is tied, the name of the embeddings (else "").

    Raises:
        DeltaError: one of the sources lacks a tensor of the reference's, has more, or one of another shape; or it has a head of
            its own where the reference's is tied.
    """

    def here(name: str) -> bool:
        return reference.stacks.place(name).layer < 0 and before_blocks(name) == before

    for name in filter(here, reference.names):
        tied = _tied(reference, name)
        for source in sources:
            if is_buffer(name, reference.info(name)):
                continue
            if tied and source.has(name):
                is_copy(source, reference, name, tied)
                continue
            source.own(name)  # refuses where there is none
            refuse_shape(name, source, reference, vocabulary=vocabulary)
        if not is_buffer(name, reference.info(name)) or any(source.has(name) for source in sources):
            yield name, tied
    for source in sources:
        if source.model is not reference.model:
            refuse_extra(source, reference, [name for name in extra_of(source, reference) if here(name)], allow)


def _tied(reference: Catalogue, name: str) -> str:
    """Of a head that the reference's configuration ties, what it is tied to."""
    if not is_head(name) or (reference.config or {}).get("tie_word_embeddings") is False:
        return ""  # the rule, and asking ``ties`` may load transformers
    return next((n for n in reference.ties(name) if n in reference.names), "")


def _shapes(stack: str, layer: int, layers: Layers) -> dict[str, torch.Size]:
    return {rest: info.shape for rest, info in layers[layer].items() if not is_buffer(f"{stack}{layer}{rest}", info)}
