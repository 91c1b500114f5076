"""Lottery tickets (Frankle and Carbin, arXiv 1803.03635; SliceFine, "good" and "bad" slices): masks, what slices hold of them.

    iterative magnitude pruning: train all weights, keep the largest in every matrix, go on with those alone; again
        rewound     each round begins at the pretrained weights again, as lottery tickets are found
        finetuned   each round goes on from the weights that were trained

A slice's overlap is the share of its entries that are in the mask.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from paring.tune.slices import Axis

SOURCES = ("finetuned", "rewound")


def kept_largest(weight: Tensor, mask: Tensor, share: float) -> Tensor:
    """A mask of the largest magnitudes of ``weight`` among those of ``mask``: ``share`` of their number, at least one.

    Args:
        weight, mask: of the same shape; the mask boolean, not empty. share: in (0, 1].
    """
    candidates = mask.flatten().nonzero().squeeze(1)
    count = max(1, round(share * len(candidates)))
    order = weight.detach().flatten()[candidates].abs().argsort(descending=True, stable=True)
    kept = torch.zeros_like(mask).flatten()
    kept[candidates[order[:count]]] = True
    return kept.view_as(mask)


def overlaps(mask: Tensor, axis: Axis, positions: Sequence[int], rank: int) -> Tensor:
    """Share of each slice's entries in the mask, ``[positions]`` in fp64.

    Args:
        mask: ``[n, out, in]``, boolean; slices of n matrices at the same place are one slice (fused experts).
        positions: first rows (columns). rank: rows (columns) in a slice.
    """
    lines = mask.double().mean((0, 2) if axis == "row" else (0, 1))
    return lines.unfold(0, rank, 1)[torch.as_tensor(positions, device=lines.device)].mean(-1)


@torch.no_grad()
def apply_masks(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Entries outside of the masks become zero, in place."""
    for name, mask in masks.items():
        weights[name].mul_(mask)
