"""Means on the sphere: slerp, nuslerp, multislerp and the Karcher mean (Karcher 1977; Shoemake 1985), as mergekit has them.

Each is a weighted sum of the inputs, and its weights depend on their norms and angles alone. So one reading makes the Gram
matrix (fp64), the iterations run on a handful of numbers, and a second reading makes the sum: no unit vector is ever made.

    slerp        base to model by the angle t * theta; linear where |cos theta| > 0.9995
    nuslerp      two models (or their differences from a base), t = w_2 / (w_1 + w_2); whole tensors, rows or columns
    multislerp   the direction of the weighted mean of unit vectors, at the weighted mean of the norms
    karcher      the point of the sphere whose squared angles to all inputs are least, at the mean of the norms
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paring.fuse.inputs import FuseError, Inputs
from paring.fuse.linear import WEIGHT
from paring.fuse.method import REQUIRED, Method, Parameter, Settings

Floats = npt.NDArray[np.float64]
_LINEAR = 0.9995  # |cos| above which slerp is linear


def gram(inputs: Inputs, *, differences: bool, with_base: bool = False) -> Floats:
    """Inner products of all models (or differences), the base first with ``with_base``; fp64."""
    n = len(inputs.models) + with_base
    total = torch.zeros(n, n, dtype=torch.float64, device=inputs.device)
    for start, end in inputs.ranges():
        rows = torch.stack(_pieces(inputs, start, end, differences, with_base)).double()
        total.addmm_(rows, rows.T)
    return total.cpu().numpy()


def weighted(inputs: Inputs, out: Tensor, factors: Sequence[float], *, differences: bool, with_base: bool = False) -> None:
    """The sum of all, times factors; plus the base where they are differences."""
    flat = out.view(-1)
    for start, end in inputs.ranges():
        pieces = _pieces(inputs, start, end, differences, with_base)
        merged = pieces[0].mul_(factors[0])
        for piece, factor in zip(pieces[1:], factors[1:], strict=True):
            merged.add_(piece, alpha=factor)
        flat[start:end] = merged.add_(inputs.base_piece(start, end)) if differences else merged


def slerp(inputs: Inputs, out: Tensor) -> None:
    """From the base (t = 0) to the model (t = 1)."""
    g = gram(inputs, differences=False, with_base=True)
    t = float(inputs.parameters["t"])  # type: ignore[arg-type]
    norms = [norm if norm > 1e-8 else 1.0 for norm in np.sqrt(np.diag(g))]
    cos = min(1.0, max(-1.0, g[0, 1] / norms[0] / norms[1]))
    weighted(inputs, out, (1 - t, t) if abs(cos) > _LINEAR else arc(cos, t), differences=False, with_base=True)


def arc(cos: float, t: float) -> tuple[float, float]:
    """Factors of the two ends of an arc for the point at t; linear where they are in line to fp32's precision."""
    cos = float(np.float32(cos))
    if np.float32(1.0) - np.float32(cos) * np.float32(cos) <= 1e-16:
        return 1 - t, t
    theta = math.acos(cos)
    return math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)


def nuslerp(inputs: Inputs, out: Tensor) -> None:
    """See above; rows are along the last dimension, columns along the first."""
    first, second = inputs.values("weight")
    t = second / (first + second)
    differences = inputs.base is not None
    one_row = inputs.numel == 0 or len(inputs.shape) < 2
    if inputs.parameters["nuslerp_flatten"] or one_row:
        g = gram(inputs, differences=differences)
        norms = np.maximum(np.sqrt(np.diag(g)), 1e-7)
        weighted(inputs, out, arc(min(1.0, max(-1.0, g[0, 1] / norms[0] / norms[1])), t), differences=differences)
        return
    columns = bool(inputs.parameters["nuslerp_row_wise"])  # mergekit's name for dim=0
    width = inputs.numel // inputs.shape[0] if columns else inputs.shape[-1]
    flat = out.view(-1)
    sums = torch.zeros(3, width, dtype=torch.float64, device=inputs.device)
    if columns:
        for start, end in inputs.ranges(width):
            a, b = (p.view(-1, width).double() for p in _pieces(inputs, start, end, differences, False))
            sums += torch.stack([(a * a).sum(0), (b * b).sum(0), (a * b).sum(0)])
    for start, end in inputs.ranges(width):
        a, b = (p.view(-1, width) for p in _pieces(inputs, start, end, differences, False))
        products = sums if columns else torch.stack([(x * y).sum(1, dtype=torch.float64) for x, y in ((a, a), (b, b), (a, b))])
        of_a, of_b = _arcs(products, t)
        merged = a * of_a + b * of_b if columns else a * of_a[:, None] + b * of_b[:, None]
        merged = merged.view(-1)
        flat[start:end] = merged.add_(inputs.base_piece(start, end)) if differences else merged


