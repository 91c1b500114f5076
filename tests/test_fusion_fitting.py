"""Fitted merges: against a plain loop with a copy of the model for each fine-tune, and what they leave as it was."""

import copy
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

import paring
from conftest import assert_same_bits, bert, bits, tokens
from paring import DeltaError
from paring.delta.taskvector import TaskVector, ready
from paring.fuse.registry import method
from paring.fusion.fitting import Fit, Fitted, fit
from paring.fusion.held import Task, hold
from paring.fusion.merging import Merging, Settings, same_for_all
from paring.slim.lesson import Lesson
from paring.slim.pruners import prune

TASKS = {"a": 2, "b": 3, "c": 4}  # classes
SUM = same_for_all(method("task_arithmetic").resolve({"weight": 0.3}, [{}] * 3))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Three:
    """Tasks on one body: exact and whole but for a layer, numbers of a tenth of the entries, numbers everywhere."""

    models: dict[str, nn.Module]
    vectors: dict[str, TaskVector]

    def merging(self, how: str = "task_arithmetic", settings: Settings = SUM) -> Merging:
        tasks = {t: Task(m, self.vectors[t]) for t, m in self.models.items()}
        return Merging(list(self.models.values()), hold(tasks), method(how), settings)


def three(dtype: torch.dtype = torch.float32) -> Three:
    models = {task: bert(labels).to(dtype).eval() for task, labels in TASKS.items()}
    first = models["a"]
    for model in models.values():
        model.bert = first.bert
    before, vectors = {f"bert.{n}": t for n, t in bits(first.bert).items()}, {}  # type: ignore[arg-type]
    for i, (task, model) in enumerate(models.items()):
        generator = torch.Generator().manual_seed(i)
        moved = {n: t for n, t in before.items() if i or "layer.1" not in n}
        after = {n: t + (torch.randn(t.shape, generator=generator) * 0.05).to(dtype) for n, t in moved.items()}
        head = {n: t * 4 for n, t in bits(model).items() if n.startswith("classifier")}
        vectors[task] = paring.diff(before, {**before, **after, **head}, exact=not i)
    vectors["b"] = prune(vectors["b"], "magnitude", 0.1).in_memory()
    return Three(models, vectors)


def lessons() -> dict[str, Lesson]:
    return {t: Lesson([tokens(8, seed=10 * i + j, labels=n) for j in range(2)]) for i, (t, n) in enumerate(TASKS.items())}


def teachers(of: Three) -> dict[str, nn.Module]:
    """A copy of the model for each."""
    found = {task: copy.deepcopy(model).eval() for task, model in of.models.items()}
    for task, model in found.items():
        of.vectors[task].apply(model)
    return found


def distances(of: Three, merging: Merging, fitted: Fitted | None, settings: Settings = SUM) -> dict[str, float]:
    """Of the merge, or of fitted values on the models, to whole fine-tunes, by hand."""
    imitated, found = teachers(of), {}
    with merging, torch.no_grad():
        merging.to(settings)
        if fitted is not None:
            merging.put(fitted.values, fitted.heads)
        for task, lesson in lessons().items():
            every = [float(lesson.distance(of.models[task], imitated[task], batch)) for batch in lesson.batches]
            found[task] = sum(every) / len(every)
    return found


