"""Which slices hold the weights that matter, by Wanda's score (Sun et al., arXiv 2306.11695; SliceFine, importance robustness).

    S_ij = |W_ij| · ‖X_·j‖₂        X: all inputs of the layer on calibration rows, one a token (a place of a convolution)
    a slice's score = the sum of S over its entries

Norms are taken in the model's own forward, at every layer where it stands; tokens that are padding do not count.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from paring.probe.layers import as_matrices
from paring.tune.slices import Axis, Slice
from paring.tune.targets import Layer

Batch = Mapping[str, Tensor]


def slice_scores(weight: Tensor, norms: Tensor, axis: Axis, positions: Sequence[int], rank: int) -> Tensor:
    """The score of each slice, ``[positions]`` in fp64.

    Args:
        weight: ``[out, in]``.
        norms: ``[groups, in]``; 1 group, but of grouped convolutions: rows of group g read its inputs alone.
        positions: first rows (columns). rank: rows (columns) in a slice.
    """
    out, inp = weight.shape
    groups = norms.shape[0]
    scores = weight.double().abs().reshape(groups, out // groups, inp) * norms.double().unsqueeze(1)
    lines = scores.reshape(out, inp).sum(1 if axis == "row" else 0)
    return lines.unfold(0, rank, 1)[torch.as_tensor(positions, device=lines.device)].sum(-1)


def weight_of(layer: Layer) -> Tensor:
    """``[out, in]``, detached."""
    return as_matrices(layer, layer.module.weight.detach())[0]


@torch.no_grad()
def input_norms(model: nn.Module, layers: Sequence[Layer], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """``‖X_·j‖₂`` of every layer's inputs over all rows, by layer, ``[groups, in]`` in fp64.

    Args:
        model: in evaluation mode. layers: linear ones, convolutions, Conv1D.

    Raises:
        ValueError: fused experts, whose forward no hook sees; a layer that no row reached; inputs that
            are not finite.
    """
    fused = [layer.name for layer in layers if layer.kind.name == "experts"]
    if fused:
        raise ValueError(
            f"layer '{fused[0]}' holds fused experts, whose inputs cannot be seen; expected linear layers and convolutions: "
            f"leave it out, --exclude '{fused[0]}'"
        )
    sums: dict[str, Tensor] = {}
    with _summing(layers, sums) as masks:
        for batch in batches:
            masks[:] = [batch["attention_mask"].bool()] if "attention_mask" in batch else []
            model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
    for layer in layers:
        if layer.name not in sums:
            raise ValueError(
                f"no calibration row reached layer '{layer.name}'; expected one at least: more rows, or --exclude it"
            )
        if not torch.isfinite(sums[layer.name]).all():
            raise ValueError(f"the inputs of layer '{layer.name}' are not finite")
    return {name: total.sqrt() for name, total in sums.items()}


@contextmanager
def _summing(layers: Sequence[Layer], sums: dict[str, Tensor]) -> Iterator[list[Tensor]]:
    """Hooks that add up squared inputs; gives the list whose one entry is the present batch's mask ``[rows, tokens]``."""
    masks: list[Tensor] = []

    def watch(layer: Layer) -> torch.utils.hooks.RemovableHandle:
        whole = Slice("column", 0, layer.matrix.inp)

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            kept = layer.kind.keep(module, inputs[0], output, whole)  # of a convolution [rows, groups, in, places]
            if layer.kind.name == "convolution":
                found = kept.double().square().sum((0, 3))
            else:
                if masks and kept.ndim == 3 and kept.shape[:2] == masks[0].shape:
                    kept = kept[masks[0]]
                found = kept.double().flatten(0, -2).square().sum(0).unsqueeze(0)
            sums[layer.name] = sums[layer.name] + found if layer.name in sums else found

        return layer.module.register_forward_hook(hook)  # type: ignore[no-any-return]

    handles = [watch(layer) for layer in layers]
    try:
        yield masks
    finally:
        for handle in handles:
            handle.remove()
