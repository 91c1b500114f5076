"""Tasks made of the digits: fixed changes of the images (and of what they are called) that a pretrained model has
never seen.

Each keeps what tells the digits apart, so that a model trained whole can learn it; but moves it to where the frozen
features do not look, so that a new head alone falls clearly short. A shift is a pure function, the same for every
split, and acts on each image by itself: no row of one split enters another.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paring.tasks.digits.data import Examples

_SIDE = 8
_PATCH = 2  # pixels; the patches of the model


@dataclass(frozen=True)
class Shift:
    """One task.

    Attributes:
        name: as on the command line.
        summary: one line for a reader.
        images: ``[n, 1, 8, 8] -> [n, 1, 8, 8]``, values in [-1, 1].
        labels: ``[n] -> [n]``, 0 to 9.
    """

    name: str
    summary: str
    images: Callable[[Tensor], Tensor]
    labels: Callable[[Tensor], Tensor]

    def __call__(self, examples: Examples) -> Examples:
        """The same rows as this task shows them."""
        return replace(examples, images=self.images(examples.images), labels=self.labels(examples.labels))
