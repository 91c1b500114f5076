"""Pruning without data: which entries of a task vector are kept, and what becomes of their values.

    magnitude   the largest magnitudes, as they are (for task vectors: step 1 of TIES, Yadav et al. 2023, arXiv 2306.01708)
    rescaled    the same, times ||tau|| / ||kept||: the L2 norm stays
    dare        random ones, divided by keep: the expectation stays (Yu et al. 2024, arXiv 2311.03099)
    della       random ones, the likelier the larger their rank in their row, each divided by its probability
                (MagPrune; Deep et al. 2024, arXiv 2406.11617)

``keep`` is the share of *all* entries of the task vector's tensors, whether they differ from the base's or not; tensors that do
not change at all are none of its. Exactly ceil(keep * n) are kept (of each tensor, by "dare" and "della"), or all that are not
zero when these are fewer. Of equal magnitudes those that come first are kept: in the order of the tensors, then of the entries.
New tensors travel along.

Each function takes one flat tensor; ``prune`` runs it over a task vector, tensor by tensor. With ``scope="global"`` the
magnitudes of all tensors compete, and one factor restores the norm of all; with "tensor" each has its own ceil(keep * n).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from paring.delta.change import Change, wide
from paring.delta.errors import DeltaError
from paring.delta.places import Scattered
from paring.delta.sums import dot
from paring.delta.taskvector import Lazy, TaskVector
from paring.slim.histogram import Threshold, kept, patterns, threshold

SCOPES = ("global", "tensor")
# What this and its neighbours write into the facts of what they prune, and ``paring slim`` of how it was chosen.
_OURS = (
    *("method", "keep", "scope", "seed", "subspaces", "weights", "search", "saliency", "refit"),
    *("objective", "calibration", "tried"),
)


class Kept(NamedTuple):
    """Entries of one tensor that stay: positions (int64, increasing) and values, flat."""

    positions: Tensor
    values: Tensor


def check_keep(keep: float, scope: str = "global") -> None:
    """That ``keep`` is in (0, 1] and ``scope`` is known."""
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise ValueError(f"keep is {keep!r}; expected the share of entries kept, in (0, 1]")
    if scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}; expected 'global' or 'tensor'")


def num_kept(keep: float, n: int) -> int:
    """ceil(keep * n), with keep as the decimal number that was written: 0.1 of 10 is 1."""
    return min(n, math.ceil(Fraction(repr(float(keep))) * n))


def magnitude(tau: Tensor, keep: float) -> Kept:
    """The entries of largest magnitude of one flat tensor."""
    at = threshold(lambda: [tau], num_kept(keep, tau.numel()))
    return _largest(tau, at, 0)[0]


def rescaled(tau: Tensor, keep: float) -> Kept:
    """``magnitude``, times what restores the L2 norm of ``tau``."""
    left = magnitude(tau, keep)
    return Kept(left.positions, left.values * _restoring(_squares(tau), _squares(left.values)))


def dare(tau: Tensor, keep: float, generator: torch.Generator) -> Kept:
    """Random entries, divided by the share that is kept; exactly ceil(keep * n) places are drawn."""
    n = tau.numel()
    count = num_kept(keep, n)
    positions = _drawn(torch.ones(n, dtype=torch.float64), count, generator) if count < n else torch.arange(n)
    return _nonzero(Kept(positions, tau[positions] * (n / count if count else 1.0)))


def della(tau: Tensor, keep: float, generator: torch.Generator, *, row: int = 0, spread: float = 0.5) -> Kept:
    """Random entries, the likelier the larger their magnitude's rank in their row; each divided by its probability.

    Args:
        row: entries of a row, in which ranks are taken; 0: one row.
        spread: how far the probabilities reach: ``keep * (1 - spread)`` for a row's smallest, ``keep * (1 + spread)`` for its
            largest (the paper's epsilon is ``2 * keep * spread``), none above 1. In [0, 1].

    Exactly ceil(keep * n) are drawn, where the paper tosses a coin for each.
    """
    if not 0 <= spread <= 1:
        raise ValueError(f"spread is {spread}; expected 0 to 1")
    n = tau.numel()
    count = num_kept(keep, n)
    if count == n:
        return _nonzero(Kept(torch.arange(n), tau))
    rows = tau.view(-1, row) if row and n % row == 0 else tau.view(1, -1)
    ranks = rows.abs().argsort(dim=1, stable=True).argsort(dim=1).view(-1).double()
    centred = 2 * ranks / max(1, rows.shape[1] - 1) - 1
    chances = 1 + spread * centred
    for _ in range(8):  # what a chance of 1 cuts off goes to the others
        chances = (chances * (count / float(chances.sum()))).clamp(max=1.0)
    positions = _drawn(chances, count, generator)
    return _nonzero(Kept(positions, (tau[positions] / chances[positions]).to(tau.dtype)))


def prune(
    vector: TaskVector, method: str, keep: float, *, scope: str = "global", seed: int = 0, spread: float = 0.5
) -> TaskVector:
    """A task vector with a share of its entries, as scattered changes; tensors are read when they are needed.

    Args:
        vector: with its base at hand, where its differences are exact (``load_delta(path, base=...)``).
        method: "magnitude", "rescaled", "dare" or "della".
        keep: in (0, 1].
        scope: see above; "dare" and "della" draw within each tensor.
        seed: of what is drawn; each tensor has a stream of its own, by its name.
        spread: of "della".

    Raises:
        ValueError: unknown method or scope, keep outside (0, 1]. DeltaError: the base is not at hand, or a value is not finite.
    """
    check_keep(keep, scope)
    if method not in PRUNERS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(PRUNERS)}")
    one = PRUNERS[method](vector, keep, scope, seed, spread)

    def pruned(name: str, lazy: Lazy) -> Lazy:
        def load() -> Change:
            left = one(name)
            return Change(lazy.shape, lazy.dtype, "real", Scattered(left.positions), left.values.to(wide(lazy.dtype)))

        return Lazy(lazy.shape, lazy.dtype, "real", load)

    changes = {n: c if c.kind == "new" else pruned(n, c) for n, c in vector.changes.items()}
    facts = {**foreign(vector.facts), "method": method, "keep": keep, "scope": scope} | (
        {"seed": seed} if method in ("dare", "della") else {}
    )
    return TaskVector(changes, vector.base, vector.removed, facts)


def foreign(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a task vector but for those of an earlier pruning."""
    return {key: value for key, value in facts.items() if key not in _OURS}


# Over a task vector.

One = Callable[[str], Kept]


def _by_magnitude(vector: TaskVector, keep: float, scope: str, rescale: bool) -> One:
    if scope == "tensor":
        alone = rescaled if rescale else magnitude
        return lambda name: _nonzero(alone(flat(vector, name), keep))
    at = threshold(lambda: (tau for _, tau in flats(vector)), num_kept(keep, num_entries(vector)))
    before, factor = _ties_before(vector, at), 1.0
    if rescale:
        total, left = 0.0, 0.0
        for name, tau in flats(vector):
            total += _squares(tau)
            left += _squares(_largest(tau, at, before[name])[0].values)
        factor = _restoring(total, left)

    def one(name: str) -> Kept:
        found = _nonzero(_largest(flat(vector, name), at, before[name])[0])
        return Kept(found.positions, found.values * factor) if rescale else found

    return one


def _drawing(draw: Callable[[Tensor, torch.Generator, int], Kept], vector: TaskVector, seed: int) -> One:
    def one(name: str) -> Kept:
        tau, shape = flat(vector, name), vector.changes[name].shape
        return draw(tau, generator(seed, name), shape[-1] if len(shape) > 1 else 0)

    return one


PRUNERS: dict[str, Callable[[TaskVector, float, str, int, float], One]] = {
    "magnitude": lambda v, keep, scope, seed, spread: _by_magnitude(v, keep, scope, rescale=False),
    "rescaled": lambda v, keep, scope, seed, spread: _by_magnitude(v, keep, scope, rescale=True),
    "dare": lambda v, keep, scope, seed, spread: _drawing(lambda t, g, _: dare(t, keep, g), v, seed),
    "della": lambda v, keep, scope, seed, spread: _drawing(
        lambda t, g, row: della(t, keep, g, row=row, spread=spread), v, seed
    ),
}


def flat(vector: TaskVector, name: str) -> Tensor:
    """One difference, dense and flat, checked to be finite."""
    tau = vector[name].view(-1)
    if not bool(tau.isfinite().all()):
        raise DeltaError(f"'{name}' holds NaN or infinity; it cannot be pruned")
    return tau


def flats(vector: TaskVector) -> Iterator[tuple[str, Tensor]]:
    for name in vector.names:
        yield name, flat(vector, name)


def num_entries(vector: TaskVector) -> int:
    """Of all tensors that the task vector names, kept or not."""
    return sum(vector.changes[name].shape.numel() for name in vector.names)


def generator(seed: int, name: str) -> torch.Generator:
    """A stream of random numbers for one tensor: the same whatever other tensors there are."""
    from hashlib import blake2b

    digest = blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _largest(tau: Tensor, at: Threshold, ties_before: int) -> tuple[Kept, int]:
    positions, ties = kept(tau, at, ties_before)
    return Kept(positions, tau[positions]), ties


def _ties_before(vector: TaskVector, at: Threshold) -> dict[str, int]:
    """For each tensor, how many entries of the threshold's very magnitude come in those before it."""
    before, seen = {}, 0
    for name, tau in flats(vector):
        before[name] = seen
        if at.ties:
            seen += int(np.count_nonzero(patterns(tau) == at.pattern))
    return before


def _drawn(chances: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` positions, increasing: by systematic sampling, each drawn with its chance (in (0, 1]; they sum to count)."""
    n = chances.numel()
    order = torch.randperm(n, generator=generator)
    ends = chances[order].double().cumsum(0)
    ends *= count / float(ends[-1])
    offset = float(torch.rand(1, generator=generator, dtype=torch.float64))
    picks = torch.searchsorted(ends, torch.arange(count, dtype=torch.float64) + offset).clamp(max=n - 1).unique()
    if picks.numel() < count:  # two steps fell on one entry, by rounding or a chance of 1: the first of the others make it up
        free = torch.ones(n, dtype=torch.bool).scatter_(0, picks, False).nonzero().view(-1)
        picks = torch.cat([picks, free[: count - picks.numel()]])
    return order[picks].sort().values


def _nonzero(found: Kept) -> Kept:
    """Without entries that are zero: to keep these is to keep nothing."""
    if bool((found.values != 0).all()):
        return found
    where = found.values != 0
    return Kept(found.positions[where], found.values[where])


def _squares(tau: Tensor) -> float:
    return dot(tau, tau)


def _restoring(total: float, left: float) -> float:
    return math.sqrt(total / left) if left > 0 else 1.0
