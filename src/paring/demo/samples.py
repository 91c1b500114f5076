"""What a task of the demo shows the model: a few digits as they are, and as the task makes them."""

import torch
from torch import Tensor

from paring.tasks.digits import Shift, load_splits

_NUM_SAMPLES = 5  # the first of the classes 0, 2, 4, 6, 8 in the train split


def samples(shift: Shift) -> tuple[Tensor, Tensor, Tensor]:
    """Digits ``[n, 1, 8, 8]`` upright, the same as the task shows them, and their labels ``[n]`` there; ink is 1, paper -1."""
    train = load_splits()["train"]
    first = torch.stack([(train.labels == digit).nonzero()[0, 0] for digit in range(0, 10, 10 // _NUM_SAMPLES)])
    images = train.images[first]
    return images, shift.images(images), shift.labels(train.labels[first])


def as_text(images: Tensor) -> list[str]:
    """Images ``[n, 1, 8, 8]`` for JSON: rows apart by blanks, a hexadecimal digit for the ink of each pixel."""
    ink = ((images[:, 0].clamp(-1, 1) + 1) * 7.5).round().int().tolist()
    return [" ".join("".join(f"{pixel:x}" for pixel in row) for row in image) for image in ink]
