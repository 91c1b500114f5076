"""DELLA: random differences, the likelier the larger their rank (MagPrune; Deep et al. 2024, arXiv 2406.11617).

A row is ranked by itself; of a tensor of three or more dimensions, as in mergekit, the entries along dimension 1.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from paring.fuse.inputs import Inputs
from paring.fuse.linear import INT8_MASK, LAMBDA, WEIGHT, check_weights, normalise
from paring.fuse.method import Method, Parameter, Settings
from paring.fuse.thin import by_rank
from paring.fuse.thinned import merge, work_bytes
from paring.fuse.ties import DENSITY, rescale

PAPER = "Deep et al. 2024, arXiv 2406.11617"
EPSILON = Parameter(
    "epsilon",
    0.15,
    "how far probabilities reach: from density - epsilon to density + epsilon",
    per_model=True,
    low=0,
    high=0.5,
    open_low=True,
    open_high=True,
    remedy="for one probability for all, use dare_ties or dare_linear",
)


def della(inputs: Inputs, out: Tensor, elect: bool) -> None:
    """See above."""
    if len(inputs.shape) > 2:
        inputs = replace(inputs, rows=1)
    merge(inputs, out, by_rank, (), elect=elect, row=inputs.shape[inputs.rows] if inputs.shape else 1)


def check(parameters: Settings, per_model: Sequence[Settings]) -> str | None:
    for i, one in enumerate(per_model):
        density, epsilon = float(one["density"]), float(one["epsilon"])  # type: ignore[arg-type]
        if density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            return (
                f"model {i + 1}: density {density:g} and epsilon {epsilon:g} are probabilities from {density - epsilon:g} to "
                f"{density + epsilon:g}; expected an epsilon below {min(density, 1 - density):g}"
            )
    return check_weights(parameters, per_model)


METHODS = tuple(
    Method(
        name,
        PAPER,
        about,
        partial(della, elect=elect),
        (WEIGHT, DENSITY, EPSILON, LAMBDA, normalise(elect), rescale(True), INT8_MASK),
        work_bytes=work_bytes,
        check=check,
    )
    for name, about, elect in (
        ("della", "random differences by rank, of the elected sign", True),
        ("della_linear", "random differences by rank, rescaled", False),
    )
)
