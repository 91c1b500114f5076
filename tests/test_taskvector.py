"""Task vectors: the algebra against dense arithmetic, the base checked on every operation, bitwise on and off a model."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import paring
from conftest import assert_same_bits, bert, bits, tokens, train
from paring import DeltaError, SliceConfig, sliced
from paring.delta.diff import diff
from paring.delta.taskvector import TaskVector

QUERY = "bert.encoder.layer.0.attention.self.query.weight"


def nudged(model: nn.Module, seed: int, share: float = 1.0) -> nn.Module:
    """The model with a share of every float tensor's entries changed a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                where = torch.rand(tensor.shape, generator=generator) < share
                tensor += (torch.randn(tensor.shape, generator=generator) * 0.02 * where).to(tensor.dtype)
    return model


@pytest.fixture
def pair() -> tuple[TaskVector, TaskVector]:
    return diff(bert(), nudged(bert(), 1)), diff(bert(), nudged(bert(), 2, share=0.05))


def dense(seed: int, share: float = 1.0) -> dict[str, Tensor]:
    before, after = bits(bert()), bits(nudged(bert(), seed, share))
    return {n: after[n] - before[n] for n in before if before[n].is_floating_point()}


def test_algebra_is_that_of_the_dense_differences(pair: tuple[TaskVector, TaskVector]) -> None:
    a, b = pair
    da, db = dense(1), dense(2, 0.05)
    assert set(a) == set(da) and len(a) == len(da) and QUERY in a and "nothing" not in a
    for made, expected in (
        (a + b, {n: da[n] + db[n] for n in da}),
        (a - b, {n: da[n] - db[n] for n in da}),
        (-a, {n: -da[n] for n in da}),
        (0.25 * a, {n: da[n] * 0.25 for n in da}),
        (a / 4, {n: da[n] * 0.25 for n in da}),
        ((a + b) * 2.0 - b, {n: (da[n] + db[n]) * 2 - db[n] for n in da}),
        (0 * a, {n: torch.zeros_like(da[n]) for n in da}),
    ):
        for name, tensor in expected.items():
            torch.testing.assert_close(made[name], tensor, rtol=0, atol=1e-7)
    flat_a, flat_b = (torch.cat([d[n].double().flatten() for n in da]) for d in (da, db))
    assert a.norm() == pytest.approx(float(flat_a.norm()))
    assert a.similarity(b) == pytest.approx(float(torch.cosine_similarity(flat_a, flat_b, dim=0)))
    assert a.similarity(-a) == pytest.approx(-1)
    assert (a - a).similarity(a) == 0


def test_nothing_is_read_before_it_is_needed() -> None:
    reads: list[str] = []

    class Counting(dict[str, Tensor]):
        def __init__(self, tensors: dict[str, Tensor]) -> None:
            super().__init__(tensors)

    vector = diff(Counting(bits(bert())), Counting(bits(nudged(bert(), 1))))
    lazies = dict(vector.changes)
    for name, lazy in lazies.items():
        object.__setattr__(lazy, "load", lambda name=name, load=lazy.load: (reads.append(name), load())[1])
    half = 0.5 * (vector + vector)
    assert not reads
    half[QUERY]
    assert reads == [QUERY, QUERY]


def test_restriction_to_names(pair: tuple[TaskVector, TaskVector]) -> None:
    a, _ = pair
    queries = a.only("query.weight")
    assert set(queries) == {n for n in a if n.endswith("query.weight")} and len(queries) == 3
    assert set(a.only("re:.*bias", QUERY)) == {n for n in a if n.endswith("bias")} | {QUERY}
    with pytest.raises(ValueError, match=r"'quary\.weight' matches no tensor; the nearest are"):
        a.only("quary.weight")
    with pytest.raises(ValueError, match="no regular expression"):
        a.only("re:(")
    with pytest.raises(KeyError, match="the nearest are"):
        a[QUERY + "s"]


