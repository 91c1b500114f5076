"""Merge methods: parameters and inputs that are refused, and what they say; what single methods promise."""

import pytest
import torch

from paring.fuse import emr, inputs
from paring.fuse.registry import METHODS, FuseError, Inputs, method


def merge(name, models, base=None, parameters=None, per_model=None, **more):
    how = method(name)
    per_model = per_model or [{} for _ in models]
    settings = how.resolve(parameters or {}, per_model, has_base=base is not None)
    return how(Inputs("w", tuple(models), base, settings.parameters, settings.per_model, **more))


def resolve(name, parameters=(), per_model=({}, {}), has_base=True):
    return method(name).resolve(dict(parameters), [dict(one) for one in per_model], has_base=has_base)


def test_weighted_mean_and_sum_of_differences():
    a, b, base = (torch.randn(5, 7, generator=torch.Generator().manual_seed(i)) for i in range(3))
    torch.testing.assert_close(merge("linear", [a, b], per_model=[{"weight": 3}, {"weight": 1.0}]), 0.75 * a + 0.25 * b)
    got = merge("task_arithmetic", [a, b], base, {"lambda": 0.5}, [{"weight": 0.3}, {"weight": -0.7}])
    torch.testing.assert_close(got, base + 0.5 * (0.3 * (a - base) - 0.7 * (b - base)))


def test_a_difference_is_as_good_as_the_weights():
    a, base = torch.randn(3, 4), torch.randn(3, 4)
    got = merge("linear", [a - base], base, {"weight": 2.0}, differences=(True,))
    torch.testing.assert_close(got, a)


W, ONE = {"weight": 1}, ({},)
BAD = [
    ("linear", {"wieght": 1}, ONE, "linear: unknown parameter 'wieght'; the nearest is 'weight'"),
    ("linear", {}, ({"lambda": 1},), "linear: model 1: unknown parameter 'lambda'; expected one of weight, normalize"),
    ("arcee_fusion", {"t": 1}, ONE, "arcee_fusion: unknown parameter 't'; it has none"),
    ("ties", W, ({"normalise": True}, {}), "ties: model 1: unknown parameter 'normalise'; the nearest is 'normalize'"),
    ("ties", W, ({"normalize": True}, {}), "ties: model 1: 'normalize' is one for all models; expected it beside them"),
    ("linear", {}, (W, {}), "linear: model 2: no weight; expected one for each model"),
    ("slerp", {}, ONE, "slerp: no t .place on the arc"),
    ("nearswap", {}, ONE, "nearswap: no t .how near"),
    ("nearswap", {"t": 0}, ONE, r"nearswap: t is 0; expected a number in \(0, inf\)"),
    ("linear", {"weight": float("nan")}, ONE, "linear: model 1: weight is nan; expected a number"),
    ("linear", {"weight": "0.5"}, ONE, "linear: model 1: weight is '0.5'; expected a number"),
    ("linear", {"weight": True}, ONE, "linear: model 1: weight is True; expected a number"),
    ("linear", {"weight": 1, "normalize": 1}, ONE, "linear: normalize is 1; expected true or false"),
    ("karcher", {"max_iter": 1.5}, ONE, r"karcher: max_iter is 1.5; expected a whole number in \[1, inf\)"),
    ("karcher", {"max_iter": 0}, ONE, "karcher: max_iter is 0; expected a whole number"),
    ("sce", {"select_topk": 0}, ONE, r"sce: select_topk is 0; expected a number in \(0, 1\]"),
    ("consensus", {"agree": 0}, ONE, "consensus: agree is 0; expected a whole number"),
    ("pcb", {"density": 1.1}, ONE, r"pcb: density is 1.1; expected a number in \(0, 1\]"),
    ("wudi", {"learning_rate": 0}, ONE, "wudi: learning_rate is 0; expected"),
    ("wudi", {"steps": -1}, ONE, "wudi: steps is -1; expected"),
    (
        "della",
        {"weight": 1, "density": 0.1},
        ONE,
        "della: model 1: density 0.1 and epsilon 0.15 are probabilities from -0.05 to 0.25",
    ),
    ("della", {"weight": 1, "density": 0.9}, ONE, "della: model 1: density 0.9 .* to 1.05; expected an epsilon below 0.1"),
    ("della", {"weight": 1, "epsilon": 0}, ONE, r"della: model 1: epsilon is 0; expected a number in \(0, 0.5\)"),
    ("nuslerp", {}, ({"weight": 1}, {"weight": -1}), "nuslerp: weights .1.0, -1.0. sum to zero"),
    ("multislerp", {}, ({"weight": 1}, {"weight": -1}), "multislerp: weights .1.0, -1.0. sum to zero"),
    ("passthrough", {}, ({}, {}), "passthrough: 2 models; expected 1"),
    ("slerp", {"t": 0.5}, ({}, {}), r"slerp: 2 models \(beside the base\); expected 1"),
    ("nuslerp", W, ({},), r"nuslerp: 1 models \(beside the base\); expected 2"),
    ("model_stock", {}, ONE, "model_stock: 1 models .beside the base.; expected at least 2"),
    ("linear", W, (), "linear: 0 models; expected at least 1"),
]
DENSE = ("ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear")
BAD += [
    (
        name,
        {"weight": 1, "density": value},
        ONE,
        rf"{name}: model 1: density is {value}; expected a number in \(0, 1\]: to leave a",
    )
    for name in DENSE
    for value in (0, 2, -0.1)
]
BAD += [
    (
        name,
        {"weight": 1, "gamma": value},
        ONE,
        rf"{name}: model 1: gamma is {value}; expected a number in \(0, 1\): where no outlier",
    )
    for name in ("breadcrumbs", "breadcrumbs_ties")
    for value in (0, 1)
]
BAD += [
    (name, {"normalize": True}, ({"weight": 0.5}, {"weight": -0.5}), f"{name}: weights .0.5, -0.5. sum to zero, and normalize")
    for name in ("linear", "task_arithmetic", *DENSE)
]


