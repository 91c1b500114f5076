"""Saliency and refit: against slow references, on a small BERT whose fine-tune is known, and what they leave as it was."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paring
from paring import DeltaError
from paring.delta.taskvector import TaskVector, ready
from paring.slim.fitted import prune_fitted, prune_salient
from paring.slim.lesson import Lesson, logits_and_hidden_states, mixed
from paring.slim.lost import as_stored
from paring.slim.pruners import num_entries, num_kept, prune
from paring.slim.refit import Refit, _missing, refit
from paring.slim.saliency import saliency

KEEP = 0.02
VALUES = "bert.encoder.layer.1.attention.self.value.weight"


def bert(seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, num_labels=4,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForSequenceClassification(config).to(dtype)  # in training mode, with dropout


def rows(count: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 11, (count,), generator=generator)
    mask = (torch.arange(10)[None] < lengths[:, None]).long()
    ids = torch.randint(1, 50, (count, 10), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(count, dtype=torch.int64)}


@pytest.fixture(scope="module")
def base() -> nn.Module:
    return bert(0)


@pytest.fixture(scope="module")
def vector(base: nn.Module) -> TaskVector:
    """Of a fine-tune that differs a little everywhere, and a lot in the values of attention."""
    tuned, generator = copy.deepcopy(base.state_dict()), torch.Generator().manual_seed(3)
    for name, tensor in tuned.items():
        size = 0.1 if "value" in name else 0.003
        tensor.add_(size * torch.randn(tensor.shape, generator=generator))
    return paring.diff(base, tuned).in_memory()


@pytest.fixture(scope="module")
def lesson() -> Lesson:
    return Lesson([rows(24, 1), rows(24, 2)])


def distance(base: nn.Module, vector: TaskVector, pruned: TaskVector, on: Lesson) -> float:
    """The mean over batches of the distance between two fine-tunes of one base."""
    student, teacher = copy.deepcopy(base).eval(), copy.deepcopy(base).eval()
    pruned.apply(student)
    vector.apply(teacher)
    with torch.no_grad():
        return sum(float(on.distance(student, teacher, batch)) for batch in on.batches) / len(on.batches)


def test_saliency_is_the_mean_squared_gradient_on_the_way(base: nn.Module, vector: TaskVector, lesson: Lesson) -> None:
    expected: dict[str, Tensor] = {}
    teacher = copy.deepcopy(base).eval()
    vector.apply(teacher)
    for point in (0.2, 0.6):
        student = copy.deepcopy(base).eval()
        with torch.no_grad():
            for name, p in student.named_parameters():
                p.add_(vector[name] * point)
        for batch in lesson.batches:
            for start in (0, 16):
                part = {k: t[start : start + 16] for k, t in batch.items()}
                student.zero_grad()
                lesson.distance(student, teacher, part).backward()
                for name, p in student.named_parameters():
                    expected[name] = expected.get(name, torch.zeros(p.numel())) + (p.grad.reshape(-1) ** 2) / 8  # type: ignore[union-attr]
    found = saliency(vector, base, lesson, points=(0.2, 0.6))
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-10), name


def test_the_most_salient_are_kept_and_magnitude_is_one_case(base: nn.Module, vector: TaskVector, lesson: Lesson) -> None:
    found = saliency(vector, base, lesson)
    count = num_kept(KEEP, num_entries(vector))
    tau = torch.cat([vector[n].view(-1) for n in vector.names])
    matters = torch.cat([found[n] + 0.1 * found[n].mean() for n in vector.names])
    for exponent in (0.1, 0.5):
        best = set((tau.abs() * matters**exponent).topk(count).indices.tolist())
        small = prune_salient(vector, KEEP, found, exponent)
        flat = torch.cat([small[n].view(-1) if n in small else torch.zeros(vector[n].numel()) for n in vector.names])
        assert set(flat.nonzero().view(-1).tolist()) == best and torch.equal(flat[flat != 0], tau[flat != 0])
    # Of a tensor that no row reached the mean over all stands in: its largest entries are not the first to go.
    name = max(vector.names, key=lambda n: float(vector[n].abs().max()))
    quiet = {**found, name: torch.zeros_like(found[name])}
    small = prune_salient(vector, KEEP, quiet, 0.1)
    assert name in small and small[name].count_nonzero() > 0
    with pytest.raises(DeltaError, match="the gradients of .* are not finite"):
        prune_salient(vector, KEEP, {**found, name: torch.full_like(found[name], math.inf)})
    plain, magnitude = prune_salient(vector, KEEP, found, 0.0), prune(vector, "magnitude", KEEP)
    assert all(torch.equal(plain[n], magnitude[n]) for n in plain)


def test_a_refit_brings_back_what_pruning_lost_also_on_other_rows(base: nn.Module, vector: TaskVector, lesson: Lesson) -> None:
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    flags = {name: name != "classifier.bias" for name, _ in base.named_parameters()}
    for name, p in base.named_parameters():
        p.requires_grad_(flags[name])
        p.grad = torch.ones_like(p)
    assert base.training
    pruned = prune_salient(vector, KEEP, saliency(vector, base, lesson))
    seen: list[tuple[int, float]] = []
    fitted = refit(pruned, vector, base, lesson, Refit(steps=60), lambda step, d: seen.append((step, d)))

    assert [step for step, _ in seen][:60] == list(range(1, 61))
    others = Lesson([rows(64, 9)])
    assert distance(base, vector, fitted, others) < 0.75 * distance(base, vector, pruned, others)
    for name in pruned.names:
        assert torch.equal(fitted.change(name).places.positions, pruned.change(name).places.positions)  # type: ignore[union-attr]
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert base.training and {n: p.requires_grad for n, p in base.named_parameters()} == flags
    assert all(bool((p.grad == 1).all()) for p in base.parameters())  # type: ignore[union-attr]
    assert fitted.facts["refit"]["steps"] == 60 and fitted.facts["refit"]["distance"][1] < fitted.facts["refit"]["distance"][0]

    again = refit(pruned, vector, base, lesson, Refit(steps=60))
    assert all(torch.equal(again[n], fitted[n]) for n in fitted.names)
    whole = prune_fitted(vector, base, lesson, KEEP, Refit(steps=60))
    assert all(torch.equal(whole[n], fitted[n]) for n in fitted.names) and whole.facts["method"] == "fitted"


def test_a_factor_for_each_tensor_comes_first_and_the_nearer_it_leads_the_slower_values_are_tuned(
    base: nn.Module, vector: TaskVector, lesson: Lesson
) -> None:
    """What is kept is too small in one tensor and too large in another: no multiple of all mends that, factors do."""
    kept = prune(vector, "magnitude", 1.0)
    wrong = dict(kept.changes)
    for name, factor in (("bert.encoder.layer.0.attention.self.value.weight", 0.5), (VALUES, 2.0)):
        change = kept.change(name)
        wrong[name] = ready(replace(change, values=change.values * factor))
    seen: list[tuple[int, float]] = []
    facts = refit(
        TaskVector(wrong, kept.base, kept.removed), vector, base, lesson, Refit(steps=160, mix=0.0), lambda *at: seen.append(at)
    ).facts["refit"]
    assert [step for step, _ in seen][:160] == list(range(1, 161))
    before, after = facts["distance"]
    assert after < facts["start"] < 0.2 * before
    whole = distance(base, vector, prune(vector, "magnitude", 1e-9), lesson)
    assert facts["rate"] == pytest.approx(Refit().rate * (facts["start"] / whole) ** 0.5, rel=0.05)


def test_how_far_a_start_is() -> None:
    assert _missing(0.5, 2.0) == 0.5 and _missing(3.0, 2.0) == 1.0
    assert _missing(-1e-9, 2.0) == 0.0  # what a divergence of equal answers is rounded to
    assert _missing(0.1, 0.0) == _missing(0.1, float("nan")) == 1.0


def test_half_precision_and_other_pruners(vector: TaskVector, lesson: Lesson) -> None:
    half = bert(0, torch.bfloat16)
    tuned = {name: (tensor.float() + vector[name]).bfloat16() for name, tensor in half.state_dict().items()}
    of = paring.diff(half, tuned)
    pruned = prune(of, "dare", KEEP, seed=1)
    fitted = refit(pruned, of, half, lesson, Refit(steps=40, mix=0.0))
    assert distance(half, of, fitted, lesson) < 0.7 * distance(half, of, pruned, lesson)


def test_the_base_comes_back_whatever_happens(base: nn.Module, vector: TaskVector, lesson: Lesson) -> None:
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    hooks = sum(len(p._post_accumulate_grad_hooks or ()) for p in base.parameters())

    def stop(step: int, _: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    pruned = prune(vector, "magnitude", KEEP)
    with pytest.raises(KeyboardInterrupt):
        refit(pruned, vector, base, lesson, Refit(steps=5), stop)

    def broken(model: nn.Module, batch: Any) -> list[Tensor]:
        return [out * torch.nan for out in logits_and_hidden_states(model, batch)]

    with pytest.raises(DeltaError, match="the fine-tune is nan away before the first step"):
        refit(pruned, vector, base, Lesson(lesson.batches, broken), Refit(steps=5))
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert sum(len(p._post_accumulate_grad_hooks or ()) for p in base.parameters()) == hooks


def test_a_refit_is_never_worse_than_none(base: nn.Module, vector: TaskVector, lesson: Lesson) -> None:
    pruned = prune(vector, "magnitude", KEEP)
    far = refit(pruned, vector, base, lesson, Refit(steps=2, rate=1e5))
    scale, (before, after) = far.facts["refit"]["scale"], far.facts["refit"]["distance"]
    most = vector.norm() / pruned.norm()
    assert scale == pytest.approx(most**0.5) or scale == pytest.approx(most)  # a nearer start was there
    assert all(torch.allclose(far[n], pruned[n] * scale) for n in pruned.names)
    assert after < before and after == pytest.approx(distance(base, vector, far, lesson), rel=1e-5)
    slower = refit(pruned, vector, base, lesson, Refit(steps=40, rate=4.0))
    assert distance(base, vector, slower, lesson) < distance(base, vector, pruned, lesson)


@pytest.mark.parametrize("values", ["int4", "sign"])
def test_coarse_values_are_tuned_as_they_come_back(base: nn.Module, vector: TaskVector, lesson: Lesson, values: str) -> None:
    pruned = prune_salient(vector, KEEP, saliency(vector, base, lesson))
    found = {}
    for tuned_as in ("fp32", values):
        fitted = refit(pruned, vector, base, lesson, Refit(steps=60, mix=0.0, values=tuned_as, group=16))
        stored, _ = as_stored(fitted, values, 16)
        found[tuned_as] = distance(base, vector, stored, lesson)
        if tuned_as == values:  # what was measured is what a file gives back
            assert fitted.facts["refit"]["distance"][1] == pytest.approx(found[values], rel=1e-4)
    # Four bits are next to nothing's loss here, a sign is not.
    assert found[values] < found["fp32"] * (1.01 if values == "int4" else 0.99)


def test_a_head_with_two_names(base: nn.Module, vector: TaskVector, lesson: Lesson) -> None:
    """Is as before afterwards."""
    model = copy.deepcopy(base)
    model.again = model.classifier
    fresh = {n: t.clone() for n, t in base.state_dict().items()}
    tuned = {n: t + vector[n] for n, t in fresh.items()}
    tuned |= {n.replace("classifier", "again"): t.clone() for n, t in tuned.items() if "classifier" in n}
    of = paring.diff({n: t for n, t in fresh.items() if "classifier" not in n}, tuned).in_memory()
    pruned = prune(of, "magnitude", KEEP)
    found = refit(pruned, of, model, lesson, Refit(steps=12))
    assert all(torch.equal(fresh[n], t) for n, t in model.state_dict().items() if n in fresh)
    assert distance(model, of, found, lesson) == pytest.approx(found.facts["refit"]["distance"][1], rel=1e-4)


def test_mixed_rows_take_tokens_of_others_at_the_same_place() -> None:
    batch = rows(200, 5)
    out = mixed(batch, 0.3, torch.Generator().manual_seed(0))
    same = out["input_ids"] == batch["input_ids"]
    assert out["attention_mask"] is batch["attention_mask"] and out["labels"] is batch["labels"]
    assert bool(same[batch["attention_mask"] == 0].all()), "padding stays"
    both = out["input_ids"][batch["attention_mask"] == 1]
    assert bool((both > 0).all()), "no padding is taken from others"
    assert 0.1 < 1 - float(same[batch["attention_mask"] == 1].float().mean()) < 0.3
    picture = {"pixel_values": torch.randn(50, 3, 8, 8)}
    made = mixed(picture, 0.2, torch.Generator().manual_seed(0))["pixel_values"]
    assert 0.15 < float((made != picture["pixel_values"]).float().mean()) < 0.25
    assert bool(torch.isin(made[:, 1, 4, 4], picture["pixel_values"][:, 1, 4, 4]).all())


def test_tokens_left_out_are_not_compared(base: nn.Module, vector: TaskVector) -> None:
    batch = rows(20, 6)
    other = dict(batch)
    noise = torch.randint(1, 50, batch["input_ids"].shape, generator=torch.Generator().manual_seed(1))
    other["input_ids"] = torch.where(batch["attention_mask"] == 0, noise, batch["input_ids"])
    pruned = prune(vector, "magnitude", KEEP)
    found = [distance(base, vector, pruned, Lesson([b])) for b in (batch, other)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Refit(steps=0), "steps is 0; expected a whole number, at least 1"),
        (lambda: Refit(rate=float("nan")), "rate is nan; expected a number above 0"),
        (lambda: Refit(mix=1.0), r"mix is 1.0; expected a share in \[0, 1\)"),
        (lambda: Refit(values="int3"), "values is 'int3'; expected one of fp32, bf16, fp16, int8, int4, sign"),
        (lambda: Refit(group=-1), "group is -1; expected a number of values, or 0 for all"),
        (lambda: Lesson([]), "a lesson without batches; expected at least one"),
        (lambda: Lesson([{}], hidden=-1), "hidden is -1; expected a weight, at least 0"),
    ],
)
def test_settings_that_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_refused(base: nn.Module, vector: TaskVector, lesson: Lesson) -> None:
    with pytest.raises(ValueError, match="keep is 0"):
        prune_fitted(vector, base, lesson, 0)
    with pytest.raises(ValueError, match="exponent is -1; expected a number, at least 0"):
        prune_salient(vector, KEEP, {}, -1)
    with pytest.raises(DeltaError, match="was made on"):
        prune_fitted(vector, bert(1), lesson, KEEP)
