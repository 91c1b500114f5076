"""Whether models can be merged tensor by tensor: the same names, shapes and numbers of layers, or an error that names both.

Names may have a prefix in one model that they lack in another (``bert.``). Buffers that newer versions of transformers make
instead of saving them (position numbers, the frequencies of rotary embeddings) may be missing. A head may be missing where the
model's configuration ties it to its embeddings: it then *is* the embeddings. Nothing else is made up or left out.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

from paring.delta.align import align
from paring.delta.checkpoint.fingerprint import tensor_hash
from paring.delta.checkpoint.tensorinfo import TensorInfo
from paring.delta.errors import DeltaError
from paring.fuse.models import Model, Tuned, model_config
from paring.fuse.stacks import configs_in, stacks_of

Names = Mapping[str, str]
ALLOW = ("extra",)

_SHOWN = 4
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
_POSITIONS = re.compile(r"position|token_type|(^|[._])wpe([._]|$)")
_HEADS = ("lm_head.weight", "embed_out.weight", "cls.predictions.decoder.weight", "lm_head.decoder.weight")
# Float buffers that old versions saved and new ones make: LLaMA's frequencies, the causal masks of GPT-2 and GPT-NeoX.
_BUFFERS = re.compile(r"(^|\.)(rotary_(pos_)?emb\.inv_freq|(attn|attention)\.masked_bias)$")
_COUNTER = "num_batches_tracked"  # of batch norms: how many batches their means are of
_MASKS = re.compile(r"(^|\.)(attn|attention)\.bias$")


class Catalogue:
    """One model under the names of another, the reference.

    Attributes:
        names: the reference's name -> the model's own. Of a head that is tied, the name of the embeddings.
        extra: the model's tensors that the reference does not have.
        stacks: of the reference's names.
        config: the model's ``config.json``; None where there is none.
    """

    def __init__(self, model: Model, reference: Model) -> None:
        self.model, self._reference, self.config = model, reference, model_config(model)
        found = align(reference.infos, model.infos) if model is not reference else {n: n for n in model.infos}
        if isinstance(model, Tuned) and model.base is reference:
            found = {**model.names_of_base, **found}
        rename = _renaming(found)
        self.names: dict[str, str] = dict(found)
        taken = {model.tied.get(own, own) for own in found.values()}
        self.extra = {rename(name): name for name in model.infos if model.tied.get(name, name) not in taken}
        self.stacks = stacks_of([*self.names, *self.extra], self.config)

    def info(self, name: str) -> TensorInfo:
        """Of a tensor by the reference's name."""
        return self.model.infos[self.own(name)]

    def own(self, name: str) -> str:
        """The model's name of a tensor.

        Raises:
            DeltaError: it has no such tensor.
        """
        found = self.names.get(name) or self.extra.get(name) or self._tied(name)
        if found is None:
            raise DeltaError(
                f"{self.model.called} has no tensor '{name}', which {self._reference.called} has"
                + (", and its configuration ties it to no other" if is_head(name) else "")
                + "; take a checkpoint that was saved whole"
            )
        return found

    def has(self, name: str) -> bool:
        return name in self.names or name in self.extra or self._tied(name) is not None

    def ties(self, name: str) -> tuple[str, ...]:
        """Further names, in the model, of the tensor ``name``, as its configuration ties them."""
        if self._layers is not None:
            inside = align([name], self._layers.tensors).get(name)
            others = [n for n in self._layers.names_of(inside) if n != inside] if inside else []
            return tuple(align([n], self.model.infos).get(n, n) for n in others)
        if (self.config or {}).get("tie_word_embeddings") is True and name.endswith(_HEADS):
            return tuple(n for n in self.model.infos if n.endswith(_EMBEDDINGS))
        return ()

    @cached_property
    def vocabulary_sizes(self) -> set[int]:
        """As the configuration has them, but for one that is also a number of rows in the blocks: a small vocabulary may be as
        large as the model is wide."""
        inside = {self.info(name).shape[:1] for name in self.names if self.stacks.place(name).layer >= 0}
        said = (one.get("vocab_size") for one in configs_in(self.config or {}))
        return {size for size in said if isinstance(size, int) and (size,) not in inside}

    @cached_property
    def _layers(self) -> Any:
        """The modules of the model by its configuration, where transformers knows it; loads transformers."""
        from paring.neighbours.layers import Layers, skeleton

        try:
            return Layers(skeleton(self.config)) if self.config else None
        except (DeltaError, ImportError):
            return None

    def _tied(self, name: str) -> str | None:
        return next((n for n in self.ties(name) if n in self.model.infos), None)


def refuse_unlike(catalogue: Catalogue, reference: Catalogue, *, vocabulary: bool, allow: Collection[str]) -> None:
    """That a whole model can be merged with the reference.

    Args:
        vocabulary: whether vocabularies may differ, since they are aligned later.
        allow: "extra": tensors that the reference does not have are left out.

    Raises:
        DeltaError: different numbers of layers, a missing or extra tensor, or one of another shape.
    """
    model, there = catalogue.model, reference.model
    for prefix, number in reference.stacks.sizes.items():
        other = catalogue.stacks.sizes.get(prefix, number)
        if other != number:
            raise DeltaError(
                f"{model.called} has {other} layers '{prefix}…', {there.called} has {number}; whole models need as many: give "
                "slices with layer_range, or models of one architecture"
            )
    for name in reference.names:
        if not is_buffer(name, there.infos[name]):
            catalogue.own(name)
    refuse_extra(catalogue, reference, extra_of(catalogue, reference), allow)
    for name in reference.names:
        if catalogue.has(name):
            refuse_shape(name, catalogue, reference, vocabulary=vocabulary)


