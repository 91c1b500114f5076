"""Runs of layers of several models, one after the other: what fits together is put together, all else is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merges import configure, content, edit, tuned, whole, write
from paring import DeltaError
from paring.fuse.engine import fuse


def model(hidden: int = 8, vocabulary: int = 10, **changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    about = {"vocab_size": vocabulary, "max_position_embeddings": 8, "tie_word_embeddings": False} | changes
    return LlamaForCausalLM(LlamaConfig(**sizes, **about))


def save(folder: Path, seed: int, hidden: int = 8, vocabulary: int = 10, **changes: Any) -> str:
    tuned(model(hidden, vocabulary, **changes), seed).save_pretrained(folder)
    return str(folder)


def stacked(*models: str, **more: Any) -> dict[str, Any]:
    slices = [{"sources": [{"model": m, "layer_range": [0, 2]}]} for m in models]
    return {"merge_method": "passthrough", "slices": slices, **more}


def biased(folder: str) -> None:
    edit(folder, **{f"model__layers__{i}__self_attn__q_proj__bias": torch.zeros(8) for i in range(2)})


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden": 16},
            r"'\S+' has shape \[.*\] in .*/[ab]/model.safetensors and \[.*\] in .*/[ab]/model.safetensors; models",
        ),
        (
            {"vocabulary": 13},
            r"'\S+' has shape \[1[03], 8\] in .* and \[1[03], 8\] in .*: vocabularies of 1[03] and 1[03] entries",
        ),
        (
            {"bias": True},
            r"/[ab]/model.safetensors has 'model.layers.0.self_attn.q_proj.bias', and .*/[ab]/.* no '.*bias'; layers",
        ),
    ],
)
def test_slices_of_unlike_models(tmp_path: Path, changes: dict[str, Any], message: str, turned: bool) -> None:
    """Each slice is whole by itself, and the output would not load, or run on wrong numbers."""
    changes = dict(changes)
    bias = changes.pop("bias", False)
    paths = [save(tmp_path / "a", 1), save(tmp_path / "b", 2, **changes)]
    if bias:
        biased(paths[1])
    config = write(tmp_path, stacked(*(reversed(paths) if turned else paths)))
    with pytest.raises(DeltaError, match=message):
        fuse(config, tmp_path / "out")
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_a_layer_in_the_middle(tmp_path: Path) -> None:
    """Nothing of its model's beside its layers is in the output."""
    paths = [save(tmp_path / "a", 1), save(tmp_path / "b", 2, 16), save(tmp_path / "c", 3, vocabulary=13)]
    with pytest.raises(
        DeltaError, match=r"'model.layers.0.\S+' has shape .* in .*/b/model.safetensors, and .* in .*/a/.*; layers"
    ):
        fuse(write(tmp_path, stacked(paths[0], paths[1], paths[0])), tmp_path / "out")
    fuse(write(tmp_path, stacked(paths[0], paths[2], paths[0])), tmp_path / "out")
    assert len(whole(tmp_path / "out")["lm_head.weight"]) == 10


def test_a_head_that_the_last_model_ties(tmp_path: Path) -> None:
    """It is that model's embeddings, written out, since the output's configuration ties none."""
    from transformers import AutoModelForCausalLM

    paths = [save(tmp_path / "a", 1), save(tmp_path / "b", 2, tie_word_embeddings=True)]
    assert "lm_head.weight" not in whole(paths[1])
    fuse(write(tmp_path, stacked(*paths)), tmp_path / "out")
    out = whole(tmp_path / "out")
    assert torch.equal(out["lm_head.weight"], whole(paths[1])["model.embed_tokens.weight"])
    assert torch.equal(out["model.embed_tokens.weight"], whole(paths[0])["model.embed_tokens.weight"])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.lm_head.weight, out["lm_head.weight"])


