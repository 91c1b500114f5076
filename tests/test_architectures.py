"""The architectures people tune, as tiny random models of the real classes: tuned over two moves, saved, loaded, taken back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import paring
from conftest import assert_same_bits, bits
from paring import SliceConfig, sliced

Batch = dict[str, Tensor]
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
DECODER = {**SMALL, "vocab_size": 50, "max_position_embeddings": 32, "num_key_value_heads": 2, "pad_token_id": 0}


def ids(labels: bool = False, length: int = 7) -> Batch:
    tokens = torch.randint(3, 50, (4, length))
    return {"input_ids": tokens, "labels": tokens if labels else torch.tensor([0, 1, 2, 0])}


def pictures(*shape: int) -> Batch:
    return {"pixel_values": torch.randn(4, *shape), "labels": torch.tensor([0, 1, 2, 0])}


def clip() -> nn.Module:
    text = {**SMALL, "vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 2, "bos_token_id": 1}
    vision = {**SMALL, "image_size": 8, "patch_size": 4}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))


def clip_batch() -> Batch:
    return {"input_ids": torch.randint(3, 50, (4, 7)), "pixel_values": torch.randn(4, 3, 8, 8), "return_loss": True}


def t5() -> nn.Module:
    shape = {"d_model": 24, "d_ff": 40, "num_layers": 2, "num_heads": 2, "d_kv": 12, "vocab_size": 50}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(**shape, decoder_start_token_id=0, pad_token_id=0, dropout_rate=0.0)
    )


def gpt2() -> nn.Module:
    shape = {"n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 50}
    config = transformers.GPT2Config(**shape, bos_token_id=1, eos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return transformers.GPT2LMHeadModel(config)


def classifier(name: str, **more: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        config = getattr(transformers, f"{name}Config")(**SMALL, vocab_size=50, num_labels=3, pad_token_id=0, **more)
        return getattr(transformers, f"{name}ForSequenceClassification")(config)

    return make


def vit() -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=3))


def videomae() -> nn.Module:
    shape = {"image_size": 8, "patch_size": 4, "num_frames": 4, "tubelet_size": 2}
    return transformers.VideoMAEForVideoClassification(transformers.VideoMAEConfig(**SMALL, **shape, num_labels=3))


def mixtral(implementation: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**DECODER, num_local_experts=4, num_experts_per_tok=2)
        )
        model.set_experts_implementation(implementation)
        return model

    return make


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch]]] = {
    "BERT": (classifier("Bert"), ids),
    "RoBERTa": (classifier("Roberta", max_position_embeddings=32), ids),
    "DeBERTa-v2": (
        classifier(
            "DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8, pooler_hidden_size=24
        ),
        ids,
    ),
    "T5": (t5, lambda: ids(labels=True)),
    "GPT-2": (gpt2, lambda: ids(labels=True)),
    "Llama": (lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER)), lambda: ids(labels=True)),
    "Mixtral": (mixtral("grouped_mm"), lambda: ids(labels=True)),
    "Mixtral, expert by expert": (mixtral("eager"), lambda: ids(labels=True)),
    "ViT": (vit, lambda: pictures(3, 8, 8)),
    "VideoMAE": (videomae, lambda: pictures(4, 3, 8, 8)),
    "CLIP": (clip, clip_batch),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tuned_saved_loaded_and_taken_back(name: str, tmp_path: Path) -> None:
    make, batch = ARCHITECTURES[name]

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return make()

    model, given = fresh().eval(), batch()
    before = bits(model)
    with torch.no_grad():
        untuned = model(**given).loss
    with sliced(model, SliceConfig(rank=3, move_steps=2), verbose=False) as session:
        optimizer = torch.optim.AdamW(session.parameters(), lr=1e-2)
        touched = set()
        for _ in range(5):
            touched |= {(axis.axis, axis.start) for axis in session.active.values()}
            model(**given).loss.backward()
            assert all(slot.copy.grad is not None for slot in session._slots), name
            optimizer.step()
            session.step()
            optimizer.zero_grad()
    assert {axis for axis, _ in touched} == {"row", "column"} and len(touched) >= 3
    with torch.no_grad():
        tuned = model(**given).loss
    assert tuned < untuned
    paring.save_delta(session.delta(), tmp_path / "a.delta.safetensors")
    other = fresh().eval()
    paring.load_delta(tmp_path / "a.delta.safetensors", other).apply(other)
    assert_same_bits(bits(other), bits(model))
    with torch.no_grad():
        assert torch.equal(other(**given).loss, tuned)
    session.revert()
    assert_same_bits(bits(model), before)
