"""The entries that a re-weighted pruning may keep, sorted once, so that a candidate costs what it keeps and no more.

NPS keeps the ``count`` entries whose re-weighted magnitude ``|w_m| * |tau|`` is largest, m being an entry's subspace (Du et
al. 2025, arXiv 2505.18713: re-weight first, then mask). Within a subspace the order does not depend on the weights, and none
can keep more than ``count``: so its ``count`` largest, sorted, are all that is needed, and a candidate is one number of
entries for each subspace, found by bisection.

Of equal re-weighted magnitudes those of the subspace that comes first are kept, within one those that come first in the task
vector.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paring.delta.taskvector import TaskVector
from paring.slim.histogram import kept, patterns, thresholds
from paring.slim.pruners import flats
from paring.slim.subspaces import Subspaces

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Selection:
    """What a candidate keeps: places in the task vector (all tensors in a row, increasing) and re-weighted values (fp32)."""

    places: Tensor
    values: Tensor


class Pool:
    """See above.

    Args:
        vector: the task vector; read three times.
        subspaces: how it is cut.
        count: entries to keep.
        matters: by name, flat: what an entry's magnitude is multiplied by to be ranked, and only for that (``saliency``);
            None, or a name that is missing: 1.

    Attributes:
        names, starts: of the tensors, and where each begins in the row of all.
        sizes: entries other than zero in each subspace.
    """

    def __init__(
        self, vector: TaskVector, subspaces: Subspaces, count: int, matters: Mapping[str, Tensor] | None = None
    ) -> None:
        self.names = vector.names
        extents = [vector.changes[n].shape.numel() for n in self.names]
        self.starts = np.concatenate(([0], np.cumsum(extents))).astype(np.int64)
        self.count, self.num_subspaces = count, len(subspaces.names)
        self._places: list[Tensor] = []
        self._values: list[Tensor] = []
        self._magnitudes: list[Floats] = []
        for places, values, magnitudes in self._tops(vector, subspaces, matters or {}):
            self._places.append(places)
            self._values.append(values)
            self._magnitudes.append(magnitudes.double().numpy())
        self.sizes = tuple(p.numel() for p in self._places)

    def select(self, weights: Sequence[float]) -> Selection:
        """The entries that weights keep: ``count`` of them, or all whose re-weighted value is not zero when these are fewer.

        Args:
            weights: one for each subspace, finite.
        """
        if len(weights) != self.num_subspaces:
            raise ValueError(f"{len(weights)} weights for {self.num_subspaces} subspaces")
        numbers = self._numbers(np.abs(np.asarray(weights, np.float64)))
        places = torch.cat([p[:k] for p, k in zip(self._places, numbers, strict=True)])
        values = torch.cat([v[:k] * w for v, k, w in zip(self._values, numbers, weights, strict=True)])
        order = places.argsort()
        return Selection(places[order], values[order])

    def split(self, chosen: Selection) -> list[tuple[str, Tensor, Tensor]]:
        """A selection by tensor: name, positions in it, values. Tensors without any are left out."""
        edges = np.searchsorted(chosen.places.numpy(), self.starts)
        return [
            (name, chosen.places[a:b] - int(start), chosen.values[a:b])
            for name, start, a, b in zip(self.names, self.starts[:-1], edges[:-1], edges[1:], strict=True)
            if b > a
        ]

    def _numbers(self, weights: Floats) -> list[int]:
        """How many entries each subspace keeps."""
        every = [m.size if w > 0 else 0 for m, w in zip(self._magnitudes, weights, strict=True)]
        if sum(every) <= self.count:
            return every
        # The least pattern of a float64 at which no more than count are above: its neighbour below holds the ties.
        low, high = 0, int(np.float64(np.inf).view(np.int64))
        while low < high:
            middle = (low + high) // 2
            if sum(self._above(weights, _number(middle))) <= self.count:
                high = middle
            else:
                low = middle + 1
        numbers = self._above(weights, _number(low))
        tied = self._above(weights, _number(low - 1)) if low else every
        room = self.count - sum(numbers)
        for m, most in enumerate(tied):
            more = min(room, most - numbers[m])
            numbers[m] += more
            room -= more
        return numbers

    def _above(self, weights: Floats, bound: float) -> list[int]:
        """For each subspace, how many re-weighted magnitudes are above ``bound``."""
        return [_first(m, w, bound) if w > 0 else 0 for m, w in zip(self._magnitudes, weights, strict=True)]

    def _tops(
        self, vector: TaskVector, subspaces: Subspaces, matters: Mapping[str, Tensor]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The entries of each subspace that rank highest, in descending order, equal ones by place: place, value, rank."""

        def ranked() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for name, tau in flats(vector):
                rank = tau.abs().float() * matters[name] if name in matters else tau.abs().float()
                yield subspaces.label(name, tau), tau, rank

        parts = range(self.num_subspaces)
        labelled = lambda: ((labels, rank) for labels, _, rank in ranked())  # noqa: E731
        at = thresholds(labelled, self.num_subspaces, [(m, self.count) for m in parts])
        found: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in parts]
        ties = [0 for _ in parts]
        for start, (labels, tau, rank) in zip(self.starts, ranked(), strict=False):
            for m in labels.unique().tolist():
                inside = (labels == m).nonzero().view(-1)
                where, more = kept(rank[inside], at[m], ties[m])
                ties[m] += more
                where = inside[where]
                where = where[tau[where] != 0]
                found[m].append((where + int(start), tau[where].float(), rank[where]))
        return [_descending(pieces) for pieces in found]


def _descending(pieces: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    if not pieces:
        return torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0)
    places, values, ranks = (torch.cat(part) for part in zip(*pieces, strict=True))
    order = torch.from_numpy(np.argsort(-patterns(ranks).astype(np.int64), kind="stable"))
    return places[order], values[order], ranks[order]


def _number(pattern: int) -> float:
    return float(np.int64(pattern).view(np.float64))


def _first(magnitudes: Floats, weight: float, bound: float) -> int:
    """How many of ``magnitudes`` (descending) times ``weight`` are above ``bound``; products as they round."""
    low, high = 0, magnitudes.size
    while low < high:
        middle = (low + high) // 2
        if magnitudes[middle] * weight > bound:
            low = middle + 1
        else:
            high = middle
    return low