@pytest.mark.parametrize("head_rate", [0.0, 0.3])
def test_the_steps_are_those_of_a_plain_loop(head_rate: float) -> None:
    """One batch a task, nothing mixed: so that a loop with autograd and Adam, and copies of everything, must do the same."""
    of, rows = three(), {t: Lesson([lesson.batches[0]]) for t, lesson in lessons().items()}
    imitated, students = teachers(of), {task: copy.deepcopy(model).eval() for task, model in of.models.items()}
    merging = of.merging()
    with merging:
        merging.to(SUM)
        start = {name: tensor.clone() for name, tensor in merging.merged()}
    values = {name: nn.Parameter(tensor) for name, tensor in start.items()}
    heads = {
        task: {n: nn.Parameter(p.detach().clone()) for n, p in model.named_parameters() if n.startswith("classifier")}
        for task, model in imitated.items()
    }
    sizes = {task: torch.cat([p.detach().flatten() for p in head.values()]) for task, head in heads.items()}
    squares = [torch.cat([v[n].flatten() for n in start if n in v], 0).square().sum() for v in of.vectors.values()]
    scale = math.sqrt(sum(float(s) for s in squares) / (3 * sum(v.numel() for v in values.values())))
    highest = [0.2 * scale, *(head_rate * float(v.square().mean().sqrt()) for v in sizes.values())]
    adam = torch.optim.Adam([{"params": list(of.values())} for of in (values, *heads.values())])
    for step in range(22):
        for group, rate in zip(adam.param_groups, highest, strict=True):
            group["lr"] = rate * min((step + 1) / 20, 1 - step / 22)
        adam.zero_grad()
        total = torch.zeros(())
        for task, lesson in rows.items():
            put = {**values, **heads[task]}

            def answers(model: nn.Module, batch: Mapping[str, Tensor], put: Mapping[str, Tensor] = put) -> list[Tensor]:
                inputs = {"input_ids": batch["input_ids"], "output_hidden_states": True}
                found = (
                    torch.func.functional_call(model, dict(put), (), inputs) if model in students.values() else model(**inputs)
                )
                return [found.logits, *found.hidden_states]

            total = total + Lesson(lesson.batches, answers).distance(students[task], imitated[task], lesson.batches[0])
        (total / 3).backward()
        adam.step()
    told: list[tuple[int, float]] = []
    found = fit(merging, SUM, rows, Fit(steps=22, rate=0.2, head_rate=head_rate, mix=0), report=lambda *step: told.append(step))
    assert found.rate == 0.2 and [step for step, _ in told] == [*range(1, 23)]
    assert told[0][1] == pytest.approx(found.distance[0])
    assert set(found.values) == set(start)
    for name, value in found.values.items():
        assert not torch.equal(value, start[name]) or "layer.1" in name or "position" in name, name
        torch.testing.assert_close(value, values[name].detach(), atol=2e-5, rtol=1e-4)
    assert set(found.heads) == (set(TASKS) if head_rate else set())
    for task, head in found.heads.items():
        assert set(head) == {"classifier.weight", "classifier.bias"}
        for name, value in head.items():
            assert not torch.equal(value, dict(imitated[task].named_parameters())[name])
            torch.testing.assert_close(value, heads[task][name].detach(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_comes_nearer_and_leaves_all_as_it_was(dtype: torch.dtype) -> None:
    of = three(dtype)
    first, second, _ = of.models.values()
    first.train()
    first.bert.encoder.layer[0].eval()  # type: ignore[index, union-attr]
    second.classifier.weight.requires_grad_(False)  # type: ignore[union-attr]
    first.bert.pooler.dense.bias.grad = torch.ones(24, dtype=dtype)  # type: ignore[union-attr]
    state = lambda: [  # noqa: E731
        [[p.requires_grad for p in m.parameters()] for m in of.models.values()],
        [[(n, p.grad.tolist()) for n, p in m.named_parameters() if p.grad is not None] for m in of.models.values()],
        [[x.training for x in m.modules()] for m in of.models.values()],
    ]
    was, stored, merging = state(), [bits(m) for m in of.models.values()], of.merging()
    runs = [fit(merging, SUM, lessons(), Fit(steps=12, rate=2.0)) for _ in range(2)]
    assert state() == was
    for model, before in zip(of.models.values(), stored, strict=True):
        assert_same_bits(bits(model), before)
    found = runs[0]
    assert found.distance[1] < 0.8 * found.distance[0]
    assert all(v.dtype == dtype for v in found.values.values())
    assert_same_bits(dict(found.values), dict(runs[1].values))  # the same each time
    for model in of.models.values():
        model.eval()
    assert all(t.dtype == dtype for head in found.heads.values() for t in head.values())
    for task in TASKS:
        assert_same_bits(dict(found.heads[task]), dict(runs[1].heads[task]))
    assert distances(of, merging, None) == pytest.approx(found.before, rel=1e-5)
    assert distances(of, merging, found) == pytest.approx(found.after, rel=1e-5)
    for model, before in zip(of.models.values(), stored, strict=True):
        assert_same_bits(bits(model), before)  # heads, too, are back
    other = fit(merging, SUM, lessons(), Fit(steps=12, rate=2.0, seed=1))
    assert any(not torch.equal(v, found.values[n]) for n, v in other.values.items())


def test_a_rate_too_high_is_lowered_or_leaves_the_merge_as_it_is() -> None:
    of = three()
    merging = of.merging()
    found = fit(merging, SUM, lessons(), Fit(steps=20, rate=10.0))
    assert found.head_rate == found.rate / 100
    assert found.rate in (2.5, 0.625) and found.distance[1] < found.distance[0]
    for rate in (1e4, 1e30):  # astray, and not finite
        none = fit(merging, SUM, lessons(), Fit(steps=5, rate=rate))
        assert none.rate == 0 and none.after == none.before
        with merging:
            merging.to(SUM)
            assert_same_bits(dict(none.values), dict(merging.merged()))
            for task, model in of.models.items():
                assert_same_bits(dict(none.heads[task]), {n: t for n, t in bits(model).items() if n.startswith("classifier")})


def test_values_that_are_not_finite_are_not_taken_though_no_row_shows_it() -> None:
    of = three()

    def hiding(model: nn.Module, batch: Mapping[str, Tensor]) -> list[Tensor]:
        return [model(input_ids=batch["input_ids"]).logits.nan_to_num(0, 0, 0)]

    far = same_for_all(method("task_arithmetic").resolve({"weight": 5.0}, [{}] * 3))
    rows = {task: Lesson(lesson.batches, hiding) for task, lesson in lessons().items()}
    found = fit(of.merging(settings=far), far, rows, Fit(steps=2, rate=1e38))
    assert found.rate == 0 and all(bool(v.isfinite().all()) for v in found.values.values())


def test_any_method_and_pruned_task_vectors_which_learn_from_whole_ones() -> None:
    of = three()
    settings = same_for_all(method("linear").resolve({"weight": 1.0}, [{}] * 3))
    merging = of.merging("linear", settings)
    found = fit(merging, settings, lessons(), Fit(steps=6))
    assert distances(of, merging, found, settings) == pytest.approx(found.after, rel=1e-5)
    assert set(found.values) == set(of.merging().names)

    whole = hold({t: Task(m, of.vectors[t]) for t, m in of.models.items()})
    pruned = Three(of.models, {t: prune(v, "magnitude", 0.05).in_memory() for t, v in of.vectors.items()})
    merging = pruned.merging()
    to_whole, to_pruned = (fit(merging, SUM, lessons(), Fit(steps=6), tuned=tuned) for tuned in (whole, None))
    assert distances(of, merging, to_whole) == pytest.approx(to_whole.after, rel=1e-5)
    assert distances(pruned, merging, to_pruned) == pytest.approx(to_pruned.after, rel=1e-5)


def test_one_model_for_tasks_without_heads_of_their_own() -> None:
    of = three()
    models, vectors = dict.fromkeys("ab", of.models["a"]), {t: of.vectors[t].only("bert.**") for t in "ab"}
    settings = same_for_all(method("task_arithmetic").resolve({"weight": 0.3}, [{}] * 2))
    merging = Three(models, vectors).merging(settings=settings)
    rows = {t: lessons()["a"] for t in "ab"}
    found = fit(merging, settings, rows, Fit(steps=6))
    assert found.rate == 0.12 and found.distance[1] < found.distance[0] and (found.heads, found.head_rate) == ({}, 0)


def test_heads_are_imitated_as_the_fine_tunes_have_them() -> None:
    """What is merged may have others, which were refitted when it was pruned."""
    of = three()
    whole = hold({t: Task(m, of.vectors[t]) for t, m in of.models.items()})
    other = dict(of.vectors)
    for task, vector in of.vectors.items():
        heads = {n: ready(replace(vector.change(n), values=vector.change(n).values * -2)) for n in vector.new}
        other[task] = TaskVector({**vector.changes, **heads}, vector.base, vector.removed)
    merging = Three(of.models, other).merging()
    found = fit(merging, SUM, lessons(), Fit(steps=6), tuned=whole)
    assert distances(of, merging, None) == pytest.approx(found.before, rel=1e-5)
    assert distances(of, merging, found) == pytest.approx(found.after, rel=1e-5)


def test_a_head_of_its_own_is_no_part_of_a_merge_though_the_base_has_one() -> None:
    """By a method that merges weights, which writes every tensor of the output."""
    of = three()
    first = of.models["a"]
    names = {name: name for name in (*of.vectors["a"].base.tensors, "classifier.weight", "classifier.bias")}
    parts = hold({t: Task(m, of.vectors[t]) for t, m in of.models.items()}, names, dict.fromkeys(names, 1))
    settings = same_for_all(method("linear").resolve({"weight": 1.0}, [{}] * 3))
    with Merging(list(of.models.values()), parts, method("linear"), settings) as merging:
        own = {n: t.clone() for n, t in bits(first).items() if n.startswith("classifier")}
        merging.to()
        assert_same_bits({n: t for n, t in bits(first).items() if n.startswith("classifier")}, own)
    assert not set(own) & set(parts.where) and set(own) <= set(parts.sizes)


def test_a_head_with_two_names_is_tuned_once() -> None:
    of = three()
    once, twice = fit(of.merging(), SUM, lessons(), Fit(steps=6)), dict(of.vectors)
    for task, model in of.models.items():
        model.again, vector = model.classifier, of.vectors[task]
        heads = {n.replace("classifier", "again"): vector.changes[n] for n in vector.new}
        twice[task] = TaskVector({**vector.changes, **heads}, vector.base, vector.removed)
    merging = Three(of.models, twice).merging()
    again = fit(merging, SUM, lessons(), Fit(steps=6))
    assert again.after == once.after and len(again.heads["a"]) == 4
    assert distances(of, merging, again) == pytest.approx(again.after, rel=1e-5)


def test_the_models_are_as_before_when_it_is_stopped() -> None:
    of = three()
    before = [bits(model) for model in of.models.values()]

    def stop(step: int, _: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(of.merging(), SUM, lessons(), Fit(steps=5), report=stop)
    for model, was in zip(of.models.values(), before, strict=True):
        assert_same_bits(bits(model), was)
        assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_heads_that_are_not_on_the_models() -> None:
    merging, head = three().merging(), {"classifier.bias": torch.zeros(2)}
    with pytest.raises(ValueError, match="heads: those of 'a' are not on the models; expected"):
        merging.put({}, {"a": head})
    with merging:
        for task, name, what in (("d", "classifier.bias", "those of 'd' are"), ("a", "bert.x", "'bert.x' of 'a' is")):
            with pytest.raises(ValueError, match=f"heads: {what} not on the models"):
                merging.put({}, {task: {name: head["classifier.bias"]}})


def test_what_is_refused() -> None:
    of = three()
    merging, rows = of.merging(), lessons()
    with pytest.raises(ValueError, match=re.escape("lessons are of a, b; expected rows of each task: a, b, c")):
        fit(merging, SUM, {t: rows[t] for t in "ab"})
    before = [bits(model) for model in of.models.values()]
    broken = Three(of.models, {**of.vectors, "b": of.vectors["b"] * 1e38})
    without = same_for_all(method("task_arithmetic").resolve({}, [{"weight": w} for w in (0.3, 0.0, 0.3)]))
    with pytest.raises(DeltaError, match="fit: the distance to the fine-tune of 'b' is nan before the first step"):
        fit(broken.merging(settings=without), without, rows)
    heads = Three(of.models, {t: v.only("classifier.**") for t, v in of.vectors.items()})
    with pytest.raises(DeltaError, match="no task changes a parameter of the body"):
        fit(heads.merging(), SUM, rows)
    for model, was in zip(of.models.values(), before, strict=True):
        assert_same_bits(bits(model), was)
    for wrong, message in (
        ({"steps": 0}, "steps is 0; expected a whole number, at least 1"),
        ({"rate": math.nan}, "rate is nan; expected a number above 0"),
        ({"head_rate": -0.1}, "head_rate is -0.1; expected a number, at least 0"),
        ({"head_rate": math.inf}, "head_rate is inf; expected a number, at least 0"),
        ({"mix": 1.0}, "mix is 1.0; expected a share in [0, 1)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            Fit(**wrong)  # type: ignore[arg-type]
    assert Fitted({}, {"a": 1.0, "b": 3.0}, {"a": 0.5, "b": 0.5}, 0.1).distance == (2.0, 0.5)
