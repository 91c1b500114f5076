"""Train rows as batches, without end."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from paring.probe.bench import Batch

KEPT_BYTES = 1 << 30  # of images: decoded once and kept, where all of a split take no more
SCORED = 128  # rows in a forward


class Rows:
    """Train rows as batches on the device that is there; images are decoded once, where all of them take little memory."""

    def __init__(self, rows: Any, collate: Callable[[list[dict[str, Any]]], Batch]) -> None:
        self._rows, self._collate = rows, collate
        self._whole: Batch | None = None
        first = collate([rows[0]])
        if "input_ids" not in first and bytes_of(first) * len(rows) <= KEPT_BYTES:
            parts = [collate([rows[i] for i in range(start, min(start + SCORED, len(rows)))]) for start in self._starts()]
            self._whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _starts(self) -> range:
        return range(0, len(self._rows), SCORED)

    def endless(self, size: int, seed: int) -> Iterator[Batch]:
        """Every row once a pass, in an order drawn by the seed; the last few of a pass are left out."""
        generator = torch.Generator().manual_seed(seed)
        count = len(self._rows)
        size = min(size, count)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        while True:
            order = torch.randperm(count, generator=generator)
            for rows in order[: count - count % size].split(size):
                yield {name: tensor.to(device) for name, tensor in self._batch(rows).items()}

    def _batch(self, rows: Tensor) -> Batch:
        if self._whole is not None:
            return {name: tensor[rows] for name, tensor in self._whole.items()}
        return self._collate([self._rows[row] for row in rows.tolist()])


def bytes_of(batch: Batch) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in batch.values())