def refuse_extra(catalogue: Catalogue, reference: Catalogue, extra: Sequence[str], allow: Collection[str]) -> None:
    """That a model has no tensors beside the reference's. DeltaError: it has ``extra``, and these are not allowed."""
    if extra and "extra" not in allow:
        more = f" and {len(extra) - _SHOWN} more" if len(extra) > _SHOWN else ""
        raise DeltaError(
            f"{catalogue.model.called} has {len(extra)} tensors that {reference.model.called} does not have: "
            f"{', '.join(map(repr, extra[:_SHOWN]))}{more}; --allow extra leaves them out of the merge"
        )


def extra_of(catalogue: Catalogue, reference: Catalogue) -> list[str]:
    """The tensors of a model that the reference lacks, by the reference's way to name them. DeltaError: one is tied there."""

    def made_up_for(name: str) -> bool:
        if is_buffer(name, catalogue.info(name)):
            return True
        tied = next((n for n in reference.ties(name) if n in reference.names and catalogue.has(n)), None)
        return tied is not None and is_copy(catalogue, reference, name, tied)

    return [name for name in catalogue.extra if not made_up_for(name)]


def is_buffer(name: str, info: TensorInfo) -> bool:
    """Whether a tensor is no weight but a buffer that a model makes for itself: whole numbers, or known by its name."""
    if not info.dtype.is_floating_point or _BUFFERS.search(name):
        return True
    return len(info.shape) == 4 and info.shape[:2] == (1, 1) and _MASKS.search(name) is not None


def is_one_models(name: str, info: TensorInfo) -> bool:
    """Whether a buffer is the first model's, whatever others have: floats, and counters, of which there is no mean. Other whole
    numbers are the same in all."""
    return info.dtype.is_floating_point or name.endswith(_COUNTER)


def refuse_shape(name: str, catalogue: Catalogue, reference: Catalogue, *, vocabulary: bool) -> None:
    """That a tensor has one shape in both. DeltaError: it has not."""
    ours, theirs = catalogue.info(name), reference.info(name)
    if theirs.dtype.is_floating_point and is_buffer(name, theirs):
        return  # it is the reference's, whatever others have
    if ours.dtype.is_floating_point != theirs.dtype.is_floating_point:
        raise DeltaError(
            f"'{name}' is {ours.dtype} in {catalogue.model.called} and {theirs.dtype} in {reference.model.called}; convert one"
        )
    if ours.shape == theirs.shape:
        return
    here = f"'{name}' has shape {list(ours.shape)} in {catalogue.model.called}"
    said = f"{here} and {list(theirs.shape)} in {reference.model.called}"
    if is_vocabulary(name, catalogue) and ours.shape[1:] == theirs.shape[1:]:
        if vocabulary:
            return
        raise DeltaError(
            f"{said}: vocabularies of {ours.shape[0]:,} and {theirs.shape[0]:,} entries; tokenizer_source: base, or union, "
            "aligns them"
        )
    raise DeltaError(f"{said}; models of one architecture and size can be merged")


def is_vocabulary(name: str, catalogue: Catalogue) -> bool:
    """Whether a tensor has a row for each entry of the vocabulary: outside of the blocks, by its name, or by as many rows where
    nothing in the blocks has these."""
    shape = catalogue.info(name).shape
    if not shape or catalogue.stacks.place(name).layer >= 0:
        return False
    weight = f"{name.removesuffix('bias')}weight" if name.endswith(".bias") else name
    if is_head(weight) or weight.endswith(_EMBEDDINGS):
        return True
    return shape[0] in catalogue.vocabulary_sizes and _POSITIONS.search(name) is None


def is_copy(catalogue: Catalogue, reference: Catalogue, name: str, tied: str) -> bool:
    """That a model's head, which the reference ties to its embeddings ``tied``, is the model's embeddings.

    Raises:
        DeltaError: it is a head of its own.
    """
    model = catalogue.model
    first, second = (model.read(catalogue.own(n)) for n in (name, tied))
    if tensor_hash([first.tensor]) == tensor_hash([second.tensor]) and first.difference == second.difference:
        return True
    raise DeltaError(
        f"{model.called} has a '{name}' of its own, which {reference.model.called} ties to '{tied}'; save the base "
        "untied (tie_word_embeddings: false), or leave the model out"
    )


def _renaming(found: Mapping[str, str]) -> Any:
    """From the model's names to the reference's, as ``align`` found them."""
    for name, own in found.items():
        if name != own and name.endswith("." + own):
            more = name.removesuffix(own)
            return lambda n: more + n
        if name != own and own.endswith("." + name):
            less = own.removesuffix(name)
            return lambda n: n.removeprefix(less)
    return lambda n: n


def is_head(name: str) -> bool:
    """By its name: what gives a logit for each entry of the vocabulary."""
    return name.endswith(_HEADS)
