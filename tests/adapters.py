"""Small language models for LoRA adapters, and differences to put on them."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conftest import bert, tokens
from paring.neighbours.layers import kind_of


def gpt2(tied: bool = True) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 24, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, tie_word_embeddings=tied))


def llama(tied: bool = False) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, max_position_embeddings=16, tie_word_embeddings=tied))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": bert,
    "gpt2": lambda: gpt2(tied=False),
    "gpt2 tied": gpt2,
    "llama": llama,
    "llama tied": lambda: llama(tied=True),
}


def tuned(model: nn.Module, rank: int, *, biases: bool = False) -> nn.Module:
    """A copy with differences of ``rank`` on every weight that a LoRA can be on."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    done: set[int] = set()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if kind_of(module) == "other" or id(weight) in done:
            continue
        done.add(id(weight))
        left, right = (torch.randn(n, rank, generator=generator) for n in weight.shape)
        weight.data += 0.02 * left @ right.T
        if biases and module.bias is not None:
            module.bias.data += 0.1 * torch.randn(module.bias.shape, generator=generator)
    return model


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=tokens()["input_ids"]).logits


def adapted(base: nn.Module, folder: Path, **settings: Any) -> nn.Module:
    """Saves an adapter of random values on a copy of ``base``, and returns PEFT's own merge of it."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(copy.deepcopy(base), LoraConfig(**({"r": 3, "lora_alpha": 5} | settings)))
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return model.merge_and_unload()
