"""Thresholds: exact, in one reading, in a tensor and over all of them; what random methods keep."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from paring.fuse import inputs as inputs_module
from paring.fuse import selection
from paring.fuse.draws import Draws
from paring.fuse.inputs import FuseError, Inputs
from paring.fuse.registry import METHODS, method
from paring.fuse.scope import global_cuts, local_cuts
from paring.fuse.selection import largest, largest_of_each


def pieces(n, size):
    return lambda: ((start, min(start + size, n)) for start in range(0, n, size))


def numbers(kind, n, generator):
    a = torch.randn(n, generator=generator).abs()
    if kind == "bf16":
        return (a * 1e-3 + 0.02).bfloat16().float().sub(0.02).abs()
    if kind == "sparse":
        return a * (torch.rand(n, generator=generator) < 0.05)
    if kind == "blocks":  # a sample's neighbours say nothing about the rest
        a[: n // 2] = 0
        a[n // 2 : n // 2 + n // 8] *= 100
        return a
    return {"continuous": a, "constant": torch.ones(n), "zero": torch.zeros(n), "integers": (a * 3).round()}[kind]


@pytest.mark.parametrize("sample", [1 << 16, 64])
@pytest.mark.parametrize("kind", ["continuous", "bf16", "sparse", "blocks", "constant", "zero", "integers"])
@pytest.mark.parametrize("n", [1, 2, 1000, 150_001])
def test_largest(n, kind, sample, monkeypatch):
    """The same entries as a stable sort: of equal ones the first."""
    monkeypatch.setattr(selection, "_SAMPLE", sample)
    monkeypatch.setattr(selection, "_WHOLE", 100)
    a = numbers(kind, n, torch.Generator().manual_seed(n))
    counts = sorted({0, 1, 2, n // 100, n // 5, n // 2, n - 1, n, n + 3})
    cuts = largest(lambda start, end, step: a[start:end:step], pieces(n, 1024), n, lambda n, nonzero: counts)
    order = np.argsort(-a.numpy(), kind="stable")
    for count, cut in zip(counts, cuts, strict=True):
        expected = torch.zeros(n)
        expected[order[:count].copy()] = a[order[:count].copy()]
        got = torch.cat([cut.keep(-a[start:end], start) for start, end in pieces(n, 700)()])
        assert torch.equal(got, -expected), (count, cut)


def test_a_sample_that_misleads(monkeypatch):
    """The sampled entries are the large ones alone: bit patterns are counted instead."""
    monkeypatch.setattr(selection, "_WHOLE", 100)
    monkeypatch.setattr(selection, "_SAMPLE", 100)
    n = 10_100
    a = torch.rand(n)
    a[:: n // 100 | 1] += 10
    asked = []
    monkeypatch.setattr(selection, "threshold", lambda *args: asked.append(1) or selection_threshold(*args))
    (cut,) = largest(lambda start, end, step: a[start:end:step], pieces(n, 999), n, lambda n, nonzero: [3000])
    assert asked and int((cut.keep(a, 0) > 0).sum()) == 3000 and cut.magnitude == a.sort(descending=True).values[2999]


selection_threshold = selection.threshold


@pytest.mark.parametrize("n", [50, 4000])
def test_several_at_once(n, monkeypatch):
    """As each by itself, one of which asks for nothing; a piece of each before the next piece of any."""
    monkeypatch.setattr(selection, "_SAMPLE", 64)
    monkeypatch.setattr(selection, "_WHOLE", 100)
    reads, tensors = [], [numbers(kind, n, torch.Generator().manual_seed(1)) for kind in ("continuous", "bf16", "blocks")]

    def reading(i):
        return lambda start, end, step: reads.append((start, i)) or tensors[i][start:end:step]

    asked = [(reading(i), lambda n, nonzero, i=i: [(n // 3, 5), (0, n), (nonzero // 2,)][i]) for i in range(3)]
    each = tuple(largest(read, pieces(n, 999), n, counts) for read, counts in asked)
    reads.clear()
    assert largest_of_each(asked, pieces(n, 999), n) == each
    if n > 100:
        in_turn = [(s, i) for s in (999, 1998, 2997, 3996) for i in (0, 2)]
        assert [(s, i) for s, i in reads if s][: len(in_turn)] == in_turn


def test_counts_of_what_is_not_zero():
    a = torch.tensor([0.0, 3, 0, 1, 2, 0])
    (cut,) = largest(lambda start, end, step: a[start:end:step], pieces(6, 4), 6, lambda n, nonzero: [nonzero - 1])
    assert cut.keep(a, 0).tolist() == [0, 3, 0, 0, 2, 0]


def test_draws():
    """The same numbers in any portions, others for another seed, tensor or model; and the very ones, on any machine."""
    whole = Draws(1, "layer", "a").take(101)
    draws = Draws(1, "layer", "a")
    assert np.array_equal(np.concatenate([draws.take(k) for k in (1, 50, 0, 49, 1)]), whole)
    for other in (Draws(2, "layer", "a"), Draws(1, "layer2", "a"), Draws(1, "layer", "b")):
        assert not np.array_equal(other.take(101), whole)
    assert whole[:3].tolist() == [962427915, 3775190813, 174301126]


def tensors(shapes, seed=0):
    """Names, and a model of three tensors whose differences are of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    names = [f"layer.{i}" for i in range(len(shapes))]
    base = {n: torch.randn(s, generator=generator).bfloat16() for n, s in zip(names, shapes, strict=True)}
    models = [
        {
            n: (b.float() + 0.01 * (i + 1) * torch.randn(b.shape, generator=generator)).bfloat16()
            for i, (n, b) in enumerate(base.items())
        }
        for _ in range(3)
    ]
    return names, base, models


