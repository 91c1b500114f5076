"""The handwritten digits that come with scikit-learn, cut into four splits that share no row.

1797 images of 8 x 8 pixels, 17 grey levels. Every split has the digits in the proportion of the whole, to within one
image per digit. The rows of a split never change: they do not depend on the seed of a model or a run.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from paring.tasks.extras import require

Split = Literal["train", "calibration", "validation", "test"]
SPLIT_SIZES: dict[Split, int] = {"train": 900, "calibration": 256, "validation": 256, "test": 385}
NUM_LABELS = 10
_SPLIT_SEED = 0


@dataclass(frozen=True, eq=False)  # tensors have no equality that is true or false
class Examples:
    """Images, their labels, and where they stand in the whole set.

    Attributes:
        images: float32 ``[n, 1, 8, 8]``, from -1 (paper) to 1 (ink).
        labels: int64 ``[n]``, 0 to 9.
        rows: int64 ``[n]``, positions in ``sklearn.datasets.load_digits``.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@cache
def load_splits() -> dict[Split, Examples]:
    """The four splits by name. Read once; do not write into the tensors.

    Raises:
        ImportError: scikit-learn is missing.
    """
    digits = require("sklearn.datasets", "the digits task").load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(digits.target, dtype=torch.int64)
    assert len(labels) == sum(SPLIT_SIZES.values())
    parts = stratified_order(labels, seed=_SPLIT_SEED).split(list(SPLIT_SIZES.values()))
    return {name: Examples(images[rows], labels[rows], rows) for name, rows in zip(get_args(Split), parts, strict=True)}


def stratified_order(labels: Tensor, *, seed: int) -> Tensor:
    """An order of all rows in which every contiguous run has the labels in the proportion of the whole.

    The k-th of a label's n rows, in random order, is put at (k + random) / n of the way.

    Args:
        labels: int64 ``[n]``.
        seed: of the random order.

    Returns:
        int64 ``[n]``, each row once.
    """
    generator = torch.Generator().manual_seed(seed)
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        rows = (labels == label).nonzero().squeeze(1)
        rank = torch.randperm(len(rows), generator=generator).double()
        # one random offset a label, not a row, keeps the spacing even: at most one image off in any run
        place[rows] = (rank + torch.rand((), generator=generator, dtype=torch.float64)) / len(rows)
    return place.argsort(stable=True)
