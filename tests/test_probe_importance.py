"""Wanda scores: against their definition worked out by hand, and slices chosen by them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import bert, tokens
from paring.probe.importance import input_norms, slice_scores
from paring.probe.kind import Row, Tables, Verdict
from paring.probe.kinds.importance import Settings, choose, verdict
from paring.tune.config import SliceConfig
from paring.tune.targets import select
from probe_task import task

ALL = SliceConfig(rank=1, modes=("row",), move_steps=None)


def test_scores_are_those_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(6, 5, generator=generator), torch.randn(9, 5, generator=generator)
    norms = inputs.norm(dim=0).unsqueeze(0)
    entries = weight.abs() * inputs.norm(dim=0)
    columns = slice_scores(weight, norms, "column", (0, 3), 2)
    assert columns.tolist() == pytest.approx([float(entries[:, :2].sum()), float(entries[:, 3:].sum())])
    rows = slice_scores(weight, norms, "row", (4, 1), 2)
    assert rows.tolist() == pytest.approx([float(entries[4:].sum()), float(entries[1:3].sum())])
    two = torch.stack([norms[0], 10 * norms[0]])  # rows 3 to 5 are the second group's
    assert slice_scores(weight, two, "row", (0, 3), 3).tolist() == pytest.approx(
        [float(entries[:3].sum()), 10 * float(entries[3:].sum())]
    )


def test_norms_are_of_the_layers_own_inputs_without_padding() -> None:
    model = bert().eval()
    layers = select(model, ALL).layers
    seen: dict[str, list[torch.Tensor]] = {layer.name: [] for layer in layers}
    handles = [
        layer.module.register_forward_pre_hook(lambda module, args, name=layer.name: seen[name].append(args[0].detach()))
        for layer in layers
    ]
    batches = [tokens(batch=4, seed=1), tokens(batch=2, seed=2)]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    padded = [
        {
            "input_ids": torch.cat([batch["input_ids"], torch.zeros(len(batch["input_ids"]), 2, dtype=torch.int64)], 1),
            "attention_mask": torch.tensor([[1] * batch["input_ids"].shape[1] + [0] * 2] * len(batch["input_ids"])),
            "labels": batch["labels"],
        }
        for batch in batches
    ]
    for given in (batches, padded):
        found = input_norms(model, layers, given)
        for layer in layers:
            expected = torch.cat([x.flatten(0, -2) for x in seen[layer.name]]).norm(dim=0)
            torch.testing.assert_close(found[layer.name][0].float(), expected, rtol=1e-4, atol=1e-5)
    assert not any(layer.module._forward_hooks for layer in layers)


def test_norms_of_convolutions() -> None:
    class Convolved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(4, 6, 3, padding=1, groups=2)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.convolution(pixel_values)  # type: ignore[no-any-return]

    model = Convolved().eval()
    layers = select(model, SliceConfig(rank=1, modes=("row",), move_steps=None, targets=("convolution",), train_also=())).layers
    images = torch.randn(3, 4, 5, 5)
    found = input_norms(model, layers, [{"pixel_values": images}])["convolution"]
    unfolded = nn.functional.unfold(images, 3, padding=1).unflatten(1, (2, 18))  # [N, groups, in, places]
    torch.testing.assert_close(found.float(), unfolded.square().sum((0, 3)).sqrt())


def test_what_cannot_be_scored() -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 50}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **heads)).eval()
    with pytest.raises(ValueError, match=r"holds fused experts, whose inputs cannot be seen.*--exclude"):
        input_norms(model, select(model, ALL).layers, [tokens(labels=50)])
    plain = bert().eval()
    layers = select(plain, ALL).layers
    with pytest.raises(ValueError, match="no calibration row reached layer 'bert.encoder.layer.0.attention.self.query'"):
        input_norms(plain, layers, [])


def test_categories() -> None:
    scores = {f"layer{i}": ((0, 4, 7), torch.tensor([2.0, 6.0, 1.0])) for i in range(5)}
    assert choose("most", scores, 0) == dict.fromkeys(scores, (4, 2.0))
    assert choose("least", scores, 0) == {name: (7, pytest.approx(1 / 3)) for name in scores}
    mixed = [start for start, _ in choose("mixed", scores, 0).values()]
    assert sorted(mixed) == [4, 4, 4, 7, 7] and mixed != [start for start, _ in choose("mixed", scores, 1).values()]
    drawn = [[start for start, _ in choose("random", scores, seed).values()] for seed in range(20)]
    assert {start for starts in drawn for start in starts} == {0, 4, 7} and drawn[0] != drawn[1]
    assert choose("random", scores, 3) == choose("random", scores, 3)


def test_of_a_model(tmp_path: Path) -> None:
    result = task().probe("importance", tmp_path, steps=4, batch_size=8, rows=20, seeds=(0, 1), figure=True)
    assert len(result.tables["runs"]) == 2 * 4 * 2 and len(result.tables["slices"]) == 2 * 4 * 2 * 13
    scores = {(r["axis"], r["category"], r["seed"], r["layer"]): r["score"] for r in result.tables["slices"]}
    for (axis, category, seed, layer), score in scores.items():
        assert scores[axis, "least", seed, layer] <= score <= scores[axis, "most", seed, layer], category
    means = {(row["axis"], row["category"]): row["score"] for row in result.tables["categories"]}
    assert means["column", "most"] > 1.1 > 0.9 > means["column", "least"]
    assert (tmp_path / "figure.png").stat().st_size > 5000


def made(means: dict[str, float], spread: float) -> Tables:
    rows: list[Row] = []
    for number, (category, mean) in enumerate(means.items()):
        for seed in range(3):
            what: Row = {"axis": "row", "category": category, "rate": 0.1, "seed": seed, "diverged": False}
            rows.append(what | {"validation": mean, "test": mean + spread * (-1, 0, 1)[(seed + number) % 3]})
    return {"runs": rows}


def test_verdicts() -> None:
    settings = Settings(axes=("row",))
    alike = {"most": 0.9, "least": 0.895, "mixed": 0.9, "random": 0.898}
    assert verdict(made(alike, 0.001), settings).holds is True
    assert verdict(made(alike, 0.02), settings).sentence.startswith("undecided, as measured it holds: ")
    apart = verdict(made(alike | {"least": 0.85}, 0.005), settings)
    assert apart.holds is False and "most over least +5.0 points" in apart.said
    assert verdict(made(alike | {"least": 0.87}, 0.04), settings).holds is None
    assert "most 90.0 %, least 87.0 %" in verdict(made(alike | {"least": 0.87}, 0.04), settings).said


def test_nothing_is_decided_by_a_rate_at_the_end_of_those_tried() -> None:
    settings = Settings(axes=("row",))

    def at(rates: dict[str, tuple[float, ...]], means: dict[str, float]) -> Verdict:
        """The first rate of each is its best."""
        rows: list[Row] = []
        for category, tried in rates.items():
            for order, rate in enumerate(tried):
                rows += [row | {"rate": rate} for row in made({category: means[category] - 0.2 * (order > 0)}, 0.0)["runs"]]
        return verdict({"runs": rows}, settings)

    middle, low = (0.2, 0.1, 0.4), (0.1, 0.2, 0.4)
    apart, alike = {"most": 0.80, "least": 0.9}, {"most": 0.9, "least": 0.9}
    assert at({"most": middle, "least": middle}, apart).holds is False
    assert at({"most": middle, "least": low}, apart).holds is False  # another rate could but bring it farther ahead
    behind = at({"most": low, "least": middle}, apart)
    assert behind.holds is None and behind.measured is False
    assert "least over most +10.0 points" in behind.said
    assert "; of most the best rate is the highest or lowest tried" in behind.said
    assert "; of each the best rate is the" in at({"most": low, "least": low}, apart).said
    assert at({"most": middle, "least": middle}, alike).holds is True
    for one, other in ((low, middle), (middle, low)):
        assert at({"most": one, "least": other}, alike).holds is None
    assert at({"most": (0.1,), "least": (0.1,)}, apart).holds is False  # one rate is what was asked about
