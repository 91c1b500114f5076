"""NPS merging (Du et al. 2025, arXiv 2505.18713): theta_pre + sum_i w_i tau'_i, tau'_i what a search has left of tau_i.

Pruning and weights both come from scores on calibration data (``paring.slim.nps``, ``paring.fusion``); what is here is the sum
that is left when both are known. ``paring fuse --calibration`` does all three.
"""

from torch import Tensor

from paring.fuse.inputs import Inputs
from paring.fuse.linear import SHARE, add_weighted
from paring.fuse.method import Method


def nps(inputs: Inputs, out: Tensor) -> None:
    """See above, of differences that are pruned."""
    add_weighted(inputs, out, 1.0)


METHODS = (
    Method(
        "nps",
        "Du et al. 2025, arXiv 2505.18713",
        "what a search leaves of each difference, weighted by a search",
        nps,
        (SHARE,),
        needs_data=True,
    ),
)
