"""Every method against a slow one, whole tensors and pieces; and what must hold whatever the numbers are."""

import pytest
import torch

import fuse_reference
from paring.fuse import inputs as inputs_module
from paring.fuse import selection
from paring.fuse.inputs import Inputs
from paring.fuse.registry import METHODS, method

RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
# Where a sign is elected, weights are powers of two: a sum that is zero is then zero in any precision.
SETTINGS = {
    "disjoint": ({"overlap": True}, {}),
    "slerp": ({"t": 0.3}, {}),
    "nearswap": ({"t": 0.02}, {}),
    "linear": ({}, {"weight": [0.5, 0.3, -0.2]}),
    "passthrough": ({}, {"scale": [0.7]}),
    "task_arithmetic": ({"lambda": 0.7}, {"weight": [0.5, 0.3, -0.2]}),
    "nuslerp": ({}, {"weight": [0.5, 0.3]}),
    "multislerp": ({}, {"weight": [0.5, 0.3, 0.7]}),
    "karcher": ({"max_iter": 50, "tol": 1e-9}, {}),
    "ties": ({"lambda": 0.9}, {"weight": [0.5, 0.25, -0.125], "density": [0.2, 0.5, 1.0]}),
    "breadcrumbs": ({"rescale": True}, {"weight": [0.5, 0.3, -0.2], "density": [0.2, 0.5, 0.95], "gamma": [0.1, 0.02, 0.2]}),
    "breadcrumbs_ties": ({"normalize": True}, {"weight": [0.5, 0.25, 0.125], "density": [0.2, 0.5, 1.0]}),
    "dare_linear": ({}, {"weight": [0.5, 0.3, -0.2], "density": [0.2, 0.5, 1.0]}),
    "dare_ties": ({}, {"weight": [0.5, 0.25, -0.125], "density": [0.2, 0.5, 1.0]}),
    "della": ({}, {"weight": [0.5, 0.25, -0.125], "density": [0.3, 0.5, 1.0]}),
    "della_linear": ({}, {"weight": [0.5, 0.3, -0.2], "density": [0.3, 0.5, 1.0]}),
    "sce": ({"select_topk": 0.4}, {}),
    "nps": ({}, {"weight": [0.5, 0.3, -0.2]}),
    "consensus": ({"agree": 2}, {"weight": [1.0, 0.8, 1.2], "mask_lambda": [0.4, 0.6, 0.3]}),
    "pcb": ({"density": 0.3, "lambda": 1.2}, {"weight": [1.0, 0.8, 1.2]}),
    "tsv": ({"lambda": 0.8}, {"weight": [1.0, 0.8, 1.2]}),
    "iso": ({"lambda": 0.8}, {"weight": [1.0, 0.8, 1.2]}),
    "wudi": ({"steps": 40, "learning_rate": 1e-3}, {"weight": [1.0, 0.8, 1.2]}),
}
SHAPES = [(12, 20), (25,), (4, 3, 2, 2), (1,), (), (0, 3)]


def tensors(shape, count, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator) * 0.5
    models = [base + torch.randn(shape, generator=generator) * size for size in (0.05, 0.03, 0.08)[:count]]
    return [m.to(dtype) for m in models], base.to(dtype)


def given(name, models, base, order=None, **more):
    how = method(name)
    parameters, lists = SETTINGS.get(name, ({}, {}))
    order = list(range(len(models))) if order is None else order
    per_model = [{k: v[i] for k, v in lists.items()} for i in order]
    base = None if how.base == "unused" else base
    settings = how.resolve(parameters, per_model, has_base=base is not None)
    keys = tuple("abc"[i] for i in order)
    return Inputs("w", tuple(models[i] for i in order), base, settings.parameters, settings.per_model, keys=keys, **more)


def num_models(name):
    return METHODS[name].max_models or 3


