"""Model breadcrumbs: neither the smallest differences nor the outliers (Davari and Belilovsky 2023, arXiv 2312.06795).

``density`` is the share kept, ``gamma`` that of the largest which are dropped; where both exceed all there are, fewer outliers
are. At a density of 1 nothing is dropped, outliers neither (as in mergekit).
"""

from functools import partial

from paring.fuse.linear import INT8_MASK, LAMBDA, WEIGHT, check_weights, normalise
from paring.fuse.method import Method, Parameter
from paring.fuse.thin import largest, without_outliers
from paring.fuse.thinned import merge, work_bytes
from paring.fuse.ties import DENSITY, rescale

PAPER = "Davari and Belilovsky 2023, arXiv 2312.06795"
GAMMA = Parameter(
    "gamma",
    0.01,
    "share of the largest differences that is dropped",
    per_model=True,
    low=0,
    high=1,
    open_low=True,
    open_high=True,
    remedy="where no outlier shall be dropped, a gamma too small for one entry (1e-12) says so",
)

METHODS = tuple(
    Method(
        name,
        PAPER,
        about,
        partial(merge, thinner=largest, stages=(without_outliers,), elect=elect),
        (WEIGHT, DENSITY, GAMMA, LAMBDA, normalise(False), rescale(False), INT8_MASK),
        stages=(without_outliers,),
        work_bytes=work_bytes,
        check=check_weights,
    )
    for name, about, elect in (
        ("breadcrumbs", "differences that are neither small nor outliers", False),
        ("breadcrumbs_ties", "the same, of the elected sign", True),
    )
)