def test_operands_of_different_bases_or_shapes_are_refused(pair: tuple[TaskVector, TaskVector]) -> None:
    a, _ = pair
    base = bert()
    with torch.no_grad():
        base.bert.pooler.dense.bias[0] += 1
    other = diff(base, nudged(bert(), 3))
    for act in (lambda: a + other, lambda: a - other, lambda: a.similarity(other)):
        with pytest.raises(DeltaError, match=r"different bases; the first tensor that differs is 'bert\.pooler\.dense\.bias'"):
            act()
    elsewhere = diff({"x": torch.zeros(2)}, {"x": torch.ones(2)})
    with pytest.raises(DeltaError, match="no tensor is in both"):
        a + elsewhere
    for factor in (math.nan, math.inf):
        with pytest.raises(ValueError, match="expected a finite number"):
            factor * a
    with pytest.raises(TypeError):
        a * "2"  # type: ignore[operator]
    one = diff({"x": torch.zeros(2)}, {"x": torch.ones(2), "head": torch.ones(3)})
    two = diff({"x": torch.zeros(2)}, {"x": torch.ones(2), "head": torch.zeros(3)})
    with pytest.raises(DeltaError, match="both have a new tensor 'head', with other values"):
        (one + two).in_memory()
    assert (one + one).in_memory().new == ("head",)
    with pytest.raises(DeltaError, match=r"'head' is \[3\].*new.* in one and \[2\]"):
        one + diff({"x": torch.zeros(2)}, {"x": torch.ones(2), "head": torch.zeros(2)})
    with pytest.raises(DeltaError, match="'head' is not in the base"):
        one["head"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_exact_on_and_off_a_model(dtype: torch.dtype) -> None:
    model, tuned = bert().to(dtype), bits(nudged(bert().to(dtype), 1))
    before = bits(model)
    vector = diff(bits(model), tuned)
    assert vector.exact
    applied = vector.apply(model)
    assert_same_bits(bits(model), tuned)
    applied.revert()
    assert_same_bits(bits(model), before)
    with pytest.raises(RuntimeError, match="taken off the model already"):
        applied.revert()
    with vector.apply(model):
        assert_same_bits(bits(model), tuned)
    assert_same_bits(bits(model), before)
    vector.apply(model)
    vector.revert(model)
    assert_same_bits(bits(model), before)
    model.load_state_dict(tuned)  # by another hand: exact changes can be taken back all the same
    vector.revert(model)
    assert_same_bits(bits(model), before)


def test_differences_in_numbers_need_what_apply_returns() -> None:
    model = bert().bfloat16()
    before = bits(model)
    half = 0.5 * diff(before, bits(nudged(bert().bfloat16(), 1)))
    assert not half.exact
    half.apply(model)
    expected = (before[QUERY].float() + half[QUERY]).bfloat16()
    assert torch.equal(model.state_dict()[QUERY], expected)
    half.revert(model)
    assert_same_bits(bits(model), before)
    half.apply(model)
    with pytest.raises(DeltaError, match="keep what apply\\(\\) returns"):
        (0.5 * half).revert(model)


def test_apply_refuses_and_changes_nothing() -> None:
    vector = diff(bert(), nudged(bert(), 1))
    model = nudged(bert(), 9, share=0.01)
    before = bits(model)
    with pytest.raises(DeltaError, match=r"BertFor.* is not the base of this delta: the values of '.*' differ"):
        vector.apply(model)
    with pytest.raises(DeltaError, match="has no tensor 'bert"):
        vector.apply(nn.Linear(2, 2))
    assert_same_bits(bits(model), before)
    small = {"x": torch.full((4,), 60000.0, dtype=torch.float16)}
    module = nn.Module()
    module.x = nn.Parameter(small["x"].clone())
    big = 3.0 * diff(small, {"x": torch.full((4,), 65000.0, dtype=torch.float16)})
    with pytest.raises(DeltaError, match="'x': the change leads out of the range of torch.float16"):
        big.apply(module)
    assert torch.equal(module.x, small["x"])


def test_a_changed_model_is_not_taken_back() -> None:
    model = bert()
    vector = diff(bert(), nudged(bert(), 1))
    vector.apply(model)
    with torch.no_grad():
        model.bert.pooler.dense.bias[0] = 7.0
    changed = bits(model)
    with pytest.raises(DeltaError, match=r"'bert\.pooler\.dense\.bias' has changed since"):
        vector.revert(model)
    assert_same_bits(bits(model), changed)
    fresh = diff(bert(), nudged(bert(), 1))
    with pytest.raises(DeltaError, match="not the base with the delta on it, so nothing is taken back"):
        fresh.revert(model)
    assert_same_bits(bits(model), changed)


def test_what_diff_refuses() -> None:
    base = {"a": torch.zeros(3), "b": torch.zeros(2, 2), "ids": torch.arange(3)}
    with pytest.raises(DeltaError, match=r"lacks tensors of the state dict: 'b'; --allow removed"):
        diff(base, {"a": torch.ones(3), "ids": torch.arange(3)})
    allowed = diff(base, {"a": torch.ones(3)}, allow=["removed"])
    assert allowed.removed == ("b", "ids")
    assert diff(base, {"a": torch.ones(3), "b": torch.zeros(2, 2)}).removed == ("ids",)  # an index buffer needs no leave
    with pytest.raises(DeltaError, match=r"other shapes or types .*'b' \[2, 2\] float32 -> \[3, 2\] float32; --allow reshaped"):
        diff(base, base | {"b": torch.zeros(3, 2)})
    assert diff(base, base | {"b": torch.zeros(3, 2)}, allow=["reshaped"]).new == ("b",)
    for bad in (math.nan, math.inf):
        with pytest.raises(DeltaError, match="the state dict: 'a' holds NaN or infinity"):
            diff(base, base | {"a": torch.tensor([0.0, bad, 0.0])}).in_memory()
        with pytest.raises(DeltaError, match="the state dict: 'a' holds NaN or infinity"):
            diff(base | {"a": torch.tensor([0.0, bad, 0.0])}, base).in_memory()
    with pytest.raises(DeltaError, match="share no tensor name"):
        diff(base, {"q": torch.zeros(1)})
    with pytest.raises(ValueError, match="'anything'; expected 'removed' or 'reshaped'"):
        diff(base, base, allow=["anything"])


def test_a_body_under_a_prefix_is_found(tmp_path: Path) -> None:
    model = nudged(bert(), 1)
    body = {n.removeprefix("bert."): t for n, t in bits(bert()).items() if n.startswith("bert.")}
    save_file(body, tmp_path / "base.safetensors")
    vector = diff(tmp_path / "base.safetensors", model)
    assert set(vector.new) == {"classifier.weight", "classifier.bias"} and QUERY in vector
    other = bert()
    nn.init.normal_(other.classifier.weight)
    head = other.classifier.weight.detach().clone()
    applied = vector.apply(other)
    assert_same_bits(bits(other), bits(model))
    applied.revert()
    assert torch.equal(other.classifier.weight, head)


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.out = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
            self.out.weight = self.embed.weight

    tuned = nudged(Tied(), 1)
    vector = diff(Tied(), tuned)
    assert list(vector) == ["embed.weight"]
    model = Tied()
    vector.apply(model)
    assert model.out.weight is model.embed.weight and torch.equal(model.out.weight, tuned.embed.weight)
    other = {"out.weight": Tied().embed.weight.detach()}  # stored once, under its other name
    vector.base.check(paring.delta.sources.MemorySource(other))


def test_a_session_and_a_diff_agree() -> None:
    model = bert()
    with sliced(model, SliceConfig(rank=3, move_steps=2, train_also=("classifier",)), verbose=False) as session:
        train(session, lambda i: model(**tokens(seed=i)).loss, 4)
    learnt, compared = session.delta(), diff(bert(), model)
    assert set(learnt) == {n for n in compared if compared[n].any()} and learnt.base.tensors == compared.base.tensors
    for name in learnt:
        assert torch.equal(learnt[name], compared[name]), name
    assert learnt.similarity(compared) == pytest.approx(1)


def test_a_state_dict_with_the_change() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.out, self.same = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False), nn.Linear(2, 2)
            self.out.weight = self.embed.weight

    tuned, base = Tied(), Tied().state_dict()
    with torch.no_grad():
        tuned.embed.weight[2] += 1
    before = {n: t.clone() for n, t in base.items()}
    vector = diff(base, {**tuned.state_dict(), "head": torch.ones(2)})
    made = vector.applied_to(base)
    assert_same_bits(dict(sorted(made.items())), dict(sorted({**tuned.state_dict(), "head": torch.ones(2)}.items())))
    assert made["same.weight"] is base["same.weight"] and made["out.weight"] is made["embed.weight"]
    assert_same_bits(dict(base), before)
    with pytest.raises(DeltaError, match="the state dict is not the base of this delta"):
        vector.applied_to(made)