def loader(how, settings, base, models):
    def load(name):
        return Inputs(name, tuple(m[name] for m in models), base[name], settings.parameters, settings.per_model)

    return load


SHAPES = [(30, 40), (77,), (25, 9)]
GLOBAL = {
    "ties": {"density": 0.2, "weight": 0.4},
    "breadcrumbs": {"density": 0.3, "gamma": 0.05, "weight": 0.4},
    "breadcrumbs_ties": {"density": 0.3, "gamma": 0.05, "weight": 0.4},
    "sce": {"select_topk": 0.2},
    "pcb": {"density": 0.2},
}


def test_these_have_a_global_scope():
    assert {n for n, m in METHODS.items() if "global" in m.scopes} == set(GLOBAL)


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("name", GLOBAL)
def test_global_scope_is_that_of_one_long_tensor(name, threads, monkeypatch):
    monkeypatch.setattr(inputs_module, "PIECE", 100)
    names, base, models = tensors(SHAPES)
    how = method(name)
    settings = how.resolve(GLOBAL[name], [{}] * 3)
    load = loader(how, settings, base, models)
    if threads:
        with ThreadPoolExecutor(threads) as executor:
            cuts = global_cuts(how, names, load, executor.map)
    else:
        cuts = global_cuts(how, names, load)
    merged = torch.cat([how(replace(load(n), cuts=cuts[n])).view(-1) for n in names])
    joined = [{"all": torch.cat([m[n].view(-1) for n in names])} for m in [base, *models]]
    whole = how(loader(how, settings, joined[0], joined[1:])("all"))
    if name == "sce":  # its weights stay those of each tensor
        parts = [torch.zeros_like(x) for x in (merged, whole)]
        for part, x in zip(parts, (merged, whole), strict=True):
            part.copy_((x - joined[0]["all"].float()).abs() > 1e-7)
        merged, whole = parts
    torch.testing.assert_close(merged, whole)
    assert not torch.allclose(merged, torch.cat([how(load(n)).view(-1) for n in names])), "the scope makes no difference here"


def test_global_scope_refused():
    names, base, models = tensors(SHAPES)
    how = method("dare_ties")
    settings = how.resolve({"weight": 1}, [{}] * 3)
    with pytest.raises(FuseError, match="dare_ties: it ranks nothing.*expected scope: tensor"):
        global_cuts(how, names, loader(how, settings, base, models))
    with pytest.raises(FuseError, match="dare_ties: no threshold to take over all tensors"):
        how(replace(loader(how, settings, base, models)(names[0]), cuts=()))
    how = method("ties")

    def load(name):
        settings = how.resolve({"weight": 1, "density": 0.2 if name == names[0] else 0.3}, [{}] * 3)
        return loader(how, settings, base, models)(name)

    with pytest.raises(FuseError, match="ties: scope: global with settings that differ between tensors; expected one density"):
        global_cuts(how, names, load)


def test_global_scope_of_nothing():
    assert global_cuts(method("ties"), [], lambda name: pytest.fail(name)) == {}