def _arcs(products: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """``arc`` for many pairs, given |a|^2, |b|^2 and a.b of each."""
    norms = products[:2].sqrt().clamp(min=1e-7)
    cos = (products[2] / norms[0] / norms[1]).clamp(-1, 1).float()
    line = 1 - cos.square() <= 1e-16
    theta = cos.masked_fill(line, 0.0).double().acos()
    a, b = ((1 - t) * theta).sin() / theta.sin(), (t * theta).sin() / theta.sin()
    return a.masked_fill(line, 1 - t).float(), b.masked_fill(line, t).float()


def multislerp(inputs: Inputs, out: Tensor) -> None:
    """See above; about the base where there is one."""
    weights = np.array(inputs.values("weight"))
    if inputs.parameters["normalize_weights"]:
        weights = weights / weights.sum()
    differences, eps = inputs.base is not None, float(inputs.parameters["eps"])  # type: ignore[arg-type]
    if len(weights) == 1:
        weighted(inputs, out, [1.0], differences=differences)
        return
    g = gram(inputs, differences=differences)
    norms = np.sqrt(np.diag(g))
    if not norms.any():  # a tensor that no model changed
        weighted(inputs, out, [0.0] * len(weights), differences=differences)
        return
    units = 1 / (norms + eps)
    mean = weights * units
    length = _norm(g, mean)
    if length < eps:
        if len(weights) > 2:
            raise FuseError(
                f"'{inputs.name}': multislerp of models whose directions cancel out; expected another mean than zero: "
                "change the weights, or leave a model out"
            )
        weighted(inputs, out, weights.tolist(), differences=differences)
        return
    mean = mean / length
    tangent = weights * units - float(weights @ (units * (g @ mean))) * mean
    angle = _norm(g, tangent) + eps
    result = (mean * math.cos(angle) + tangent * (math.sin(angle) / angle)) * float(norms @ weights)
    weighted(inputs, out, result.tolist(), differences=differences)


def karcher(inputs: Inputs, out: Tensor) -> None:
    """See above; an input whose norm is at most tol has no direction and counts for the norm alone."""
    tol, steps = float(inputs.parameters["tol"]), int(inputs.parameters["max_iter"])  # type: ignore[arg-type]
    n = len(inputs.models)
    g = gram(inputs, differences=False)
    norms = np.sqrt(np.diag(g))
    valid = [i for i in range(n) if norms[i] > tol]
    if n == 1 or not valid:
        weighted(inputs, out, [1.0 if n == 1 else 0.0] * n, differences=False)
        return
    units = [np.eye(n)[i] / norms[i] for i in valid]
    mean = sum(units, np.zeros(n)) / len(units)
    length = _norm(g, mean)
    mean = units[0] if length < tol else mean / length
    for _ in range(steps):
        tangent = np.zeros(n)
        for unit in units:
            cos = min(1.0, max(-1.0, float(mean @ g @ unit)))
            theta = math.acos(cos)
            if tol <= theta < math.pi - 1e-6:  # to the opposite point there is no one direction
                tangent += theta / math.sin(theta) / len(units) * (unit - cos * mean)
        length = _norm(g, tangent)
        if length < tol:
            break
        mean = math.cos(length) * mean + math.sin(length) / length * tangent
        mean = mean / _norm(g, mean)
    weighted(inputs, out, (mean * norms.mean()).tolist(), differences=False)


def _norm(g: Floats, factors: Floats) -> float:
    """Of a weighted sum of the inputs."""
    return math.sqrt(max(0.0, float(factors @ g @ factors)))


def _pieces(inputs: Inputs, start: int, end: int, differences: bool, with_base: bool) -> list[Tensor]:
    base = inputs.base_piece(start, end) if differences or with_base else None
    n = range(len(inputs.models))
    models = [inputs.difference(i, start, end, base=base) if differences else inputs.weights(i, start, end) for i in n]
    return [base, *models] if with_base and base is not None else models


def _check_sum(parameters: Settings, per_model: Sequence[Settings]) -> str | None:
    weights = [float(one["weight"]) for one in per_model]  # type: ignore[arg-type]
    if parameters.get("normalize_weights", True) and abs(sum(weights)) < 1e-6:
        return f"weights {weights} sum to zero; expected another sum, by which they are divided"
    return None


METHODS = (
    Method(
        "slerp",
        "Shoemake 1985, SIGGRAPH",
        "along the arc from base to model",
        slerp,
        (Parameter("t", REQUIRED, "place on the arc: 0 is the base, 1 the model"),),
        max_models=1,
    ),
    Method(
        "nuslerp",
        "mergekit; Shoemake 1985",
        "along the arc between two models, or their differences",
        nuslerp,
        (
            WEIGHT,
            Parameter("nuslerp_flatten", True, "whole tensors as one vector; if not, each row", kind=bool),
            Parameter("nuslerp_row_wise", False, "without flatten: each column instead of each row", kind=bool),
        ),
        base="optional",
        min_models=2,
        max_models=2,
        check=_check_sum,
    ),
    Method(
        "multislerp",
        "Goddard 2025, mergekit",
        "mean direction times mean norm, about the base if there is one",
        multislerp,
        (
            WEIGHT,
            Parameter("normalize_weights", True, "divide the weights by their sum", kind=bool),
            Parameter("eps", 1e-8, "added to norms", low=0),
        ),
        base="optional",
        check=_check_sum,
    ),
    Method(
        "karcher",
        "Karcher 1977; mergekit",
        "mean on the sphere by angle, times mean norm",
        karcher,
        (
            Parameter("max_iter", 10, "iterations at most", kind=int, low=1),
            Parameter("tol", 1e-5, "angle in rad, or norm, that counts as zero", low=0),
        ),
        base="unused",
    ),
)