@pytest.fixture(params=["whole", "pieces"])
def cut_up(request, monkeypatch):
    """Tensors read in one piece, and in pieces of 7 entries with thresholds from a sample of a few."""
    if request.param == "pieces":
        monkeypatch.setattr(inputs_module, "PIECE", 7)
        monkeypatch.setattr(selection, "_WHOLE", 10)
        monkeypatch.setattr(selection, "_SAMPLE", 16)


@pytest.mark.usefixtures("cut_up")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
@pytest.mark.parametrize("name", [n for n in METHODS if n not in RANDOM])
def test_slow_reference(name, shape, dtype):
    models, base = tensors(shape, num_models(name), dtype)
    inputs = given(name, models, base)
    got = METHODS[name](inputs)
    want = getattr(fuse_reference, name)(models, inputs.base, inputs.parameters, inputs.per_model)
    tolerance = {"rtol": 1e-4, "atol": 2e-5} if name in ("tsv", "iso", "wudi") else {"rtol": 1e-5, "atol": 2e-6}
    if name == "sce" and dtype != torch.float32:
        compared = undecided(models, base, inputs.parameters["select_topk"])
        got, want = got[compared], want[compared]
    torch.testing.assert_close(got, want.float(), **tolerance)


def undecided(models, base, share):
    """Variances are equal in exact arithmetic and differ by rounding: leave out those at the end of the ranking."""
    variance = torch.stack([m.double() - base.double() for m in models]).var(0, unbiased=False)
    down = variance.flatten().sort(descending=True).values
    end = down[int((down > 0).sum() * share) - 1]
    return (variance - end).abs() > 1e-9


