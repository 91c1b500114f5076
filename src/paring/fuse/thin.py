"""Thinning a difference: which of its entries take part in a merge, and what makes up for the others.

    magnitude   the largest: int(density n) of n entries, at least one                           (TIES, DELLA's baseline)
    outliers    the largest but for the int(gamma n) very largest                                (model breadcrumbs)
    random      each with probability density                                                    (DARE)
    magprune    each with a probability between density - epsilon and density + epsilon that grows linearly with the rank of
                its magnitude in its row                                                         (DELLA)

Ranks in a row are those of the magnitudes' upper 15 bits, bf16's: what agrees in these (to 0.8 %) counts as equal. They are
only ever chances, those of being the larger of two, and nothing is sorted.
With ``rescale`` what is kept is multiplied by ||tau||_1 / ||kept||_1, as mergekit does (DARE's paper: 1 / density,
of which that is the value on average). A density of 1 thins nothing, whatever else is set.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paring.fuse.draws import Draws, below
from paring.fuse.inputs import Cuts, Inputs
from paring.fuse.method import Ranking
from paring.fuse.selection import Read

Thin = Callable[[Tensor, int], Tensor]  # (a piece of a difference, where it starts), in order -> zeros where it is thinned
Thinner = Callable[[Inputs, int, Cuts], Thin]  # of one model; each call begins anew
Bools = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int16]


def everything(piece: Tensor, start: int) -> Tensor:
    return piece


def num_kept(density: float, n: int) -> int:
    return max(1, int(density * n))


def by_magnitude(inputs: Inputs, found: Cuts) -> list[Ranking]:
    """For each model, where its largest differences end."""

    def counts(density: float) -> Callable[[int, int], list[int]]:
        return lambda n, nonzero: [num_kept(density, n)]

    return [Ranking(_magnitudes(inputs, i), counts(density), model=i) for i, density in enumerate(inputs.values("density"))]


def without_outliers(inputs: Inputs, found: Cuts) -> list[Ranking]:
    """For each model, where its largest differences end and where the outliers among them do."""

    def counts(density: float, gamma: float) -> Callable[[int, int], list[int]]:
        def of(n: int, nonzero: int) -> list[int]:
            kept = num_kept(density, n)
            top = min(int(gamma * n), n - kept)  # fewer outliers where the two exceed all there are
            return [kept + top, top]

        return of

    settings = zip(inputs.values("density"), inputs.values("gamma"), strict=True)
    return [Ranking(_magnitudes(inputs, i), counts(*of), model=i) for i, of in enumerate(settings)]


def largest(inputs: Inputs, i: int, cuts: Cuts) -> Thin:
    """Of a model, what cuts keep: one, or two where outliers are taken out."""
    inside, *outliers = cuts[i]
    if not outliers or math.isinf(outliers[0].magnitude):
        return inside.keep
    return lambda piece, start: inside.keep(piece, start).sub_(outliers[0].keep(piece, start))


def at_random(inputs: Inputs, i: int, cuts: Cuts) -> Thin:
    density = inputs.values("density")[i]
    if density >= 1:
        return everything
    draws, bound = Draws(inputs.seed, inputs.name, inputs.keys[i]), below(density)
    return lambda piece, start: masked(piece, draws.take(piece.numel()) < bound)


def by_rank(inputs: Inputs, i: int, cuts: Cuts) -> Thin:
    """A model's pieces are whole rows."""
    density, epsilon = inputs.values("density")[i], inputs.values("epsilon")[i]
    if density >= 1:
        return everything
    draws, row = Draws(inputs.seed, inputs.name, inputs.keys[i]), inputs.shape[inputs.rows] if inputs.shape else 1

    def thin(piece: Tensor, start: int) -> Tensor:
        codes = (piece.cpu().numpy().view(np.int32) >> 16).astype(np.int16) & 0x7FFF
        return masked(piece, _kept_by_rank(codes.reshape(-1, row), draws.take(codes.size), density, epsilon))

    return thin


def _kept_by_rank(codes: Codes, drawn: npt.NDArray[np.uint32], density: float, epsilon: float) -> Bools:
    """Which entries stay, with the chance density - epsilon + 2 epsilon rank / (n - 1), rank among the n of a row, from 0.

    Nothing is sorted for it: rank / (n - 1) is the chance that another entry of the row, any of them alike, is smaller. A draw
    u < density - epsilon keeps an entry, one above density + epsilon drops it; one in between names another entry of the row,
    and the larger wins. Of equal codes either does, half the time each, so that an entry's chance is that of its mean rank.

    Args:
        codes: of magnitudes, [rows, n].
        drawn: a number for each.

    Returns:
        Flat.
    """
    rows, n = codes.shape
    if n == 1:
        return drawn < below(density)
    others = np.empty((rows, n + 2), np.int16)  # between one that is smaller than all and one that is larger
    others[:, 0], others[:, 1:-1], others[:, -1] = np.iinfo(np.int16).min, codes, np.iinfo(np.int16).max
    scale = (n - 1) / (2 * epsilon)
    place = drawn.view(np.int32).astype(np.float32)  # (u - 1/2) 2^32; of unsigned ones it takes three times as long
    place *= np.float32(scale * 2.0**-32)
    place += np.float32(1 + scale * (0.5 - density + epsilon))
    np.clip(place, 0, n, out=place)
    at = place.astype(np.int32).reshape(rows, n)  # from 1 to n - 1: one of the others, counted without the entry itself
    at += at > np.arange(n, dtype=np.int32)
    at += np.arange(0, rows * (n + 2), n + 2, dtype=np.int32)[:, None]
    high = (drawn & 1).astype(np.int16)
    high += codes.reshape(-1)
    return high > others.reshape(-1).take(at.reshape(-1))


def masked(piece: Tensor, keep: Bools) -> Tensor:
    """A piece with zeros where it is not kept; in place."""
    if piece.device.type == "cpu":
        values = piece.numpy()
        np.multiply(values, keep, out=values)
        return piece
    return piece.mul_(torch.from_numpy(keep).to(piece.device))


def _magnitudes(inputs: Inputs, i: int) -> Read:
    return lambda start, end, step: inputs.difference(i, start, end, step).abs_()
