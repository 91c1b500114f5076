"""Slices and a learning rate for a model that its user need not tune: what did well in ``benchmarks/tune_quality.py``."""

from typing import NamedTuple

from torch import nn

from paring.tune.config import SliceConfig
from paring.tune.targets import select

_MOST, _SHARE = 16, 6  # rank 16, but no more than a sixth of the typical layer's inputs


class Recommended(NamedTuple):
    """Settings of the slices, and the highest learning rate (AdamW, a short warm-up, then linearly to zero)."""

    config: SliceConfig
    learning_rate: float


def recommended(model: nn.Module, num_steps: int) -> Recommended:
    """See ``SliceConfig.recommended``."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"recommended: num_steps is {num_steps!r}; expected a whole number, at least 1")
    layers = select(model, SliceConfig(rank=1, modes=("column",), move_steps=None)).layers
    widths = sorted(layer.matrix.inp for layer in layers)
    width = widths[len(widths) // 2]
    rank = max(1, min(_MOST, width // _SHARE))
    # A layer of few inputs (the one that cuts an image into patches) would be trained nearly whole.
    few = tuple(layer.name for layer in layers if layer.matrix.inp < 2 * rank)
    config = SliceConfig(rank=rank, modes=("column",), move_steps=None, exclude=few)
    # Best rates found: 1e-2 to 2e-2 at a width of 96, 5e-3 at 384. In between and beyond it is a guess along 1 / width.
    return Recommended(config, min(max(2.0 / width, 1e-3), 2e-2))
