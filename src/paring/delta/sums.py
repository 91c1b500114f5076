"""Sums that are the same however many threads there are: what follows from one (a search's starts) is known again by it."""

import math

from torch import Tensor

_PIECE = 1 << 14  # entries: so few are summed by one thread


def dot(a: Tensor, b: Tensor) -> float:
    """The sum of products in fp64, of all entries in order."""
    pieces = zip(a.reshape(-1).split(_PIECE), b.reshape(-1).split(_PIECE), strict=True)
    return math.fsum(float((x.double() * y.double()).sum()) for x, y in pieces)