@pytest.mark.parametrize(("name", "parameters", "per_model", "message"), BAD, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(BAD)])
def test_bad_parameters(name, parameters, per_model, message):
    with pytest.raises(FuseError, match=message):
        resolve(name, parameters, per_model)


@pytest.mark.parametrize("name", METHODS)
def test_no_base(name):
    how = method(name)
    per_model = [{}] * (how.max_models or 2)
    needed = {p.name: 0.3 for p in how.parameters if p.default == "required"}
    if how.needs_base:
        with pytest.raises(FuseError, match=f"{name}: no base; expected the pretrained model that all models were tuned from"):
            how.resolve(needed, per_model, has_base=False)
    else:
        assert how.resolve(needed, per_model, has_base=False).per_model


def test_unknown_method():
    with pytest.raises(FuseError, match="merge_method is 'linaer'; the nearest is 'linear'"):
        method("linaer")
    with pytest.raises(FuseError, match="merge_method is 'xyz'; expected one of linear, task_arithmetic"):
        method("xyz")


def test_defaults_are_filled_in_and_per_model_values_go_before_shared_ones():
    settings = resolve("ties", {"weight": 0.5, "density": 0.3}, ({}, {"density": 1}))
    assert settings.parameters == {"lambda": 1.0, "normalize": True, "rescale": False, "int8_mask": False}
    assert settings.per_model == ({"weight": 0.5, "density": 0.3}, {"weight": 0.5, "density": 1.0})
    assert isinstance(settings.per_model[1]["density"], float)


def test_every_method_says_what_it_is():
    for name, how in METHODS.items():
        assert how.name == name and how.paper and how.about and how.needs_data == (name == "nps")
        for p in how.parameters:
            assert p.about and p.range and (p.default in (None, "required") or p.check(p.default, "") == p.default)


