"""Task energy (SliceFine): do a pretrained network's features already hold the task, and in few directions?

``F`` is ``[rows, width]``: one feature vector for each row of a calibration set, after a block, centred. Its principal
directions are the right singular vectors ``V``, in the order of their variance. ``M`` is F with every row replaced by its
class's mean, the features' part that the labels explain (``M Mᵀ`` is the label kernel, weighted by distance).

    energy(k)        ‖F V_k‖² / ‖F‖²      PCA's cumulative energy
    class mean(k)    ‖M V_k‖² / ‖M‖²      of what tells classes apart, the share that lies in the top k directions
    k(τ)             the smallest k at which a share reaches τ
    class share      ‖M‖² / ‖F‖²          of the features' variance, the part between classes (R², eta squared)
    adjusted         (class share - c) / (1 - c), c = (classes - 1) / (rows - 1): what random labels would reach is taken off

The paper's own definition could not be found; these are ours.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TAUS = (0.8, 0.9, 0.95, 0.99)
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Energy:
    """What one layer's features hold.

    Attributes:
        energy, class_mean: cumulative shares at k = 1 … min(rows, width), ``[k]`` in fp64, ending with 1; None where the
            features (the class means) do not vary.
        class_share, adjusted: see above; None where the features do not vary.
    """

    energy: Tensor | None
    class_mean: Tensor | None
    class_share: float | None
    adjusted: float | None


def task_energy(features: Tensor, labels: Tensor) -> Energy:
    """Of one layer.

    Args:
        features: ``[rows, width]``, any floating type, finite.
        labels: int64 ``[rows]``, of at least two classes.

    Raises:
        ValueError: fewer than two classes, as many classes as rows, or features that are not finite.
    """
    classes, of_row = labels.unique(return_inverse=True)
    if not 2 <= len(classes) < len(labels):
        raise ValueError(f"task_energy: {len(labels)} rows of {len(classes)} class(es); expected at least two, fewer than rows")
    if not features.isfinite().all():
        raise ValueError("task_energy: the features are not finite")
    exact = features.double()
    centred = exact - exact.mean(0)
    counts = torch.bincount(of_row).double()
    means = torch.zeros(len(classes), features.shape[1], dtype=torch.float64, device=features.device)
    means = means.index_add_(0, of_row, centred) / counts[:, None]
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    total, between = float(values.square().sum()), float((means.square().sum(1) * counts).sum())
    if total <= _ROUNDING * float(exact.square().sum()):
        return Energy(None, None, None, None)
    share, chance = between / total, (len(classes) - 1) / (len(labels) - 1)
    along = ((means @ directions.t()).square() * counts[:, None]).sum(0)
    return Energy(
        energy=(values.square().cumsum(0) / total).clamp_(max=1),
        class_mean=(along.cumsum(0) / along.sum()).clamp_(max=1) if between > _ROUNDING * total else None,
        class_share=share,
        adjusted=(share - chance) / (1 - chance),
    )


def smallest_k(shares: Tensor | None, tau: float) -> int | None:
    """The smallest k at which cumulative shares reach ``tau`` (to rounding)."""
    if shares is None:
        return None
    return min(int((shares < tau - 1e-9).sum()) + 1, len(shares))


@torch.no_grad()
def pooled_features(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> list[Tensor]:
    """The features of every layer, ``[rows, width]`` each, on the CPU: after the embeddings, then after every block.

    A row's feature is the mean over its tokens that are no padding (its patches, its places).

    Args:
        model: of transformers, in evaluation mode.
        batches: its inputs; ``labels`` are left out.

    Raises:
        ValueError: the model gives no hidden states.
    """
    found: list[list[Tensor]] = []
    for batch in batches:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        states: Sequence[Tensor] | None = getattr(model(**inputs, output_hidden_states=True), "hidden_states", None)
        if not states:
            raise ValueError(f"{type(model).__name__} gives no hidden_states; expected a model of one stack of blocks")
        found = found or [[] for _ in states]
        for layer, state in zip(found, states, strict=True):
            layer.append(_pooled(state, batch.get("attention_mask")).float().cpu())
    return [torch.cat(layer) for layer in found]


def _pooled(state: Tensor, mask: Tensor | None) -> Tensor:
    if state.ndim > 3:  # [rows, channels, height, width]
        return state.flatten(2).mean(-1)
    if mask is None or mask.shape != state.shape[:2]:
        return state.mean(1)
    weights = mask.to(state.dtype)
    return (state * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)


def balanced_rows(labels: Sequence[int], count: int, names: Sequence[str], seed: int) -> list[int]:
    """Row numbers, about equally many of each class, drawn without replacement; a class that has fewer gives all it has.

    Args:
        labels: of all rows, positions in ``names``.
        count: rows wanted.

    Raises:
        ValueError: fewer rows are wanted than two for each class, or a class has fewer than two rows.
    """
    if count < 2 * len(names):
        raise ValueError(
            f"rows is {count}; expected at least two for each of the {len(names)} classes, {2 * len(names)}: a class's mean "
            "needs them"
        )
    generator = torch.Generator().manual_seed(seed)
    given = torch.as_tensor(labels)
    drawn: list[int] = []
    for number, name in enumerate(names):
        there = (given == number).nonzero().flatten()
        if len(there) < 2:
            raise ValueError(f"data: the class {name!r} has {len(there)} train row(s); expected at least two")
        wanted = count // len(names) + (number < count % len(names))
        drawn += there[torch.randperm(len(there), generator=generator)[:wanted]].tolist()
    return drawn