@pytest.mark.parametrize("saved", [False, True])
def test_a_head_where_the_first_model_ties_its_own(tmp_path: Path, saved: bool) -> None:
    paths = [save(tmp_path / "a", 1, tie_word_embeddings=True), save(tmp_path / "b", 2)]
    if saved:
        edit(paths[0], lm_head__weight=whole(paths[0])["model.embed_tokens.weight"].clone())
    with pytest.raises(DeltaError, match=r"b/.* has a 'lm_head.weight' of its own, which .*a/.* ties to 'model.embed_tokens"):
        fuse(write(tmp_path, stacked(*paths)), tmp_path / "out")
    edit(paths[1], lm_head__weight=None)
    configure(paths[1], tie_word_embeddings=True)
    fuse(write(tmp_path, stacked(*paths)), tmp_path / "out")
    out = whole(tmp_path / "out")
    assert ("lm_head.weight" in out) == saved
    assert torch.equal(out.get("lm_head.weight", out["model.embed_tokens.weight"]), out["model.embed_tokens.weight"])


def test_tensors_outside_of_the_layers(tmp_path: Path) -> None:
    paths = [save(tmp_path / "a", 1), save(tmp_path / "b", 2)]
    edit(paths[1], score__weight=torch.ones(2, 8))
    with pytest.raises(DeltaError, match=r"b/.* has 1 tensors that .*a/.* does not have: 'score.weight'; --allow extra"):
        fuse(write(tmp_path, stacked(*paths)), tmp_path / "out")
    fuse(write(tmp_path, stacked(*paths)), tmp_path / "out", allow=["extra"])
    assert "score.weight" not in whole(tmp_path / "out")
    with pytest.raises(DeltaError, match=r"a/.* has no tensor 'score.weight', which .*b/.* has"):
        fuse(write(tmp_path, stacked(*reversed(paths), paths[0])), tmp_path / "out2")


def test_each_layer_is_described_as_in_its_own_model(tmp_path: Path) -> None:
    paths = [save(tmp_path / "a", 1), save(tmp_path / "b", 2)]
    configure(paths[0], layer_types=["full_attention", "full_attention"])
    configure(paths[1], layer_types=["sliding_attention", "full_attention"])
    fuse(write(tmp_path, stacked(*paths)), tmp_path / "out")
    found = json.loads(content(tmp_path / "out")["config.json"])
    assert found["layer_types"] == ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    assert found["num_hidden_layers"] == 4


def test_one_model_with_two_runs_of_layers_in_a_slice(tmp_path: Path) -> None:
    path, other = save(tmp_path / "a", 1), save(tmp_path / "b", 2)
    sources = [{"model": path, "layer_range": [i, i + 1], "parameters": {"weight": w}} for i, w in ((0, 0.25), (1, 0.5))]
    config: dict[str, Any] = {"merge_method": "linear", "slices": [{"sources": sources}], "parameters": {"normalize": False}}
    fuse(write(tmp_path, config), tmp_path / "out")
    before, out = whole(path), whole(tmp_path / "out")
    rest = "mlp.up_proj.weight"
    expected = 0.25 * before[f"model.layers.0.{rest}"] + 0.5 * before[f"model.layers.1.{rest}"]
    torch.testing.assert_close(out[f"model.layers.0.{rest}"], expected)
    torch.testing.assert_close(out["lm_head.weight"], 0.75 * before["lm_head.weight"])
    sources.append({"model": other, "layer_range": [0, 1]})
    fuse(write(tmp_path, config | {"merge_method": "dare_ties", "base_model": other}), tmp_path / "drawn")
    sources.append({"model": other, "layer_range": [1, 2]})
    with pytest.raises(
        ValueError, match=r"line 3: base_model .*b is 2 sources of this slice; expected one: a difference is from"
    ):
        fuse(write(tmp_path, config | {"merge_method": "dare_ties", "base_model": other}), tmp_path / "x")
    sources[1]["layer_range"] = [0, 1]
    with pytest.raises(ValueError, match=r"line 10: layer_range \[0, 1\] of .*a comes twice; give it once, with both weights"):
        fuse(write(tmp_path, config), tmp_path / "x")
