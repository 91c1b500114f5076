"""DARE: drop and rescale (Yu et al. 2024, arXiv 2311.03099), then a sum (dare_linear) or TIES' election (dare_ties).

Entries are kept by a coin each; the paper divides by density, mergekit restores the L1 norm, and so do we (``thin``).
"""

from functools import partial

from paring.fuse.linear import INT8_MASK, LAMBDA, WEIGHT, check_weights, normalise
from paring.fuse.method import Method
from paring.fuse.thin import at_random
from paring.fuse.thinned import merge, work_bytes
from paring.fuse.ties import DENSITY, rescale

PAPER = "Yu et al. 2024, arXiv 2311.03099"
PARAMETERS = (WEIGHT, DENSITY, LAMBDA, normalise(False), rescale(True), INT8_MASK)

METHODS = tuple(
    Method(
        name,
        PAPER,
        about,
        partial(merge, thinner=at_random, stages=(), elect=elect),
        PARAMETERS,
        work_bytes=work_bytes,
        check=check_weights,
    )
    for name, about, elect in (
        ("dare_linear", "random differences, rescaled", False),
        ("dare_ties", "random differences, rescaled, of the elected sign", True),
    )
)
