"""Every merge method, by name; and how to call one.

    from paring.fuse.registry import METHODS, Inputs, method

    how = method("ties")                                    # FuseError names the nearest for an unknown name
    how.base, how.min_models, how.max_models, how.scopes  # what it needs: checked by resolve, too
    settings = how.resolve({"normalize": True}, [{"weight": 0.5, "density": 0.2}, {"weight": 0.3}])  # before anything is read
    inputs = Inputs("layer.0.weight", (theta_1, theta_2), base, settings.parameters, settings.per_model, keys=("a", "b"))
    merged = how(inputs)  # fp32, or how(inputs, out): into a tensor of any float type

A method is a pure function of ``Inputs`` and writes one tensor. It reads the models' tensors (as they are stored: bf16 from a
memory map) in pieces of the cache's size, computes in fp32 and writes each piece rounded into ``out``: nothing of a
tensor's size is allocated, but where a method says so (``spectral``: matrices are factorised whole). NaN and infinity in any
input are refused when they are read. What a method draws at random depends on (seed, tensor name, the model's key) alone:
not on the models' order, nor on threads, nor on what else is merged.

Models may be weights or differences from the base (``Inputs.differences``), mixed. The base is not among ``models``; where
``base`` is "unused" (linear, karcher, passthrough) a base that shall take part is passed as a model.

Per-tensor values (gradients, filters) are resolved for each tensor: call ``resolve`` for each distinct set of values.
``scope: global``: ``paring.fuse.scope.global_cuts`` reads all tensors a few times and gives what goes into ``Inputs.cuts``.
"""

from difflib import get_close_matches

from paring.fuse import (
    breadcrumbs,
    consensus,
    dare,
    della,
    disjoint,
    emr,
    linear,
    nps,
    pcb,
    sce,
    spectral,
    spherical,
    stock,
    swap,
    ties,
    wudi,
)
from paring.fuse.inputs import Cut, FuseError, Inputs, Value
from paring.fuse.method import REQUIRED, Method, Parameter, Resolved

__all__ = ["METHODS", "REQUIRED", "Cut", "FuseError", "Inputs", "Method", "Parameter", "Resolved", "Value", "method"]

FAMILIES = (
    linear,
    spherical,
    ties,
    dare,
    della,
    breadcrumbs,
    sce,
    stock,
    swap,
    nps,
    consensus,
    pcb,
    emr,
    spectral,
    wudi,
    disjoint,
)
METHODS: dict[str, Method] = {one.name: one for family in FAMILIES for one in family.METHODS}


def method(name: str) -> Method:
    """The method of that name.

    Raises:
        FuseError: there is none; the nearest is named.
    """
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=1, cutoff=0.5)
        hint = f"the nearest is {near[0]!r}" if near else f"expected one of {', '.join(METHODS)}"
        raise FuseError(f"merge_method is {name!r}; {hint}")
    return METHODS[name]