def test_bad_tensors():
    a = torch.ones(3, 4)
    with pytest.raises(FuseError, match=r"'w' of model 'b' has shape \[4, 3\], of model 'a' \[3, 4\]"):
        merge("linear", [a, torch.ones(4, 3)], parameters={"weight": 1}, keys=("a", "b"))
    with pytest.raises(FuseError, match=r"'w' of model 'b' has shape \[4\], of the base \[3, 4\]"):
        merge("ties", [a, a[0]], a, {"weight": 1}, keys=("a", "b"))
    with pytest.raises(FuseError, match=r"'w' of model '0' is torch.int64; expected a float type"):
        merge("linear", [torch.ones(3, dtype=torch.int64)], parameters={"weight": 1})
    with pytest.raises(FuseError, match="'w': model 'a' is a difference; expected its base beside it"):
        merge("linear", [a], parameters={"weight": 1}, keys=("a",), differences=(True,))
    with pytest.raises(FuseError, match="'w': 2 models, with keys .'a', 'a'.; expected one of its own for each"):
        merge("linear", [a, a], parameters={"weight": 1}, keys=("a", "a"))
    bad = a.clone()
    bad[1, 2] = float("nan")
    with pytest.raises(FuseError, match="'w' of model '1' holds nan at entry 6"):
        merge("linear", [a, bad], parameters={"weight": 1})
    bad = a.bfloat16()
    bad[2, 3] = float("-inf")
    with pytest.raises(FuseError, match="'w' of the base holds -inf at entry 11 of 12"):
        merge("ties", [a], bad, {"weight": 1})


def test_output_tensors():
    a = torch.ones(3, 4)
    how = method("linear")
    settings = how.resolve({"weight": 1}, [{}])
    inputs = Inputs("w", (a,), None, settings.parameters, settings.per_model)
    for out in (torch.empty(4, 3), torch.empty(4, 3).T):
        with pytest.raises(FuseError, match=r"'w': the output is \[.*\]; expected \[3, 4\], contiguous"):
            how(inputs, out)


def test_directions_that_cancel_out():
    a = torch.eye(3)
    with pytest.raises(FuseError, match="'w': multislerp of models whose directions cancel out"):
        merge("multislerp", [a[0], -a[0], torch.zeros(3)], None, {"weight": 1})
    got = merge("multislerp", [a[0], -a[0] * 2], None, {}, [{"weight": 0.5}, {"weight": 0.5}])
    torch.testing.assert_close(got, -0.5 * a[0])  # of two, the line between them, as in mergekit


def test_elected_weights_that_cancel_out():
    """Three models agree, and 0.3 - 0.5 + 0.2 is 0 but for fp32's rounding: their sum is taken as it is, as where it is 0."""
    signs, weights = (1.0, -1.0, 1.0, 0.0), (0.3, -0.5, 0.2, 0.7)
    base = torch.randn(8, generator=torch.Generator().manual_seed(0))
    got = merge("ties", [base + sign for sign in signs], base, None, [{"weight": w} for w in weights])
    torch.testing.assert_close(got, base + 1)


