"""A layer's tensors (weight, gradient) as the matrices that slices are cut from."""

from torch import Tensor

from paring.tune.targets import Layer


def as_matrices(layer: Layer, tensor: Tensor) -> Tensor:
    """``[n, out, in]`` of a tensor stored as the layer's weight is: n = 1, but of fused experts their number. A view where
    strides allow it."""
    found = tensor if tensor.ndim == 3 and layer.kind.name == "experts" else tensor.flatten(1).unsqueeze(0)
    return found.transpose(1, 2) if layer.kind.transposed else found
