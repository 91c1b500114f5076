"""Fused expert weights: the slices' gradients against dense ones, by every way that experts can run."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from conftest import assert_same_bits, bits
from paring import SliceConfig, sliced

SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 50}
SHAPE |= {
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


def mixtral() -> nn.Module:
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SHAPE))


def gpt_oss() -> nn.Module:
    """Its fused weights are stored ``[experts, in, out]``."""
    config = transformers.GptOssConfig(**SHAPE, head_dim=12, layer_types=["full_attention"] * 2)
    return transformers.GptOssForCausalLM(config)


def fresh(make: Any, implementation: str) -> Any:
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.02)  # what GptOss leaves at zero
    model.set_experts_implementation(implementation)
    return model


BATCH = {"input_ids": torch.randint(3, 50, (3, 7), generator=torch.Generator().manual_seed(2))}
BATCH["labels"] = BATCH["input_ids"]


@pytest.mark.parametrize("mode", ["row", "column"])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize("make", [mixtral, gpt_oss])
def test_gradients_are_the_dense_ones(make: Any, implementation: str, mode: Any) -> None:
    dense = fresh(make, implementation)
    dense(**BATCH).loss.backward()
    model = fresh(make, implementation)
    config = SliceConfig(rank=3, modes=(mode,), position=5, move_steps=None, targets=("gate_up_proj", "down_proj"))
    with sliced(model, config, verbose=False) as session:
        model(**BATCH).loss.backward()
        assert len(session._slots) == 4
        for slot in session._slots:
            owner, _, attribute = slot.layer.name.rpartition(".")
            full = dense.get_submodule(owner)._parameters[attribute].grad
            full = full.transpose(1, 2) if slot.layer.kind.transposed else full  # [experts, out, in]
            want = full[:, 5:8] if mode == "row" else full[:, :, 5:8].transpose(1, 2)
            assert want.abs().max() > 0
            torch.testing.assert_close(slot.copy.grad, want, rtol=1e-4, atol=1e-7)
            assert model.get_submodule(owner)._parameters[attribute].grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_writes_the_slices_and_nothing_else(dtype: torch.dtype) -> None:
    model = fresh(mixtral, "eager").to(dtype)
    before = bits(model)
    config = SliceConfig(rank=3, move_steps=2, targets=("experts.*",))
    with sliced(model, config, verbose=False) as session:
        assert session.num_trainable == 2 * 4 * 3 * (24 + 40)  # two layers, four experts, rows of both weights
        assert list(model.state_dict()) == list(before)
        optimizer = torch.optim.SGD(session.parameters(), lr=5.0)
        for _ in range(4):
            model(**BATCH).loss.backward()
            optimizer.step()
            session.step()
            optimizer.zero_grad()
        changed = model.model.layers[0].mlp.experts.gate_up_proj.detach() != before["model.layers.0.mlp.experts.gate_up_proj"]
        state = session.state_dict()
        learnt = bits(model)
    assert changed[:, :3].any() and changed[:, :, :3].any() and not changed[:, 3:, 3:].any()
    again = fresh(mixtral, "eager").to(dtype)
    with sliced(again, config, verbose=False) as resumed:
        resumed.load_state_dict(state)
        assert_same_bits(bits(again), learnt)
    session.revert()
    assert_same_bits(bits(model), before)


def test_an_implementation_that_hides_the_weights_is_refused() -> None:
    with pytest.raises(ValueError, match=r"its experts run by 'batched_mm', .*; expected 'eager' or 'grouped_mm'"):
        sliced(fresh(mixtral, "batched_mm"), SliceConfig(rank=3, move_steps=2))
    sliced(fresh(mixtral, "batched_mm"), SliceConfig(rank=3, move_steps=2, exclude=("experts.*",)))