@pytest.mark.parametrize("piece", [inputs.PIECE, 16])
def test_emr_serves_each_task(piece, monkeypatch):
    """The shared vector, masks and scales: by the paper's formulas, over two tensors, in one piece and in several."""
    monkeypatch.setattr(inputs, "PIECE", piece)
    generator = torch.Generator().manual_seed(0)
    bases = [torch.randn(6, 9, generator=generator), torch.randn(11, generator=generator)]
    models = [[b + 0.1 * torch.randn(b.shape, generator=generator) for b in bases] for _ in range(3)]
    of_tensors = [emr.parts(Inputs("w", tuple(m[k] for m in models), b)) for k, b in enumerate(bases)]
    for k, (shared, _) in enumerate(of_tensors):
        torch.testing.assert_close(merge("emr", [m[k] for m in models], bases[k]), bases[k] + shared)
    for i, model in enumerate(models):
        taus = [m - b for m, b in zip(model, bases, strict=True)]
        masks = [(t * shared > 0) for t, (shared, _) in zip(taus, of_tensors, strict=True)]
        for (_, parts), mask in zip(of_tensors, masks, strict=True):
            assert torch.equal(parts[i].mask(mask.shape), mask)
        above = sum(float(t.abs().sum()) for t in taus)
        below = sum(float((shared * mask).abs().sum()) for (shared, _), mask in zip(of_tensors, masks, strict=True))
        assert emr.scale([parts[i] for _, parts in of_tensors]) == pytest.approx(above / below, rel=1e-5)
    assert emr.scale([emr.Part(torch.zeros(1, dtype=torch.uint8), 0.0, 0.0)]) == 0
    assert torch.equal(merge("emr", [m[0] for m in models], bases[0], {"own": True}), bases[0])


def test_wudi_at_its_minimum():
    """No gradient is left, and of all such points it is the one without a part that no task sees."""
    generator = torch.Generator().manual_seed(0)
    base = torch.zeros(5, 8)
    taus = [torch.randn(5, 3, generator=generator) @ torch.randn(3, 8, generator=generator) for _ in range(2)]
    tau = merge("wudi", taus, base, {"steps": 0}).double()
    gradient = sum((tau - t.double()) @ t.double().T @ t.double() / t.double().square().sum() for t in taus)
    assert float(gradient.abs().max()) < 1e-5
    seen = torch.linalg.svd(torch.cat(taus).double())[2][6:]  # six directions are seen
    assert float((tau @ seen.T).abs().max()) < 1e-4


def test_iso_leaves_out_what_no_task_changed():
    """A sum of rank two stays of rank two."""
    generator = torch.Generator().manual_seed(0)
    tau = torch.randn(6, 2, generator=generator) @ torch.randn(2, 9, generator=generator)
    got = merge("iso", [tau], torch.zeros(6, 9))
    sizes = torch.linalg.svdvals(got)
    torch.testing.assert_close(sizes[:2], torch.linalg.svdvals(tau)[:2].mean().expand(2))
    assert float(sizes[2:].max()) < 1e-5


@pytest.mark.parametrize("name", ["ties", "breadcrumbs"])
def test_a_density_below_one_entry_keeps_one(name):
    tau = torch.tensor([1.0, -3, 2])
    got = merge(name, [tau], torch.zeros(3), {"density": 0.1, "weight": 1})
    assert got.tolist() == [0, -3, 0]


def test_tsv_of_low_rank_and_of_equal_tasks():
    """Vectors of singular values that are zero take no part; a direction that two tasks share counts once."""
    generator = torch.Generator().manual_seed(0)
    base = torch.zeros(6, 9)
    tau = torch.randn(6, 1, generator=generator) @ torch.randn(1, 9, generator=generator)
    torch.testing.assert_close(merge("tsv", [tau], base), tau, rtol=1e-4, atol=1e-5)
    got = merge("tsv", [tau, tau.clone()], base)
    torch.testing.assert_close(got, tau, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("piece", [inputs.PIECE, 16])
@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 7, 3, 2), (1, 1, 6), (4, 6, 1)])
def test_della_ranks_along_dimension_1_of_more_than_two(shape, piece, monkeypatch):
    """As it ranks the rows of the tensor with that dimension last."""
    monkeypatch.setattr(inputs, "PIECE", piece)
    generator = torch.Generator().manual_seed(0)
    base, *models = (torch.randn(shape, generator=generator) for _ in range(4))
    rows = [t.movedim(1, -1).reshape(-1, shape[1]) for t in (*models, base)]
    for name in ("della", "della_linear"):
        settings = {"weight": 0.5, "density": 0.4}
        got = merge(name, models, base, settings)
        expected = merge(name, rows[:-1], rows[-1], settings).view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
        assert torch.equal(got, expected)