@pytest.mark.parametrize("by_row", [False, True])
def test_spheres_and_stock_by_row(by_row):
    models, base = tensors((6, 9), 3)
    for shape_base in (base, None):
        how = method("nuslerp")
        settings = how.resolve({"nuslerp_flatten": False, "nuslerp_row_wise": by_row}, [{"weight": 0.2}, {"weight": 0.5}])
        inputs = Inputs("w", tuple(models[:2]), shape_base, settings.parameters, settings.per_model)
        want = fuse_reference.nuslerp(models[:2], shape_base, settings.parameters, settings.per_model)
        torch.testing.assert_close(how(inputs), want.float())
    how = method("model_stock")
    settings = how.resolve({"filter_wise": by_row}, [{}] * 3)
    inputs = Inputs("w", tuple(models), base, settings.parameters, settings.per_model)
    want = fuse_reference.model_stock(models, base, settings.parameters, settings.per_model)
    torch.testing.assert_close(how(inputs), want.float())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_shapes_and_output_types(name, shape):
    """Any shape; an output of another type is the fp32 one rounded; inputs stay as they are; a second run is the same."""
    models, base = tensors(shape, num_models(name), torch.bfloat16)
    before = [m.clone() for m in [*models, base]]
    inputs = given(name, models, base, seed=3)
    merged = METHODS[name](inputs)
    assert merged.shape == torch.Size(shape) and merged.dtype == torch.float32 and bool(merged.isfinite().all())
    out = torch.empty(shape, dtype=torch.bfloat16)
    assert METHODS[name](inputs, out) is out
    assert torch.equal(out, merged.bfloat16())
    assert all(torch.equal(a, b) for a, b in zip(before, [*models, base], strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_order_of_models(name):
    """It makes no difference beyond rounding; what is drawn follows the model."""
    count = num_models(name)
    models, base = tensors((12, 20), count)
    merged = METHODS[name](given(name, models, base))
    turned = METHODS[name](given(name, models, base, order=list(range(count))[::-1]))
    torch.testing.assert_close(turned, merged, rtol=1e-4, atol=2e-5)


# Settings by which one model in is that model out; where there are none, what comes out is tested above.
BACK = {
    "linear": {"weight": 0.4},
    "slerp": {"t": 1.0},
    "multislerp": {"weight": 0.4},
    "karcher": {},
    "task_arithmetic": {"weight": 1},
    "nps": {"weight": 1},
    "ties": {"weight": 0.4},
    "dare_linear": {"weight": 1},
    "dare_ties": {"weight": 1},
    "breadcrumbs": {"weight": 1},
    "breadcrumbs_ties": {"weight": 1},
    "della": {"weight": 0.4},
    "della_linear": {"weight": 1},
    "sce": {},
    "nearswap": {"t": 1.0},
    "passthrough": {},
    "consensus": {"lambda": 1},
    "emr": {},
    "tsv": {},
    "wudi": {},
    "disjoint": {},
}


@pytest.mark.parametrize("name", BACK)
def test_one_model_alone(name):
    (model,), base = tensors((12, 20), 1)
    how = METHODS[name]
    per_model = {k: v for k, v in BACK[name].items() if next(p for p in how.parameters if p.name == k).per_model}
    settings = how.resolve({k: v for k, v in BACK[name].items() if k not in per_model}, [per_model])
    base = None if how.base != "required" else base
    merged = how(Inputs("w", (model,), base, settings.parameters, settings.per_model))
    torch.testing.assert_close(merged, model, rtol=1e-5, atol=1e-5 if name in ("tsv", "wudi") else 1e-6)


@pytest.mark.parametrize("name", [n for n in METHODS if any(p.name == "weight" for p in METHODS[n].parameters)])
def test_a_weight_of_zero(name):
    """That model might as well be any other. Masks that compare tasks still see it: then nothing of it is in the merge."""
    models, base = tensors((12, 20), 2)
    how = METHODS[name]
    base = None if how.base == "unused" else base
    density = {"density": 0.5} if any(p.name == "density" for p in how.parameters) else {}
    settings = how.resolve(density, [{"weight": 1.0}, {"weight": 0.0}])
    merged = how(Inputs("w", tuple(models), base, settings.parameters, settings.per_model))
    again = how(Inputs("w", (models[0], models[1] * 3 - 1), base, settings.parameters, settings.per_model))
    if name not in ("consensus", "pcb"):
        assert torch.equal(merged, again)
        return
    for found in (merged, again):
        changed, tau = found - base, models[0] - base
        there = changed.abs() > 1e-6
        assert 0 < int(there.sum()) < there.numel()
        assert torch.equal(changed[there].sign(), tau[there].sign())


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].base != "unused"])
def test_models_as_they_were_pretrained(name):
    """No difference in, none out."""
    base = torch.randn(12, 20)
    count = num_models(name)
    merged = METHODS[name](given(name, [base.clone() for _ in range(count)], base))
    torch.testing.assert_close(merged, base, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].base == "required"])
def test_differences_instead_of_weights(name):
    models, base = tensors((12, 20), num_models(name))
    merged = METHODS[name](given(name, models, base))
    taus = [m - base for m in models]
    again = METHODS[name](given(name, taus, base, differences=(True,) * len(taus)))
    torch.testing.assert_close(again, merged, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite(name, bad):
    models, base = tensors((12, 20), num_models(name))
    models[-1][3, 4] = bad
    with pytest.raises(ValueError, match=rf"'w' of model '{'abc'[len(models) - 1]}' holds {bad} at entry 64 of 240; expected"):
        METHODS[name](given(name, models, base))


def test_weights_whose_sum_overflows_are_finite():
    huge = torch.full((8, 8), 3e38)
    how = method("passthrough")
    settings = how.resolve({}, [{}])
    assert torch.equal(how(Inputs("w", (huge,), None, settings.parameters, settings.per_model)), huge)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("name", METHODS)
def test_on_an_accelerator(name):
    """The same as on the CPU, masks that are drawn included."""
    for shape in ((60, 41), (25,), (4, 3, 2, 2)):
        models, base = tensors(shape, num_models(name), torch.bfloat16)
        expected = METHODS[name](given(name, models, base))
        merged = METHODS[name](given(name, [m.cuda() for m in models], base.cuda()))
        assert merged.is_cuda
        torch.testing.assert_close(merged.cpu(), expected, rtol=1e-4, atol=2e-5)
