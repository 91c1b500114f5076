"""Merges in place with searched weights: on models in memory, without files."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import paring
from conftest import assert_same_bits, bert, bits, tokens
from paring.delta.blocks import Rect
from paring.delta.change import Change
from paring.delta.errors import DeltaError
from paring.delta.places import Blocks
from paring.delta.taskvector import TaskVector, ready
from paring.fuse.inputs import FuseError, Inputs
from paring.fuse.method import Resolved
from paring.fuse.registry import METHODS, method
from paring.fuse.scope import global_cuts
from paring.fusion.coefficients import Coefficients, searchable
from paring.fusion.groups import ALL, Group, group_of, layer_groups
from paring.fusion.held import Held, Parts, Task, hold
from paring.fusion.merging import Merging, same_for_all
from paring.fusion.objective import shares, together
from paring.fusion.searched import Objective, search_weights
from paring.search import SearchSettings
from paring.slim.pruners import prune


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


WITH_WEIGHTS = [
    (n, scope)
    for n, how in METHODS.items()
    if any(p.name == "weight" for p in how.parameters) and how.max_models is None
    for scope in how.scopes
]


@dataclass
class Three:
    """Models of three tasks on one body, with heads of 2, 3 and 4 classes, and task vectors: exact and nearly whole,
    differences in numbers of a tenth of the entries, and blocks."""

    models: list[nn.Module]
    vectors: list[TaskVector]
    base: dict[str, torch.Tensor]

    @property
    def tasks(self) -> dict[str, Task]:
        return {t: Task(m, v) for t, m, v in zip("abc", self.models, self.vectors, strict=True)}


def three(dtype: torch.dtype = torch.float32) -> Three:
    models = [bert(labels).to(dtype).eval() for labels in (2, 3, 4)]
    for model in models[1:]:
        model.bert = models[0].bert
    body = bits(models[0].bert)
    vectors = []
    for i, model in enumerate(models):
        generator = torch.Generator().manual_seed(i)
        before = {f"bert.{n}": t for n, t in body.items()}
        after = {
            n: t + (torch.randn(t.shape, generator=generator) * 0.05).to(dtype) for n, t in before.items() if "layer.1" not in n
        }
        head = {n: t * 3 for n, t in bits(model).items() if n.startswith("classifier")}
        vectors.append(paring.diff(before, {**before, **after, **head}, exact=i != 1))
    vectors[1] = prune(vectors[1], "magnitude", 0.1).in_memory()
    vectors[2] = in_blocks(vectors[2])
    return Three(models, vectors, {f"bert.{n}": t for n, t in body.items() if t.is_floating_point()})


def in_blocks(vector: TaskVector) -> TaskVector:
    """Of matrices two rectangles alone."""
    changes = dict(vector.changes)
    for name, lazy in vector.changes.items():
        if lazy.kind != "exact" or len(lazy.shape) != 2:
            continue
        change = lazy.load()
        half = lazy.shape[0] // 2
        places = Blocks((Rect(0, half, 0, 5), Rect(half, lazy.shape[0], 1, 9)))
        assert change.before is not None
        values = places.gather(spread(change, change.values))
        before = places.gather(spread(change, change.before()))
        changes[name] = ready(Change(lazy.shape, lazy.dtype, "exact", places, values, lambda before=before: before))
    return TaskVector(changes, vector.base, vector.removed, vector.facts)


def spread(change: Change, values: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(change.shape, dtype=values.dtype)
    change.places.scatter_(out, values)
    return out


def by_hand(of: Three, name: str, parameters: dict, per_model: list[dict], scope: str) -> dict[str, torch.Tensor]:
    """The merged body by the pure functions of the registry, from whole tuned weights and differences."""
    how = method(name)
    settings = how.resolve(parameters, per_model)
    base = of.base

    def inputs(tensor: str) -> Inputs:
        before, models, differences = base[tensor], [], []
        for vector in of.vectors:
            if tensor not in vector:
                models.append(before)
            elif vector.changes[tensor].kind == "real":
                models.append(before + vector[tensor] if how.base == "unused" else vector[tensor])
            else:
                change, tuned = vector.change(tensor), before.clone()
                change.places.scatter_(tuned, change.after(change.places.gather(before), tensor))
                models.append(tuned)
            differences.append(tensor in vector and vector.changes[tensor].kind == "real" and how.base != "unused")
        beside = None if how.base == "unused" else before
        return Inputs(
            tensor, tuple(models), beside, settings.parameters, settings.per_model, ("a", "b", "c"), tuple(differences)
        )

    cuts = global_cuts(how, list(base), inputs) if scope == "global" else {}
    merged = {}
    for tensor, before in base.items():
        given = inputs(tensor)
        if tensor in cuts:
            object.__setattr__(given, "cuts", cuts[tensor])
        merged[tensor] = how(given, torch.empty_like(before))
    return merged


@pytest.mark.parametrize(("name", "scope"), WITH_WEIGHTS)
def test_a_merge_in_place_is_the_methods_own(name: str, scope: str) -> None:
    """Bitwise, whatever the changes are kept as; with other weights than those that thresholds were found with."""
    how = method(name)
    of = three()
    before = [bits(model) for model in of.models]
    more = {"density": 0.4} if any(p.name == "density" for p in how.parameters) else {}
    more |= {"steps": 3} if name == "wudi" else {}
    given = how.resolve({"weight": 1.0} | more, [{}] * 3)
    merging = Merging(of.models, hold(of.tasks), how, same_for_all(given), scope=scope)
    with merging:
        x = [0.3, 0.5, 0.9]
        merging.to(Coefficients(("a", "b", "c")).settings(x, how, same_for_all(given)))
        expected = by_hand(of, name, more, [{"weight": w} for w in x], scope)
        for i, model in enumerate(of.models):
            found = bits(model)
            for tensor, values in expected.items():
                assert torch.equal(found[tensor], values), tensor
            assert torch.equal(found["classifier.weight"], before[i]["classifier.weight"] * 3)
        merging.to()  # from the base again, not from what is there
        merging.to(Coefficients(("a", "b", "c")).settings(x, how, same_for_all(given)))
        assert all(torch.equal(bits(of.models[0])[tensor], values) for tensor, values in expected.items())
    for model, was in zip(of.models, before, strict=True):
        assert_same_bits(bits(model), was)


@pytest.mark.parametrize("name", ["ties", "breadcrumbs"])
def test_a_threshold_over_all_tensors_counts_those_that_no_task_has(name: str) -> None:
    """As the merge on disk does: a head of the base's own is part of its task vectors, all zeros."""
    of, how = three(), method(name)
    of.base = {"lm_head.weight": torch.randn(9000), **of.base}
    given = same_for_all(how.resolve({"weight": 0.5, "density": 0.1}, [{}] * 3))
    sizes = {tensor: before.numel() for tensor, before in of.base.items()}
    expected = by_hand(of, name, {"weight": 0.5, "density": 0.1}, [{}] * 3, "global")

    def differing(parts: Parts) -> int:
        with Merging(of.models, parts, how, given, scope="global") as merging:
            merging.to()
            found = bits(of.models[0])
            return sum(int((found[tensor] != expected[tensor]).sum()) for tensor in found if tensor in expected)

    assert differing(hold(of.tasks, sizes=sizes)) == 0 < differing(hold(of.tasks))


