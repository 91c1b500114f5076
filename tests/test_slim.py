"""Pruning: exact counts, ties by order, the same streamed as at once; NPS against a slow obvious reference."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import paring
from paring import DeltaError
from paring.delta.taskvector import TaskVector
from paring.recipes.slim.settings import SlimSettings
from paring.search.settings import SearchSettings
from paring.slim.histogram import kept, threshold
from paring.slim.identity import digest
from paring.slim.nps import Nps, pooled, prune_nps
from paring.slim.pool import Pool
from paring.slim.pruners import PRUNERS, dare, della, magnitude, num_entries, num_kept, prune, rescaled
from paring.slim.subspaces import COUNTED, SUBSPACES, kind_of

SHAPES = {
    "embeddings.word.weight": (30, 8),
    "encoder.layer.0.attention.self.query.weight": (8, 8),
    "encoder.layer.0.output.dense.weight": (8, 16),
    "encoder.layer.0.output.dense.bias": (8,),
    "encoder.layer.1.LayerNorm.weight": (8,),
    "encoder.layer.1.attention.self.key.weight": (8, 8),
    "pooler.weight": (3, 5, 2),
}


def vector(seed: int = 0, dtype: torch.dtype = torch.float32, round_to: float = 0.0) -> TaskVector:
    """A task vector of several kinds of tensors; rounded, many magnitudes are equal and some zero."""
    generator = torch.Generator().manual_seed(seed)
    base = {n: torch.zeros(s, dtype=dtype) for n, s in SHAPES.items()}
    tuned = {n: torch.randn(s, generator=generator) for n, s in SHAPES.items()}
    if round_to:
        tuned = {n: (t / round_to).round() * round_to for n, t in tuned.items()}
    return paring.diff(base, {n: t.to(dtype) for n, t in tuned.items()} | {"head": torch.ones(3)})


def flat(of: TaskVector) -> Tensor:
    """All differences in a row."""
    return torch.cat([of[n].view(-1) for n in of.names])


def slowly(tau: Tensor, count: int) -> Tensor:
    """The ``count`` largest magnitudes of a row; of equal ones those that come first."""
    order = sorted(range(tau.numel()), key=lambda i: (-abs(float(tau[i])), i))[:count]
    out = torch.zeros_like(tau)
    out[order] = tau[order]
    return out


@pytest.mark.parametrize("keep", [0.003, 0.01, 0.1, 0.37, 1.0])
@pytest.mark.parametrize("round_to", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_magnitudes_exactly(keep: float, round_to: float, dtype: torch.dtype) -> None:
    of = vector(dtype=dtype, round_to=round_to)
    n = num_entries(of)
    expected = slowly(flat(of), math.ceil(keep * n))
    small = prune(of, "magnitude", keep)
    assert torch.equal(flat(small), expected)
    count = sum(small.change(name).places.count for name in small)
    assert count == int((expected != 0).sum()) and (round_to or count == math.ceil(keep * n))
    again = prune(of, "rescaled", keep)
    if expected.any():
        assert float(flat(again).norm()) == pytest.approx(float(flat(of).norm()), rel=1e-5)
        assert torch.allclose(flat(again) / flat(again).norm(), expected / expected.norm())
    by_tensor = prune(of, "magnitude", keep, scope="tensor")
    for name in of:
        assert torch.equal(by_tensor[name].view(-1), slowly(of[name].view(-1), math.ceil(keep * of[name].numel())))
    assert small.new == ("head",) and small.facts["keep"] == keep


def test_thresholds_of_many_pieces_are_those_of_one() -> None:
    generator = torch.Generator().manual_seed(1)
    for trial in range(60):
        n = int(torch.randint(0, 3000, (1,), generator=generator))
        values = torch.randn(n, generator=generator)
        values = values.bfloat16().float() if trial % 2 else values
        values = values * 0 if trial % 7 == 0 else values
        pieces = list(values.split(max(1, n // 5))) if n else [values]
        for count in {0, 1, n // 3, n - 1, n, n + 5}:
            at = threshold(lambda pieces=pieces: pieces, count)
            positions, ties, start = [], 0, 0
            for piece in pieces:
                found, more = kept(piece, at, ties)
                positions += (found + start).tolist()
                ties, start = ties + more, start + piece.numel()
            order = sorted(range(n), key=lambda i: (-abs(float(values[i])), i))
            assert positions == sorted(order[: max(0, count)]), (trial, count)


def test_counts_round_up_as_written() -> None:
    pairs = ((0.1, 10), (0.1, 11), (0.3, 10), (1.0, 7), (1e-9, 5), (0.07, 100))
    assert [num_kept(keep, n) for keep, n in pairs] == [1, 2, 3, 7, 1, 7]


@pytest.mark.parametrize("draw", [dare, della])
def test_what_is_drawn_is_exact_in_number_and_right_on_average(draw: Callable[..., tuple[Tensor, Tensor]]) -> None:
    tau = torch.randn(400, generator=torch.Generator().manual_seed(0)) + 0.01
    total, often = torch.zeros(400, dtype=torch.float64), torch.zeros(400)
    for seed in range(600):
        positions, values = draw(tau, 0.25, torch.Generator().manual_seed(seed))
        assert positions.numel() == 100 and bool((positions[1:] > positions[:-1]).all())
        total[positions] += values.double()
        often[positions] += 1
    assert float((total / 600 - tau).abs().max() / tau.abs().max()) < 0.35
    assert float((total / 600).sum()) == pytest.approx(float(tau.sum()), abs=2.0)
    large, small = (
        often[tau.abs().topk(100).indices].mean() / 600,
        often[tau.abs().topk(100, largest=False).indices].mean() / 600,
    )
    if draw is dare:
        assert large == pytest.approx(0.25, abs=0.02) and small == pytest.approx(0.25, abs=0.02)
    else:
        assert large > 0.33 and small < 0.17
    positions, values = draw(tau, 1.0, torch.Generator())
    assert torch.equal(values, tau)


def test_drawing_depends_on_seed_and_name_alone() -> None:
    of = vector()
    name = "encoder.layer.0.output.dense.weight"
    for method in ("dare", "della"):
        one, same, other = (prune(v, method, 0.2, seed=s) for v, s in ((of, 1), (of.only(name), 1), (of, 2)))
        assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])


def test_pure_functions_on_one_tensor() -> None:
    tau = torch.tensor([1.0, -3.0, 2.0, -2.0, 0.0])
    assert magnitude(tau, 0.4).positions.tolist() == [1, 2]  # 2 comes before -2
    left = rescaled(tau, 0.4)
    assert float(left.values.norm()) == pytest.approx(float(tau.norm()))
    assert magnitude(torch.zeros(0), 0.5).positions.numel() == 0


# NPS


@pytest.mark.parametrize("kind", SUBSPACES)
@pytest.mark.parametrize("round_to", [0.0, 0.5])
@pytest.mark.parametrize("keep", [0.01, 0.1, 0.6, 1.0])
def test_a_candidate_keeps_the_largest_reweighted_magnitudes(kind: str, round_to: float, keep: float) -> None:
    of = vector(round_to=round_to)
    count = num_kept(keep, num_entries(of))
    cut = SUBSPACES[kind](of, 5, min(keep, 0.9), 0)
    labels = torch.cat([cut.label(n, of[n].view(-1)) for n in of.names])
    assert int(labels.min()) >= 0 and int(labels.max()) < len(cut.names)
    pool = Pool(of, cut, count)
    draws = np.random.default_rng(0)
    tau = flat(of)
    for trial in range(12):
        weights = draws.normal(1, 1, len(cut.names))
        if trial == 0:
            weights[:] = 1.0
        if trial == 1:
            weights[::2] = 0.0
        chosen = pool.select(weights.tolist())
        reweighted = [abs(float(w)) * abs(float(t)) for w, t in zip(weights[labels.numpy()], tau.double(), strict=True)]
        order = sorted((i for i in range(tau.numel()) if reweighted[i] > 0), key=lambda i: (-reweighted[i], int(labels[i]), i))
        expected = sorted(order[:count])
        assert chosen.places.tolist() == expected, trial
        values = tau[expected].double() * torch.tensor(weights)[labels[expected]]
        torch.testing.assert_close(chosen.values, values.float(), rtol=3e-7, atol=0)
        split = pool.split(chosen)
        found = [place + int(pool.starts[pool.names.index(n)]) for n, places, _ in split for place in places.tolist()]
        assert found == expected
    if kind != "random":
        ones = pool.select([1.0] * len(cut.names))
        got = torch.zeros_like(tau)
        got[ones.places] = ones.values
        if kind == "magnitude" or not round_to:
            assert torch.equal(got, slowly(tau, count))  # all ones is pruning by magnitude


def test_random_subspaces_hold_dare() -> None:
    of = vector()
    keep = 0.25
    count = num_kept(keep, num_entries(of))
    cut = SUBSPACES["random"](of, 4, keep, 0)
    chosen = Pool(of, cut, count).select([1 / keep, 0.0, 0.0, 0.0])
    labels = torch.cat([cut.label(n, of[n].view(-1)) for n in of.names])
    assert abs(int((labels == 0).sum()) - count) <= len(SHAPES)
    assert torch.equal(chosen.values, flat(of)[chosen.places] / keep)


def test_a_seed_draws_random_subspaces() -> None:
    """And its journal is another search's; subspaces that draw nothing know no seed."""
    of = vector()

    def labels(how: Nps) -> torch.Tensor:
        cut, _, _ = pooled(of, 0.1, how)
        return torch.cat([cut.label(n, of[n].view(-1)) for n in of.names])

    first, again, other = (Nps("random", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(labels(first), labels(again)) and not torch.equal(labels(first), labels(other))
    assert first.identity == again.identity != other.identity
    assert Nps("layer", seed=0).identity == Nps("layer", seed=1).identity
    assert [how.seed for how in SlimSettings(keep=(0.1,), seed=3).searches("auto")] == [3] * len(SUBSPACES)


def test_kinds_by_name() -> None:
    names = {
        "bert.embeddings.word_embeddings.weight": ((9, 4), "embedding"),
        "bert.embeddings.LayerNorm.weight": ((4,), "norm"),
        "bert.encoder.layer.0.attention.self.query.weight": ((4, 4), "attention"),
        "bert.encoder.layer.0.attention.output.dense.weight": ((4, 4), "attention"),
        "bert.encoder.layer.0.attention.output.LayerNorm.bias": ((4,), "norm"),
        "bert.encoder.layer.0.attention.self.query.bias": ((4,), "bias"),
        "bert.encoder.layer.0.intermediate.dense.weight": ((8, 4), "mlp"),
        "model.layers.3.mlp.down_proj.weight": ((4, 8), "mlp"),
        "model.layers.3.self_attn.o_proj.weight": ((4, 4), "attention"),
        "model.layers.3.input_layernorm.weight": ((4,), "norm"),
        "transformer.h.0.attn.c_attn.weight": ((4, 12), "attention"),
        "transformer.h.0.ln_1.weight": ((4,), "norm"),
        "transformer.wte.weight": ((9, 4), "embedding"),
        "vit.embeddings.cls_token": ((1, 1, 4), "embedding"),
        "something.weight": ((4, 4), "other"),
    }
    assert {n: kind_of(n, s) for n, (s, _) in names.items()} == {n: k for n, (_, k) in names.items()}


# Bad input.


@pytest.mark.parametrize("keep", [0, -0.1, 1.1, math.nan, True, "0.1"])
@pytest.mark.parametrize("method", PRUNERS)
def test_keep_is_a_share(keep: float, method: str) -> None:
    with pytest.raises(ValueError, match=r"keep is .*; expected the share of entries kept, in \(0, 1\]"):
        prune(vector(), method, keep)


def test_what_pruning_refuses() -> None:
    of = vector()
    with pytest.raises(ValueError, match="method is 'nothing'; expected one of magnitude, rescaled, dare, della"):
        prune(of, "nothing", 0.1)
    with pytest.raises(ValueError, match="scope is 'layer'; expected 'global' or 'tensor'"):
        prune(of, "magnitude", 0.1, scope="layer")
    with pytest.raises(ValueError, match="spread is 2; expected 0 to 1"):
        prune(of, "della", 0.1, spread=2)["pooler.weight"]
    with pytest.raises(ValueError, match="subspaces of 542 entries; expected no more"):
        SUBSPACES["magnitude"](of, 10_000, 0.1, 0)
    with pytest.raises(ValueError, match="2 weights for 5 subspaces"):
        Pool(of, SUBSPACES["magnitude"](of, 5, 0.1, 0), 3).select([1.0, 1.0])
    huge = 1e38 * paring.diff({"a": torch.zeros(2)}, {"a": torch.tensor([3.4e38, 1.0])})
    with pytest.raises(DeltaError, match="'a' holds NaN or infinity; it cannot be pruned"):
        prune(huge, "magnitude", 0.5)


# The search, on a model.


class _Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = torch.nn.Linear(12, 16), torch.nn.Linear(16, 4), torch.nn.Linear(4, 2)


def _tuned() -> tuple[_Linear, TaskVector]:
    """A model and a change of it whose smaller half matters and whose larger half is noise."""
    model = _Linear()
    tuned = {n: t.clone() for n, t in model.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    tuned["a.weight"] += torch.randn(16, 12, generator=generator) * 0.5  # noise
    tuned["b.weight"] += torch.randn(4, 16, generator=generator) * 0.1
    base = {n: t for n, t in model.state_dict().items() if not n.startswith("head")}
    return model, paring.diff(base, tuned)


@pytest.mark.parametrize("kind", SUBSPACES)
def test_the_search_is_never_worse_than_its_starts_and_leaves_the_base(kind: str, tmp_path: Path) -> None:
    model, of = _tuned()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    wanted = before["b.weight"] + of["b.weight"]

    def objective(m: torch.nn.Module) -> float:
        return float((m.b.weight - wanted).square().sum() + (m.a.weight - before["a.weight"]).square().sum())

    settings = SearchSettings(budget=60, seed=3)
    how = Nps(subspaces=kind, parts=4 if kind in COUNTED else 8)
    found = prune_nps(of, model, objective, 0.25, how, settings, folder=tmp_path / "search")
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    starts = {name: score for name, score in found.result.start_scores.items() if score is not None}
    assert {"magnitude", "rescaled magnitude"} <= set(starts) and ("dare" in starts) == (kind == "random")
    assert found.result.score <= min(starts.values())
    entries = sum(found.vector.change(n).places.count for n in found.vector)
    assert entries <= num_kept(0.25, num_entries(of)) and set(found.vector.new) == {"head.weight", "head.bias"}
    with found.vector.apply(model), torch.no_grad():
        assert objective(model) == pytest.approx(found.result.score, rel=1e-5)
    again = prune_nps(of, model, objective, 0.25, how, settings)
    assert again.weights == found.weights
    path = tmp_path / "small.delta.safetensors"
    paring.save_delta(found.vector, path)
    loaded = paring.load_delta(path)
    assert loaded.facts["method"] == "nps" and loaded.facts["weights"] == dict(found.weights)
    assert set(loaded) == set(found.vector) and all(torch.equal(loaded[n], found.vector[n]) for n in loaded)


def test_magnitudes_of_the_starts_are_those_of_the_pruners() -> None:
    model, of = _tuned()
    scores: dict[str, float] = {}

    def objective(m: torch.nn.Module) -> float:
        return float(sum(((m.state_dict()[n] - base) * (i + 1.7)).abs().sum() for i, (n, base) in enumerate(before.items())))

    before = {n: t.clone() for n, t in model.state_dict().items()}
    found = prune_nps(of, model, objective, 0.1, Nps("magnitude", 3), SearchSettings(budget=2))
    for method, start in (("magnitude", "magnitude"), ("rescaled", "rescaled magnitude")):
        with prune(of, method, 0.1).apply(model), torch.no_grad():
            scores[start] = objective(model)
    assert found.result.start_scores == pytest.approx(scores, rel=1e-6)


def test_what_the_search_refuses() -> None:
    model, of = _tuned()
    with pytest.raises(ValueError, match="subspaces is 'none'; expected one of magnitude, layer"):
        Nps(subspaces="none")
    with pytest.raises(ValueError, match="parts is 1; expected a whole number, at least 2"):
        Nps(parts=1)
    with pytest.raises(ValueError, match="parts is 4, and 'magnitude\\*kind' subspaces are as many as there are kinds; leave"):
        Nps(parts=4)
    with pytest.raises(ValueError, match="expected a number above 1"):
        Nps(most=1.0)
    with pytest.raises(DeltaError, match="zero everywhere"):
        prune_nps(0 * of, model, lambda m: 0.0, 0.1)
    with pytest.raises(ValueError, match="no finite score|finite"):
        prune_nps(of, model, lambda m: math.nan, 0.1, Nps("magnitude", 2), SearchSettings(budget=20))
    with torch.no_grad():
        model.a.bias += 1
    with pytest.raises(DeltaError, match="is not the base of this delta"):
        prune_nps(of, model, lambda m: 0.0, 0.1, Nps("magnitude", 2))


def test_a_norm_does_not_depend_on_the_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.zeros(300_001), "v": torch.zeros(7, 3)}
    of = paring.diff(base, {n: torch.randn(t.shape, generator=generator) for n, t in base.items()})
    found, before = set(), torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.add((of.norm(), digest(of)))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1
    assert of.norm() == pytest.approx(300_022**0.5, rel=0.01)


def test_a_search_knows_the_whole_task_vector(tmp_path: Path) -> None:
    """A head that the base does not have is a part of it; how changes are stored is not."""
    base = {"w": torch.zeros(20)}
    tuned = {"w": torch.arange(20.0), "head": torch.ones(3)}
    one = paring.diff(base, tuned)
    other = paring.diff(base, {**tuned, "head": -torch.ones(3)})
    assert one.norm() == other.norm() and digest(one) != digest(other)
    paring.save_delta(one, tmp_path / "d.delta.safetensors")
    assert digest(paring.load_delta(tmp_path / "d.delta.safetensors", base)) == digest(one)
    assert digest(prune(one, "magnitude", 1.0)) == digest(one) != digest(prune(one, "magnitude", 0.9))
