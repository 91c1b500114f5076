"""The path, its scores and the joint search, on models in memory."""

import math
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import paring
from conftest import assert_same_bits, bert, bits, tokens
from paring.delta.change import Change
from paring.delta.errors import DeltaError
from paring.delta.places import Everywhere
from paring.delta.taskvector import TaskVector, ready
from paring.search.settings import SearchSettings
from paring.slim.nps import Nps, prune_nps
from paring.slim.pruners import num_entries, prune
from paring.transfer.grid import lambdas
from paring.transfer.joint import prune_joint
from paring.transfer.path import along
from paring.transfer.scores import Point, best, h_score, pareto


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fine_tune(model: nn.Module, size: float = 0.05, seed: int = 1) -> dict[str, Tensor]:
    """Another state dict of the same model."""
    generator = torch.Generator().manual_seed(seed)
    return {n: t + (torch.randn(t.shape, generator=generator) * size).to(t.dtype) for n, t in bits(model).items()}


# The path.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["whole", "magnitude", "dare"])
def test_every_place_is_what_was_meant(dtype: torch.dtype, method: str) -> None:
    """Against the formula, tensor by tensor; in any order, and back to the base."""
    model = bert().to(dtype)
    base = bits(model)
    vector = paring.diff(base, fine_tune(model))
    vector = vector if method == "whole" else prune(vector, method, 0.1)
    with along(model, vector) as path:
        for lam in (0.7, 1.2, -0.5, 1.0, 0.0, 0.7):
            there = bits(path.to(lam))
            for name, before in base.items():
                if lam == 1 and method == "whole":
                    continue
                tau = vector[name] if name in vector else torch.zeros(before.shape)
                assert torch.equal(there[name], (before.float() + lam * tau).to(dtype)), (name, lam)
    assert_same_bits(bits(model), base)


def test_lambda_one_is_bitwise_the_fine_tune() -> None:
    model = bert()
    base = bits(model)
    tuned = {n: t * 1.7e-3 if t.is_floating_point() else t for n, t in base.items()}  # before + (after - before) would round
    with along(model, paring.diff(base, tuned)) as path:
        path.to(0.3)
        assert_same_bits(bits(path.to(1.0)), tuned)
        assert_same_bits(bits(path.to(0.0)), base)


def test_a_new_head_stands_there_whole_and_is_taken_out() -> None:
    model = bert()
    base = bits(model)
    tuned = fine_tune(model)
    changes = dict(paring.diff(base, tuned).changes)
    head = tuned["classifier.weight"]
    changes["classifier.weight"] = ready(Change(head.shape, head.dtype, "new", Everywhere(head.numel()), head.reshape(-1)))
    vector = TaskVector(changes, paring.diff(base, tuned).base)
    with along(model, vector) as path:
        for lam in (0.0, 0.5):
            assert torch.equal(path.to(lam).classifier.weight, head)
    assert_same_bits(bits(model), base)


def test_the_base_is_back_after_an_error() -> None:
    model = bert().to(torch.float16)
    base = bits(model)
    vector = paring.diff(base, fine_tune(model, 100.0))
    with pytest.raises(DeltaError, match=r"at lambda 1e\+06: '.+': the change leads out of the range of torch.float16"):
        with along(model, vector) as path:
            path.to(1e6)
    assert_same_bits(bits(model), base)
    with pytest.raises(ValueError, match="lambda is nan; expected a finite number"):
        with along(model, vector) as path:
            path.to(math.nan)
    assert_same_bits(bits(model), base)
    with pytest.raises(KeyError), along(model, vector) as path:
        path.to(0.01)
        raise KeyError
    assert_same_bits(bits(model), base)


def test_another_model_is_refused() -> None:
    model = bert()
    vector = paring.diff(bits(model), fine_tune(model))
    with torch.no_grad():
        model.classifier.bias[0] += 1
    with pytest.raises(DeltaError, match="is not the base of this delta: the values of 'classifier.bias' differ"):
        with along(model, vector):
            pass
    model = bert()
    with paring.sliced(model, paring.SliceConfig(rank=2, modes=("column",), move_steps=None)):
        with pytest.raises(RuntimeError, match="open session"), along(model, vector):
            pass


