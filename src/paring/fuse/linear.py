"""Weighted sums: of weights (linear), of differences from a base (task arithmetic), and a tensor as it is (passthrough).

    linear            sum_i w_i theta_i, over sum_i w_i with normalize    (model soups: Wortsman et al. 2022, arXiv 2203.05482)
    task_arithmetic   theta_pre + lambda sum_i w_i tau_i                  (Ilharco et al. 2023, arXiv 2212.04089)

One reading of every input, one writing of the output.
"""

from collections.abc import Sequence

from torch import Tensor

from paring.fuse.inputs import Inputs
from paring.fuse.method import REQUIRED, Method, Parameter, Settings

WEIGHT = Parameter("weight", REQUIRED, "the model's share; any number, negative too", per_model=True)
INT8_MASK = Parameter("int8_mask", False, "of mergekit's: takes no effect here, where no mask is stored", kind=bool)
SHARE = Parameter("weight", 1.0, "factor of the model's difference", per_model=True)


def scaled_by(default: float) -> Parameter:
    return Parameter("lambda", default, "factor of the merged difference")


LAMBDA = scaled_by(1.0)


def normalise(default: bool) -> Parameter:
    return Parameter("normalize", default, "divide by the sum of the weights", kind=bool)


def check_weights(parameters: Settings, per_model: Sequence[Settings]) -> str | None:
    """What is wrong with weights that are to be normalised, if anything."""
    weights = [float(one["weight"]) for one in per_model]  # type: ignore[arg-type]
    if parameters.get("normalize") and abs(sum(weights)) < 1e-8:
        return f"weights {weights} sum to zero, and normalize divides by their sum; expected another sum, or normalize: false"
    return None


def linear(inputs: Inputs, out: Tensor) -> None:
    """See above."""
    weights = inputs.values("weight")
    if inputs.parameters["normalize"]:
        total = sum(weights)
        weights = [w / total for w in weights]
    flat = out.view(-1)
    for start, end in inputs.ranges():
        merged = inputs.weights(0, start, end).mul_(weights[0])
        for i in range(1, len(weights)):
            merged.add_(inputs.weights(i, start, end), alpha=weights[i])
        flat[start:end] = merged


def task_arithmetic(inputs: Inputs, out: Tensor) -> None:
    """See above."""
    weights = inputs.values("weight")
    factor = float(inputs.parameters["lambda"])  # type: ignore[arg-type]
    if inputs.parameters["normalize"]:
        factor /= sum(weights)
    add_weighted(inputs, out, factor)


def add_weighted(inputs: Inputs, out: Tensor, factor: float) -> None:
    """Base + factor * the sum over models of weight * difference."""
    weights, flat = inputs.values("weight"), out.view(-1)
    for start, end in inputs.ranges():
        base = inputs.base_piece(start, end)
        merged = base.clone()
        for i, weight in enumerate(weights):
            merged.add_(inputs.difference(i, start, end, base=base), alpha=weight * factor)
        flat[start:end] = merged


def passthrough(inputs: Inputs, out: Tensor) -> None:
    """See above."""
    scale = inputs.per_model[0]["scale"]
    flat = out.view(-1)
    for start, end in inputs.ranges():
        piece = inputs.weights(0, start, end)
        flat[start:end] = piece if scale is None else piece * float(scale)


METHODS = (
    Method(
        "linear",
        "Wortsman et al. 2022, arXiv 2203.05482",
        "weighted mean of the weights",
        linear,
        (WEIGHT, normalise(True)),
        base="unused",
        check=check_weights,
    ),
    Method(
        "task_arithmetic",
        "Ilharco et al. 2023, arXiv 2212.04089",
        "base plus weighted differences",
        task_arithmetic,
        (WEIGHT, LAMBDA, normalise(False), INT8_MASK),
        check=check_weights,
    ),
    Method(
        "passthrough",
        "mergekit",
        "one model's tensor, times scale",
        passthrough,
        (Parameter("scale", None, "factor; none: the tensor as it is", per_model=True),),
        base="unused",
        max_models=1,
    ),
)
