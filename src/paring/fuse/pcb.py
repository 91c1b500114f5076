"""PCB: parameter competition balancing (Du et al. 2024, arXiv 2410.02396), by the formulas of its authors' code.

    a_i = |tau_i| between its 0.01 % and 99.99 % quantiles (at least the smallest is clipped), with tau_i's sign
    s_i = exp(n norm(|a_i|)^2) tanh(tau_i sum_j tau_j)        norm: linearly onto [0, 1]; n models
    s_i = norm(s_i cut off below its density largest)         zero for all but these
    theta = theta_pre + lambda sum_i w_i a_i s_i / sum_i s_i

An entry that pulls against the sum has s_i < 0 and never takes part; in the authors' code it does once density exceeds
the share of entries that do not. The authors rank whole task vectors: ``scope: global``.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from paring.fuse.inputs import Cut, Cuts, Inputs
from paring.fuse.linear import LAMBDA, SHARE
from paring.fuse.method import Method, Parameter, Ranking
from paring.fuse.scope import local_cuts

_OUTLIERS = 1e-4


def by_magnitude(inputs: Inputs, found: Cuts) -> list[Ranking]:
    """For each model, its clipping bounds: the larger first."""

    def read(i: int) -> Callable[[int, int, int], Tensor]:
        return lambda start, end, step: inputs.difference(i, start, end, step).abs_()

    return [
        Ranking(
            read(i),
            lambda n, nonzero: [n - int(max(0.0, n * (1 - _OUTLIERS) - 1)), max(1, n - max(1, int(n * _OUTLIERS)))],
            model=i,
        )
        for i in range(len(inputs.models))
    ]


def by_score(inputs: Inputs, found: Cuts) -> list[Ranking]:
    """For each model, where its largest scores end, and the largest of all."""
    bounds = [_bounds(cuts) for cuts in found]

    def read(i: int) -> Callable[[int, int, int], Tensor]:
        def piece(start: int, end: int, step: int) -> Tensor:
            taus = _differences(inputs, start, end, step)
            return _score(taus[i], _sum(taus), bounds[i], len(taus))

        return piece

    density = float(inputs.parameters["density"])  # type: ignore[arg-type]
    return [Ranking(read(i), lambda n, nonzero: [n - min(n - 1, int(n * (1 - density))), 1]) for i in range(len(bounds))]


def pcb(inputs: Inputs, out: Tensor) -> None:
    """See above."""
    cuts, n, flat = local_cuts(inputs, (by_magnitude, by_score)), len(inputs.models), out.view(-1)
    bounds = [_bounds(c) for c in cuts[:n]]
    weights = inputs.values("weight")
    factor = float(inputs.parameters["lambda"])  # type: ignore[arg-type]
    for start, end in inputs.ranges():
        taus = _differences(inputs, start, end)
        together = _sum(taus)
        total, shares = torch.zeros_like(together), torch.zeros_like(together)
        for tau, weight, bound, (least, most) in zip(taus, weights, bounds, cuts[n:], strict=True):
            share = _share(_score(tau.clone(), together, bound, n), least.magnitude, most.magnitude)
            shares.add_(share)
            total.add_(_clipped(tau, bound).mul_(share), alpha=weight)
        merged = total.div_(shares.clamp_min_(1e-12))
        flat[start:end] = merged.mul_(factor).add_(inputs.base_piece(start, end))


def _differences(inputs: Inputs, start: int, end: int, step: int = 1) -> list[Tensor]:
    base = inputs.base_piece(start, end, step)
    return [inputs.difference(i, start, end, step, base=base) for i in range(len(inputs.models))]


def _sum(taus: list[Tensor]) -> Tensor:
    total = taus[0].clone()
    for tau in taus[1:]:
        total.add_(tau)
    return total


def _bounds(cuts: tuple[Cut, ...]) -> tuple[float, float]:
    """What magnitudes are clipped to."""
    return cuts[1].magnitude, cuts[0].magnitude


def _clipped(tau: Tensor, bound: tuple[float, float]) -> Tensor:
    return tau.sign().mul_(tau.abs().clamp_(*bound))


def _score(tau: Tensor, together: Tensor, bound: tuple[float, float], n: int) -> Tensor:
    """How an entry of one model fares, of which nothing is negative: those that pull against the sum have zero."""
    low, high = bound
    own = tau.abs().clamp_(low, high).sub_(low).div_(high - low) if high > low else torch.zeros_like(tau)
    with_sum = tau.mul(together).clamp_(0, 20).mul_(2).expm1_()  # tanh x = m / (m + 2), m = e^2x - 1: twice as fast
    return own.square_().mul_(n).exp_().mul_(with_sum.div_(with_sum + 2))


def _share(score: Tensor, least: float, most: float) -> Tensor:
    """A score from ``least`` to ``most`` onto [0, 1]; overwritten."""
    if most > least:
        return score.clamp_(least, most).sub_(least).div_(most - least)
    return score.sub_(least).ge_(0) if least > 0 else score.zero_()


METHODS = (
    Method(
        "pcb",
        "Du et al. 2024, arXiv 2410.02396",
        "entries weighted by how they compete, within a task and between tasks",
        pcb,
        (
            SHARE,
            Parameter("density", 0.1, "share of a model's entries that may take part", low=0, high=1, open_low=True),
            LAMBDA,
        ),
        stages=(by_magnitude, by_score),
    ),
)
