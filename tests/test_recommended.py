"""The settings recommended for a model: which blocks, which rank, which rate."""

from typing import Any

import pytest
import transformers
from torch import nn

from conftest import bert
from paring import SliceConfig, sliced
from paring.tune.targets import select
from test_architectures import clip, t5, vit

SHAPE = {"hidden_size": 192, "num_attention_heads": 4, "vocab_size": 20, "max_position_embeddings": 8}


def llama(num_layers: int) -> nn.Module:
    """Keys and values narrower than queries: a slice of every column has more entries than LoRA of half its rank."""
    config = transformers.LlamaConfig(**SHAPE, intermediate_size=512, num_key_value_heads=1, num_hidden_layers=num_layers)
    return transformers.LlamaForSequenceClassification(config)


def mixtral(num_layers: int) -> nn.Module:
    more = {"intermediate_size": 256, "num_key_value_heads": 4, "num_local_experts": 3, "num_experts_per_tok": 2}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SHAPE, **more, num_hidden_layers=num_layers))


def entries(model: nn.Module, config: SliceConfig) -> int:
    """Of the slices alone."""
    with sliced(model, config, verbose=False) as session:
        return session.num_trainable - sum(
            p.numel() for n in session.selection.whole for p in model.get_submodule(n).parameters()
        )


def test_a_text_model_is_sliced_in_the_upper_half_of_its_blocks() -> None:
    config, rate = SliceConfig.recommended(bert(), 100)
    assert (config.rank, config.modes, config.move_steps, config.exclude, rate) == (4, ("column",), None, (), 0.02)
    assert config.layers == (1, 2)  # of three blocks, the middle one too
    with sliced(bert(), config, verbose=False) as session:
        assert {name.split(".")[3] for name in session.active if "layer" in name} == {"1", "2"}
        assert "bert.pooler.dense" in session.active


@pytest.mark.parametrize("make", [vit, t5, clip, lambda: bert(num_hidden_layers=1)])
def test_pictures_two_stacks_and_a_single_block_are_sliced_everywhere(make: Any) -> None:
    assert SliceConfig.recommended(make(), 100).config.layers is None


def test_no_more_entries_than_lora_of_rank_8_as_peft_counts_them() -> None:
    import peft

    model = bert(**{**SHAPE, "intermediate_size": 512, "num_hidden_layers": 4})
    config, _ = SliceConfig.recommended(model, 100)
    assert config.rank == 31
    trained = entries(model, config)
    targets = [layer.name for layer in select(model, SliceConfig(rank=1, move_steps=1)).layers]
    peft.inject_adapter_in_model(peft.LoraConfig(r=8, target_modules=targets), model)
    lora = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert trained <= lora < trained * 32 / 31


@pytest.mark.parametrize(("make", "num_layers"), [(llama, 2), (llama, 3), (mixtral, 2)])
def test_the_rank_is_the_highest_that_lora_leaves_room_for(make: Any, num_layers: int) -> None:
    model = make(num_layers)
    config, _ = SliceConfig.recommended(model, 100)
    layers = select(model, SliceConfig(rank=1, move_steps=1)).layers
    lora = 8 * sum(layer.module.weight.numel() * (1 / layer.matrix.inp + 1 / layer.matrix.out) for layer in layers)
    trained = entries(model, config)
    assert trained <= lora < trained * (config.rank + 1) / config.rank


def test_elsewhere_the_rank_fits_the_width_and_layers_of_few_inputs_are_left_out() -> None:
    wide = nn.Sequential(nn.Linear(6, 384), nn.Linear(384, 384), nn.Linear(384, 384), nn.Linear(384, 2))
    config, rate = SliceConfig.recommended(wide, 1)
    assert (config.rank, config.exclude, config.layers) == (16, ("0",), None) and rate == pytest.approx(2 / 384)
    sliced(wide, config, verbose=False)


def test_a_model_that_does_not_say_what_it_reads_is_sliced_everywhere() -> None:
    class Silent(nn.Sequential):
        def get_input_embeddings(self) -> nn.Module:
            raise NotImplementedError

    config = SliceConfig.recommended(Silent(*(nn.Linear(96, 96) for _ in range(4))), 1).config
    assert (config.rank, config.layers) == (16, None)


def test_steps_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="num_steps is 0; expected a whole number, at least 1"):
        SliceConfig.recommended(bert(), 0)
