"""Slices and a learning rate for a model that its user need not tune: what did well in ``benchmarks/tune_quality.py``.

    a text model       static columns in the upper half of the blocks, about rank 31: as good as rank 16 in all of them, and
                       backward stops half-way
    any other model    static columns of rank 16 in all blocks: on small images the lower ones are needed

A text model is one whose input embedding is an ``nn.Embedding`` (a vision transformer's is a convolution) and whose blocks
stand in one stack: of two (an encoder's and a decoder's, a text's and an image's), the upper half would be one of them.
The rank is the highest that trains no more entries than LoRA of rank 8 in every layer, up to those above.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from paring.tune.config import SliceConfig
from paring.tune.targets import Layer, select

_MOST, _SHARE = 16, 6  # rank 16 (in half of the blocks twice that), but no more than a sixth of the typical layer's inputs
_LORA_RANK = 8


class Recommended(NamedTuple):
    """Settings of the slices, and the highest learning rate (AdamW, a short warm-up, then linearly to zero)."""

    config: SliceConfig
    learning_rate: float


def recommended(model: nn.Module, num_steps: int) -> Recommended:
    """See ``SliceConfig.recommended``."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"recommended: num_steps is {num_steps!r}; expected a whole number, at least 1")
    layers = select(model, SliceConfig(rank=1, modes=("column",), move_steps=None)).layers
    width = _typical_inputs(layers)
    # A layer of few inputs (the one that cuts an image into patches) would be trained nearly whole.
    wide = [layer for layer in layers if layer.matrix.inp >= 2 * min(_MOST, width // _SHARE)]
    blocks = _upper_half(wide) if _reads_text(model) else None
    chosen = [layer for layer in wide if blocks is None or layer.matrix.block in blocks]
    allowed = _LORA_RANK * sum(_num_matrices(layer) * (layer.matrix.inp + layer.matrix.out) for layer in wide)
    affordable = allowed // sum(_num_matrices(layer) * layer.matrix.out for layer in chosen)
    most = _MOST if blocks is None else 2 * _MOST
    rank = max(1, min(most, _typical_inputs(chosen) // _SHARE, affordable))
    few = tuple(la.name for la in layers if la.matrix.inp < 2 * rank and (blocks is None or la.matrix.block in blocks))
    config = SliceConfig(rank=rank, modes=("column",), move_steps=None, exclude=few, layers=blocks)
    # Best rates found: 1e-2 to 2e-2 at a width of 96, 5e-3 at 384. In between and beyond it is a guess along 1 / width.
    return Recommended(config, min(max(2.0 / width, 1e-3), 2e-2))


def _typical_inputs(layers: Sequence[Layer]) -> int:
    return sorted(layer.matrix.inp for layer in layers)[len(layers) // 2]


def _reads_text(model: nn.Module) -> bool:
    """Whether ids go in, as far as the model says (Hugging Face's do)."""
    try:
        return isinstance(model.get_input_embeddings(), nn.Embedding)  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return False


def _upper_half(layers: Sequence[Layer]) -> tuple[int, ...] | None:
    """The upper half of the blocks, the middle one with it; None: more than one stack of blocks, or no second block."""
    names = [re.split(r"\.\d+(?:\.|$)", layer.name) for layer in layers]
    stacks = {parts[0] for parts in names if len(parts) > 1}  # a pooler stands in none
    blocks = sorted({layer.matrix.block for layer in layers})
    return tuple(blocks[len(blocks) // 2 :]) if len(stacks) == 1 and len(blocks) > 1 else None


def _num_matrices(layer: Layer) -> int:
    """One, but for fused experts."""
    return int(layer.module.weight.numel()) // (layer.matrix.out * layer.matrix.inp)
