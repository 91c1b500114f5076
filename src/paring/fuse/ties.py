"""TIES: trim, elect sign, merge (Yadav et al. 2023, arXiv 2306.01708). See ``thin`` and ``thinned``."""

from torch import Tensor

from paring.fuse.inputs import Inputs
from paring.fuse.linear import INT8_MASK, LAMBDA, WEIGHT, check_weights, normalise
from paring.fuse.method import Method, Parameter
from paring.fuse.thin import by_magnitude, largest
from paring.fuse.thinned import merge, work_bytes

DENSITY = Parameter(
    "density",
    1.0,
    "share of a difference's entries that is kept",
    per_model=True,
    low=0,
    high=1,
    open_low=True,
    remedy="to leave a model out, take it off the list",
)


def rescale(default: bool) -> Parameter:
    return Parameter("rescale", default, "scale what is kept to the L1 norm of the whole difference", kind=bool)


def ties(inputs: Inputs, out: Tensor) -> None:
    """See above."""
    merge(inputs, out, largest, (by_magnitude,), elect=True)


METHODS = (
    Method(
        "ties",
        "Yadav et al. 2023, arXiv 2306.01708",
        "largest differences, of the elected sign",
        ties,
        (WEIGHT, DENSITY, LAMBDA, normalise(True), rescale(False), INT8_MASK),
        stages=(by_magnitude,),
        work_bytes=work_bytes,
        check=check_weights,
    ),
)