def test_merges_are_computed_by_one_thread() -> None:
    """As on disk: a sum by several threads may end in other bits."""
    of, how, seen = three(), method("task_arithmetic"), list[int]()

    def given(tensor: str) -> Resolved:
        seen.append(torch.get_num_threads())
        return how.resolve({"weight": 0.4}, [{}] * 3)

    torch.set_num_threads(2)
    try:
        with Merging(of.models, hold(of.tasks), how, given) as merging:
            merging.to()
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_half_precision_is_rounded_once_and_comes_back() -> None:
    of, how = three(torch.bfloat16), method("task_arithmetic")
    before = [bits(model) for model in of.models]
    given = same_for_all(how.resolve({"weight": 0.4}, [{}] * 3))
    with pytest.raises(KeyboardInterrupt), Merging(of.models, hold(of.tasks), how, given) as merging:
        merging.to()
        expected = by_hand(of, "task_arithmetic", {"weight": 0.4}, [{}] * 3, "tensor")
        assert all(torch.equal(bits(of.models[1])[n], t) and t.dtype == torch.bfloat16 for n, t in expected.items())
        raise KeyboardInterrupt
    for model, was in zip(of.models, before, strict=True):
        assert_same_bits(bits(model), was)


def test_nothing_of_the_models_size_is_made_for_a_candidate() -> None:
    """Of the model at most a tensor or two at a time: differences held whole are read where they lie."""
    of, how = three(), method("task_arithmetic")
    vectors = [paring.diff(bits(m), {n: t + 0.01 for n, t in bits(m).items()}, exact=False) for m in of.models]
    parts = hold({t: Task(m, v.only("bert.**")) for t, m, v in zip("abc", of.models, vectors, strict=True)})
    merging = Merging(of.models, parts, how, same_for_all(how.resolve({"weight": 0.3}, [{}] * 3)))
    for name in merging.names:
        inputs = merging.inputs(name, how.resolve({"weight": 0.3}, [{}] * 3))
        held = parts.held[name]
        assert [m.data_ptr() for m in inputs.models] == [h.values.data_ptr() for h in held if h]


