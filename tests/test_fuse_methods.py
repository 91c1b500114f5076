"""Merge methods: parameters and inputs that are refused, and what they say."""

import pytest
import torch

from paring.fuse.registry import METHODS, FuseError, Inputs, method


def merge(name, models, base=None, parameters=None, per_model=None, **more):
    how = method(name)
    per_model = per_model or [{} for _ in models]
    settings = how.resolve(parameters or {}, per_model, has_base=base is not None)
    return how(Inputs("w", tuple(models), base, settings.parameters, settings.per_model, **more))


def test_weighted_mean_and_sum_of_differences():
    a, b, base = (torch.randn(5, 7, generator=torch.Generator().manual_seed(i)) for i in range(3))
    torch.testing.assert_close(merge("linear", [a, b], per_model=[{"weight": 3}, {"weight": 1.0}]), 0.75 * a + 0.25 * b)
    got = merge("task_arithmetic", [a, b], base, {"lambda": 0.5}, [{"weight": 0.3}, {"weight": -0.7}])
    torch.testing.assert_close(got, base + 0.5 * (0.3 * (a - base) - 0.7 * (b - base)))


def test_a_difference_is_as_good_as_the_weights():
    a, base = torch.randn(3, 4), torch.randn(3, 4)
    got = merge("linear", [a - base], base, {"weight": 2.0}, differences=(True,))
    torch.testing.assert_close(got, a)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: method("linaer"), "merge_method is 'linaer'; the nearest is 'linear'"),
        (lambda: method("linear").resolve({"wieght": 1}, [{}]), "unknown parameter 'wieght'; the nearest is 'weight'"),
        (lambda: method("linear").resolve({}, [{"weight": 1}, {}]), "linear: model 2: no weight; expected one for each model"),
        (lambda: method("linear").resolve({}, [{"weight": 1}, {"weight": -1}]), "sum to zero"),
        (lambda: method("linear").resolve({"weight": float("nan")}, [{}]), "weight is nan"),
        (lambda: method("task_arithmetic").resolve({"weight": 1}, [{}], has_base=False), "no base; expected"),
        (lambda: method("passthrough").resolve({}, [{}, {}]), "2 models; expected 1"),
    ],
)
def test_bad_parameters(call, message):
    with pytest.raises(FuseError, match=message):
        call()


def test_bad_tensors():
    a = torch.ones(3, 4)
    with pytest.raises(FuseError, match=r"'w' of model 'b' has shape \[4, 3\], of model 'a' \[3, 4\]"):
        merge("linear", [a, torch.ones(4, 3)], parameters={"weight": 1}, keys=("a", "b"))
    bad = a.clone()
    bad[1, 2] = float("nan")
    with pytest.raises(FuseError, match="'w' of model '1' holds nan at entry 6"):
        merge("linear", [a, bad], parameters={"weight": 1})
    assert set(METHODS) >= {"linear", "task_arithmetic"}