def kept(name, values, settings, runs=1, **more):
    """How often each entry of one difference is kept, over seeds."""
    how = method(name)
    resolved = how.resolve({"rescale": False}, [{"weight": 1.0, **settings}])
    base = torch.zeros(values.shape)
    count = torch.zeros(values.shape)
    for seed in range(runs):
        count += how(Inputs("w", (values,), base, resolved.parameters, resolved.per_model, seed=seed, **more)) != 0
    return count / runs


@pytest.mark.parametrize("density", [0.1, 0.7])
@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_keeps_a_share(name, density):
    share = float(kept(name, torch.ones(1000, 100), {"density": density}).mean())
    assert share == pytest.approx(density, abs=5 * (density * (1 - density) / 1e5) ** 0.5)


def test_dare_restores_the_norm():
    values = torch.randn(50, 40)
    how = method("dare_linear")
    resolved = how.resolve({}, [{"weight": 1, "density": 0.3}])
    got = how(Inputs("w", (values,), torch.zeros(50, 40), resolved.parameters, resolved.per_model))
    assert float(got.abs().sum()) == pytest.approx(float(values.abs().sum()), rel=1e-5)
    factors = (got / values)[got != 0]
    assert float(factors.min()) == pytest.approx(float(factors.max()), rel=1e-5) and 2.5 < float(factors.mean()) < 4.5


@pytest.mark.parametrize("shape", [(3000, 33), (33,), (100, 33, 2)], ids=str)
def test_della_keeps_by_rank(shape):
    """Chances from density - epsilon to density + epsilon, linear in the rank; along dimension 1."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(33, generator=generator)
    values = one.view(33, *[1] * (len(shape) - 2)).expand(shape).contiguous() if len(shape) > 1 else one
    share = kept(
        "della_linear",
        values,
        {"density": 0.4, "epsilon": 0.3},
        runs=1 if shape == (3000, 33) else 20 if len(shape) > 1 else 2000,
    )
    share = share.movedim(1, -1).flatten(0, -2).mean(0) if len(shape) > 1 else share
    ranks = one.abs().argsort().argsort()
    expected = 0.1 + 0.6 * ranks / 32
    torch.testing.assert_close(share, expected, rtol=0, atol=4.5 * 0.5 / 2000**0.5)


def test_della_gives_equal_entries_equal_chances():
    values = torch.tensor([1.0, 2, 2, 2, 3]).expand(20_000, 5).contiguous()
    share = kept("della", values, {"density": 0.5, "epsilon": 0.4}).mean(0)
    torch.testing.assert_close(share, torch.tensor([0.1, 0.5, 0.5, 0.5, 0.9]), rtol=0, atol=5 * 0.5 / 20_000**0.5)


@pytest.mark.parametrize("name", ["dare_ties", "della"])
def test_what_is_drawn_follows_seed_tensor_and_model(name):
    values = torch.rand(20, 30) + 1
    how = method(name)
    resolved = how.resolve({}, [{"weight": 1, "density": 0.5}])

    def merged(tensor="w", key="a", seed=0):
        return how(
            Inputs(tensor, (values,), torch.zeros(20, 30), resolved.parameters, resolved.per_model, keys=(key,), seed=seed)
        )

    assert torch.equal(merged(), merged())
    for other in ({"tensor": "v"}, {"key": "b"}, {"seed": 1}):
        assert not torch.equal(merged(), merged(**other))


def test_local_cuts_are_those_given():
    names, base, models = tensors(SHAPES)
    how = method("ties")
    inputs = loader(how, how.resolve({"weight": 1, "density": 0.2}, [{}] * 3), base, models)(names[0])
    found = local_cuts(inputs, how.stages)
    assert local_cuts(replace(inputs, cuts=found), ()) is found
    torch.testing.assert_close(how(replace(inputs, cuts=found)), how(inputs))


def test_what_is_collected_holds_no_piece():
    """Of a tensor whose values between the two ends are few, few are held: no view of what was read."""
    bracket = selection._Bracket(1.0, 2.0, 1 << 20)
    for start in range(0, 1 << 20, 1 << 17):
        a = np.ones(1 << 17, np.float32)
        a[:3] = 1.5 if start else 1.0
        bracket.add(a, start)
    assert sum(piece.size for piece in bracket._inside) == 21
    assert sum((piece if piece.base is None else piece.base).nbytes for piece in bracket._inside) <= 8 * 21 * 4