def likelihood(labels: int, seed: int):
    batch = tokens(12, seed=seed, labels=labels)
    return lambda model: float(torch.exp(-model(**batch).loss.detach()))


def problem(of: Three, goal: str = "mean") -> Objective:
    scores = {t: likelihood(labels, i) for i, (t, labels) in enumerate(zip("abc", (2, 3, 4), strict=True))}
    own = {}
    for (task, score), model, vector in zip(scores.items(), of.models, of.vectors, strict=True):
        with vector.apply(model), torch.no_grad():
            own[task] = score(model)
    return Objective(scores, own, goal)  # type: ignore[arg-type]


@pytest.mark.parametrize("goal", ["mean", "worst"])
def test_search_is_never_worse_than_a_start_and_is_what_it_says(goal: str, tmp_path) -> None:
    of, how = three(), method("task_arithmetic")
    given = same_for_all(how.resolve({"weight": 1.0}, [{}] * 3))
    objective, before = problem(of, goal), [bits(model) for model in of.models]
    merging, names = Merging(of.models, hold(of.tasks), how, given), Coefficients(("a", "b", "c"))
    starts = names.starts(how, given(""), (0.2, 0.9, 0.1))
    assert starts == {
        "equal 0.3333": [0.3333] * 3,
        "equal 0.3": [0.3] * 3,
        "equal 0.5": [0.5] * 3,
        "equal 1": [1.0] * 3,
        "as configured": [0.2, 0.9, 0.1],
    }
    run = lambda: search_weights(merging, names, objective, given, starts, SearchSettings(budget=16), folder=tmp_path)  # noqa: E731
    found = run()
    assert found.result.num_evaluations == 16
    assert found.result.score <= min(s for s in found.result.start_scores.values() if s is not None)
    assert found.result.score < found.result.start_scores["equal 1"] - 1e-4  # type: ignore[operator]
    for model, was in zip(of.models, before, strict=True):
        assert_same_bits(bits(model), was)
    assert all(round(v, 4) == v for v in found.x)
    with merging:  # what was found scores what was said
        merging.to(names.settings(found.x, how, given))
        assert objective(of.models) == found.result.score
        values = shares({t: s(m) for (t, s), m in zip(objective.scores.items(), of.models, strict=True)}, objective.own)
        assert 1 - together(values, goal) == found.result.score  # type: ignore[arg-type]
    assert run() == found  # from the journal
    assert names.weights(found.x) == {t: {"all": v} for t, v in zip("abc", found.x, strict=True)}