class Tied(nn.Module):
    """Two names of one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight


def test_tied_tensors_move_once() -> None:
    model = Tied()
    before = model.a.weight.detach().clone()
    apart = {"a.weight": before.clone(), "b.weight": before.clone()}
    moved = paring.diff(apart, {n: t + 1 for n, t in apart.items()})
    with along(model, moved) as path:
        assert torch.equal(path.to(0.5).a.weight, before + 0.5)
    other = paring.diff(apart, {"a.weight": before + 1, "b.weight": before + 2})
    with pytest.raises(DeltaError, match="are one tensor in this model, and the delta changes them differently"):
        with along(model, other):
            pass
    assert torch.equal(model.a.weight, before)


# Scores.


def test_h_score() -> None:
    assert h_score(0.5, 0.5) == 0.5 and h_score(1.0, 0.5) == pytest.approx(2 / 3)
    assert h_score(0.0, 1.0) == h_score(0.0, 0.0) == 0.0 and math.isnan(h_score(math.nan, 0.5))
    for a, b in pairwise((0.1, 0.4, 0.9)):
        assert min(a, b) < h_score(a, b) == h_score(b, a) < (a + b) / 2
    with pytest.raises(ValueError, match=r"the score of the original task is 1\.5; expected 0 to 1"):
        h_score(0.5, 1.5)
    assert Point(1.0, 0.8, (0.2, 0.6)).h == h_score(0.8, 0.4)
    with pytest.raises(ValueError, match="no scores of original tasks"):
        Point(1.0, 0.8, ()).h  # noqa: B018


def test_the_best_place() -> None:
    assert best([Point(0, 0.1, (0.9,)), Point(0.5, 0.6, (0.7,)), Point(1, 0.9, (0.1,))]).lam == 0.5
    assert best([Point(0.5, math.nan, (0.9,)), Point(1, 0.1, (0.1,))]).lam == 1
    assert best([Point(0.5, 0.5, (0.5,), 0.1), Point(1, 0.5, (0.5,), 0.2)]).lam == 1  # likelier
    assert best([Point(-1, 0.5, (0.5,)), Point(0.5, 0.5, (0.5,)), Point(1, 0.5, (0.5,))]).lam == 0.5  # nearest the base
    with pytest.raises(ValueError, match="none of 2 places on the path has scores that are numbers at lambda 0 to 1"):
        best([Point(0, math.nan, (0.9,)), Point(1, 0.5, (math.nan,))])


def test_the_pareto_front_is_what_nothing_beats() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (0, 1, 2, 40):
        grid = (torch.randint(0, 6, (count, 2), generator=generator) / 5).tolist()  # with equal places, and equal scores
        points = [Point(float(i), t, (o,)) for i, (t, o) in enumerate(grid)]
        if count == 40:
            points[3] = Point(3.0, math.nan, (1.0,))

        def beaten(p: Point, by: list[Point]) -> bool:
            other = [q for q in by if (q.tuned, q.original) != (p.tuned, p.original)]
            return any(q.tuned >= p.tuned and q.original >= p.original for q in other)

        obvious = {i for i, p in enumerate(points) if not math.isnan(p.h) and not beaten(p, points)}
        front = pareto(points)
        assert set(front) == obvious and len(front) == len(obvious)
        assert [points[i].original for i in front] == sorted((points[i].original for i in front), reverse=True)


# Ranges of lambda.


def test_ranges() -> None:
    assert lambdas("0:1.2:0.1") == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
    assert lambdas("1") == (1.0,) and lambdas("1,0.5,-1:0:0.5") == (-1.0, -0.5, 0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0:1:0.3", "ends at 0.9, not at 1; expected a step that leads to the end"),
        ("0:1:0", "a START below STOP and a STEP above 0"),
        ("1:0:0.1", "a START below STOP"),
        ("1:1:0.1", "a START below STOP"),
        ("0:1:-0.1", "a STEP above 0"),
        ("0:1", "expected START:STOP:STEP"),
        ("0:1:0.1:2", "expected START:STOP:STEP"),
        ("0:one:0.1", "'one' is no finite number"),
        ("0:inf:0.1", "'inf' is no finite number"),
        ("nan", "'nan' is no finite number"),
        ("", "'' is no finite number"),
        ("0:1:1e-9", "more than 1,000 values"),
        ("0.5,0.5", "lambda has 0.5 after 0.5; expected every value once"),
        ("0:1:0.5,0.5", "lambda has 0.5 after 0.5"),
    ],
)
def test_bad_ranges(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        lambdas(text)


# Lambda and w together.


def test_joint_search_sees_both_tasks() -> None:
    """The second task wants the base back; NPS alone does not know. Never worse than what it is given to start with."""
    model = bert().eval()
    base = bits(model)
    vector = paring.diff(base, fine_tune(model, 0.5))
    batch = tokens()
    batch.pop("labels")
    with torch.no_grad():
        original = model(**batch).logits.clone()
        with vector.apply(model):
            tuned = model(**batch).logits.clone()

    def distance(model: nn.Module, wanted: Tensor) -> float:
        return float((model(**batch).logits - wanted).square().mean())

    def both(model: nn.Module) -> float:
        return distance(model, tuned) + distance(model, original)

    how, settings = Nps(subspaces="kind"), SearchSettings(budget=24)
    alone = prune_nps(vector, model, lambda m: distance(m, tuned), 0.3, how, settings)
    found = prune_joint(
        vector, model, both, 0.3, (0.0, 1.2), how, settings, also={"nps": (alone.weights, 1.0)}, problem={"calibration": "x"}
    )
    assert_same_bits(bits(model), base)

    def at(vector: TaskVector, lam: float) -> float:
        with along(model, vector) as path, torch.no_grad():
            return both(path.to(lam))

    assert found.result.start_scores["nps"] == pytest.approx(at(alone.vector, 1.0), rel=1e-4)
    assert found.result.score == pytest.approx(at(found.vector, found.lam), rel=1e-4)
    assert found.result.score <= min(s for s in found.result.start_scores.values() if s is not None)
    assert found.result.score < at(alone.vector, 1.0)
    assert 0 <= found.lam <= 1.2 and found.result.coefficients[-1] == found.lam
    assert sum(found.vector.change(n).places.count for n in found.vector) <= -(-3 * num_entries(vector) // 10)


def test_joint_search_needs_a_range() -> None:
    model = bert()
    vector = paring.diff(bits(model), fine_tune(model))
    with pytest.raises(ValueError, match="searched within 1 to 1; expected a range"):
        prune_joint(vector, model, lambda m: 0.0, 0.1, (1.0, 1.0))
