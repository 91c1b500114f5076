"""Models that change different entries, put together: each entry is that of the one model which changes it, bitwise.

What SliceFine runs in different lanes (``paring tune --lane i/n``) give: the sum of their differences, without its rounding. An
entry that two models change is an error, whether they agree on it or not, unless ``overlap`` is true of its tensor (a head that
the base has, say): there the differences are added up.
"""

import torch
from torch import Tensor

from paring.fuse.inputs import FuseError, Inputs
from paring.fuse.method import Method, Parameter


def disjoint(inputs: Inputs, out: Tensor) -> None:
    """See above."""
    flat, add = out.view(-1), bool(inputs.parameters["overlap"])
    for start, end in inputs.ranges():
        base = inputs.base_piece(start, end)
        merged, changed = base.clone(), torch.zeros(end - start, dtype=torch.bool, device=inputs.device)
        for i in range(len(inputs.models)):
            weights = inputs.weights(i, start, end)
            own = weights != base
            both = own & changed
            if bool(both.any()):
                if not add:
                    _refuse(inputs, i, start, int(both.nonzero()[0, 0]))
                merged = torch.where(both, merged + (weights - base), merged)
            merged = torch.where(own & ~changed, weights, merged)
            changed |= own
        flat[start:end] = merged


def _refuse(inputs: Inputs, i: int, start: int, at: int) -> None:
    """Names the two models."""
    one = slice(start + at, start + at + 1)
    base = inputs.base_piece(one.start, one.stop)
    first = next(j for j in range(i) if bool(inputs.weights(j, one.start, one.stop) != base))
    raise FuseError(
        f"'{inputs.name}': models '{inputs.keys[first]}' and '{inputs.keys[i]}' both change entry {one.start:,} of "
        f"{inputs.numel:,}; expected models that change different ones (paring tune --lane): overlap: true for this tensor "
        "adds the differences up, task_arithmetic does so for all"
    )


METHODS = (
    Method(
        "disjoint",
        "SliceFine: Kowsher et al. 2025, arXiv 2510.08513",
        "every entry of the one model that changes it",
        disjoint,
        (Parameter("overlap", False, "add up what several models change, instead of refusing it", kind=bool),),
        exclusive=True,
    ),
)