def test_groups_of_layers_have_weights_of_their_own() -> None:
    of, how = three(), method("task_arithmetic")
    given = same_for_all(how.resolve({"weight": 1.0}, [{}] * 3))
    parts = hold(of.tasks)
    groups = layer_groups(parts.where, parts.held, 2)
    assert groups == (
        Group("layer 0", ("bert.encoder.layer.0.",)),
        Group("layer 2", ("bert.encoder.layer.2.",)),
        Group("outside"),
    )
    names = Coefficients(("a", "b", "c"), groups)
    assert names.dims == 9 and names.spread([1, 2, 3]) == [1, 2, 3] * 3
    x = [0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    with Merging(of.models, parts, how, given) as merging:
        merging.to(names.settings(x, how, given))
        first = by_hand(of, "task_arithmetic", {}, [{"weight": w} for w in x[:3]], "tensor")
        last = by_hand(of, "task_arithmetic", {}, [{"weight": w} for w in x[6:]], "tensor")
        found = bits(of.models[0])
        query = "bert.encoder.layer.{}.attention.self.query.weight"
        assert torch.equal(found[query.format(0)], first[query.format(0)])
        assert torch.equal(found[query.format(2)], of.base[query.format(2)])
        assert torch.equal(found["bert.embeddings.word_embeddings.weight"], last["bert.embeddings.word_embeddings.weight"])


def test_layers_are_cut_into_even_runs() -> None:
    names = [f"h.{i}.w" for i in range(12)] + ["wte.weight"]
    assert [g.name for g in layer_groups(names, names, 3)] == ["layers 0 to 3", "layers 4 to 7", "layers 8 to 11", "outside"]
    groups = layer_groups(names, names, 12)
    assert [group_of(n, groups) for n in names] == list(range(13))
    assert layer_groups(names, names, 1) == ALL and group_of("anything", ALL) == 0
    assert [g.name for g in layer_groups(names, names[:-1], 5)] == [
        "layers 0 to 1",
        "layers 2 to 4",
        "layers 5 to 6",
        "layers 7 to 9",
        "layers 10 to 11",
    ]
    two = [f"{s}.block.{i}.w" for s in ("encoder", "decoder") for i in range(2)]
    assert [g.name for g in layer_groups(two, two, 2)] == [
        "layers decoder.block.0 to decoder.block.1",
        "layers encoder.block.0 to encoder.block.1",
    ]
    with pytest.raises(ValueError, match="layer_groups is 13, and the tasks change 12 layers"):
        layer_groups(names, names, 13)


def test_weights_that_are_shares_are_searched_with_lambda() -> None:
    how = method("ties")
    given = how.resolve({"weight": 1.0, "lambda": 0.7}, [{}] * 2)
    names = Coefficients(("a", "b"), with_lambda=True)
    assert names.starts(how, given, (0.5, 0.5)) == {
        "equal, lambda 0.5": [1.0, 1.0, 0.5],
        "equal, lambda 1": [1.0, 1.0, 1.0],
        "equal, lambda 1.5": [1.0, 1.0, 1.5],
        "as configured": [0.5, 0.5, 0.7],
    }
    settings = names.settings([0.2, 0.4, 1.3], how, same_for_all(given))("any")
    assert settings.parameters["lambda"] == 1.3 and [one["weight"] for one in settings.per_model] == [0.2, 0.4]
    assert names.factor([0.2, 0.4, 1.3]) == 1.3 and Coefficients(("a",)).factor([1.0]) is None
    assert Coefficients(("a", "b")).starts(method("linear"), method("linear").resolve({"weight": 1}, [{}] * 2)) == {
        "equal": [1.0, 1.0]
    }
    assert names.bounds(2.0, {"s": [-0.5, 3.0, 1.0]}) == ((-0.5, 2.0), (0.0, 3.0), (0.0, 2.0))


def test_weights_that_a_method_does_not_take_lose() -> None:
    of, how = three(), method("linear")
    given = same_for_all(how.resolve({"weight": 1.0}, [{}] * 3))
    merging, names = Merging(of.models, hold(of.tasks), how, given), Coefficients(("a", "b", "c"))
    starts = {"none": [0.0, 0.0, 0.0], "equal": [1.0, 1.0, 1.0]}
    found = search_weights(merging, names, problem(of), given, starts, SearchSettings(budget=2))
    assert found.result.start_scores["none"] is None and found.x == (1.0, 1.0, 1.0)


def test_scores_together() -> None:
    own = {"a": 0.5, "b": 0.8}
    values = shares({"a": 0.4, "b": 0.8}, own)
    assert values == {"a": 0.8, "b": 1.0} and together(values, "mean") == 0.9 and together(values, "worst") == 0.8
    assert together({"a": float("nan"), "b": 1.0}, "worst") != together({"a": 1.0}, "worst")
    assert together({"b": 1.0, "a": float("nan")}, "worst") != 1.0
    with pytest.raises(ValueError, match="the fine-tune of 'a' has the score 0.0 on these rows"):
        shares({"a": 0.5}, {"a": 0.0})
    with pytest.raises(ValueError, match="no scores"):
        shares({}, {})


def test_what_cannot_be_merged_in_place() -> None:
    of = three()
    apart = copy.deepcopy(of.models[1])
    with pytest.raises(DeltaError, match="'b' changes 'bert.embeddings.word_embeddings.weight', which is no tensor that the"):
        hold({"a": of.tasks["a"], "b": Task(apart, of.vectors[1])})
    with torch.no_grad():
        of.models[0].bert.pooler.dense.bias[0] += 1
    with pytest.raises(DeltaError, match="is not the base of this delta: the values of 'bert.pooler.dense.bias' differ"):
        hold(of.tasks)
    with pytest.raises(FuseError, match="sce has no weight for each model, so there is nothing to search"):
        searchable(method("sce"))


def test_parts_of_fused_tensors_and_names_in_common() -> None:
    """``name[i]``, one expert's matrix, is a part of the whole; a tensor under two names is one."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.arange(24.0).view(3, 2, 4))
            self.tied = self.w

    model = Experts()
    base = paring.diff(model, {"w": model.w.detach() + 1}).base
    change = lambda v: Change(torch.Size((2, 4)), torch.float32, "real", Blocks((Rect(0, 1, 0, 4),)), torch.full((4,), v))  # noqa: E731
    vector = TaskVector({"w[2]": ready(change(5.0)), "w[0]": ready(change(1.0))}, base)
    parts: Parts = hold({"t": Task(model, vector)})
    (held,) = parts.held["w"]
    assert isinstance(held, Held)
    expected = torch.zeros(3, 2, 4)
    expected[0, 0], expected[2, 0] = 1.0, 5.0
    assert torch.equal(held.read(model.w.detach()), expected)
    assert list(parts.where) == ["w"]
