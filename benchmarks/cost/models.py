"""The models that are tuned, all from a configuration with random weights, and one batch of random data for each.

Cost does not depend on what the weights say; dropout is off, so that no method draws random numbers in a step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NUM_LABELS = 2
PATCH = 16  # pixels a side


@dataclass(frozen=True)
class Size:
    """Extents of a transformer and of a batch.

    Attributes:
        width, blocks, heads, inner: of the model; ``inner`` is the width inside the MLP.
        batch: samples in a batch.
        length: tokens in a text; pixels a side of an image.
    """

    width: int
    blocks: int
    heads: int
    inner: int
    batch: int
    length: int


@dataclass(frozen=True)
class Family:
    """An architecture of transformers', and how its parts are called there.

    Attributes:
        build: a model of a size.
        batch: keyword arguments of its forward.
        head: modules trained whole beside every method.
        first_norm: the lowest norm; a gradient that reaches it has passed every block.
        norms: last parts of the names of all norms.
        ia3, ia3_feedforward: where PEFT puts IA3 by default, or for ViT, of which it has no default, its equivalent:
            keys, values, and the inputs of the second layer of the MLP.
        matrices: products of ``width x inner`` in the MLP of a block.
        vocabulary: entries.
    """

    build: Callable[["Family", Size], nn.Module]
    batch: Callable[["Family", Size], dict[str, Tensor]]
    head: tuple[str, ...]
    first_norm: str
    norms: tuple[str, ...]
    ia3: tuple[str, ...]
    ia3_feedforward: tuple[str, ...]
    matrices: int
    vocabulary: int = 0


@dataclass(frozen=True)
class Workload:
    """A model and the batch it is tuned on; ``tiny`` replaces ``size`` where only the machinery is tried."""

    name: str
    title: str
    family: Family
    size: Size
    tiny: Size

    def at(self, tiny: bool) -> Size:
        return self.tiny if tiny else self.size

    def model(self, tiny: bool, device: str, dtype: torch.dtype) -> nn.Module:
        """The same weights at every call."""
        torch.manual_seed(0)
        return self.family.build(self.family, self.at(tiny)).to(device=device, dtype=dtype).train()

    def batch(self, tiny: bool, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """The same values at every call; ``dtype`` is that of images."""
        torch.manual_seed(1)
        values = self.family.batch(self.family, self.at(tiny))
        return {k: v.to(device, dtype if v.is_floating_point() else v.dtype) for k, v in values.items()}

    def step_flops(self, tiny: bool) -> float:
        """About what one step costs: forward, the gradient of every input, half as much again for the rest."""
        size = self.at(tiny)
        tokens = (size.length // PATCH) ** 2 if self.family.build is _vit else size.length
        entries = size.blocks * (4 * size.width**2 + self.family.matrices * size.width * size.inner)
        return 2 * 3 * size.batch * tokens * entries


def _bert(family: Family, size: Size) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            hidden_size=size.width,
            num_hidden_layers=size.blocks,
            num_attention_heads=size.heads,
            intermediate_size=size.inner,
            vocab_size=family.vocabulary,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=NUM_LABELS,
        )
    )


def _llama(family: Family, size: Size) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=size.width,
            num_hidden_layers=size.blocks,
            num_attention_heads=size.heads,
            intermediate_size=size.inner,
            vocab_size=family.vocabulary,
            attention_dropout=0.0,
            tie_word_embeddings=False,
            use_cache=False,
        )
    )


def _vit(family: Family, size: Size) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=size.width,
            num_hidden_layers=size.blocks,
            num_attention_heads=size.heads,
            intermediate_size=size.inner,
            image_size=size.length,
            patch_size=PATCH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=NUM_LABELS,
        )
    )


def _texts(family: Family, size: Size) -> dict[str, Tensor]:
    tokens = torch.randint(0, family.vocabulary, (size.batch, size.length))
    mask = torch.ones_like(tokens)
    return {"input_ids": tokens, "attention_mask": mask, "labels": torch.randint(0, NUM_LABELS, (size.batch,))}


def _continued_texts(family: Family, size: Size) -> dict[str, Tensor]:
    tokens = torch.randint(0, family.vocabulary, (size.batch, size.length))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}


def _images(family: Family, size: Size) -> dict[str, Tensor]:
    pixels = torch.randn(size.batch, 3, size.length, size.length)
    return {"pixel_values": pixels, "labels": torch.randint(0, NUM_LABELS, (size.batch,))}


BERT = Family(
    build=_bert,
    batch=_texts,
    head=("classifier",),
    first_norm="bert.embeddings.LayerNorm",
    norms=("LayerNorm",),
    ia3=("key", "value", "output.dense"),
    ia3_feedforward=("output.dense",),
    matrices=2,
    vocabulary=30522,
)
LLAMA = Family(
    build=_llama,
    batch=_continued_texts,
    head=(),  # the output embeddings are pretrained and stay frozen
    first_norm="model.layers.0.input_layernorm",
    norms=("input_layernorm", "post_attention_layernorm", "norm"),
    ia3=("k_proj", "v_proj", "down_proj"),
    ia3_feedforward=("down_proj",),
    matrices=3,
    vocabulary=8192,
)
VIT = Family(
    build=_vit,
    batch=_images,
    head=("classifier",),
    first_norm="vit.layers.0.layernorm_before",
    norms=("layernorm_before", "layernorm_after", "layernorm"),
    ia3=("k_proj", "v_proj", "fc2"),
    ia3_feedforward=("fc2",),
    matrices=2,
)

_TINY_TEXT = Size(32, 3, 4, 64, batch=2, length=8)
_TINY_IMAGE = Size(32, 3, 4, 64, batch=2, length=2 * PATCH)

WORKLOADS = {
    w.name: w
    for w in (
        Workload("bert-mini", "BERT 384 x 6, 32 x 128 tokens", BERT, Size(384, 6, 12, 1536, 32, 128), _TINY_TEXT),
        Workload("bert-base", "BERT-base 768 x 12, 16 x 128 tokens", BERT, Size(768, 12, 12, 3072, 16, 128), _TINY_TEXT),
        Workload("llama", "Llama-style 768 x 12, 4 x 256 tokens", LLAMA, Size(768, 12, 12, 2048, 4, 256), _TINY_TEXT),
        Workload("vit-s", "ViT-S/16 384 x 12, 16 images", VIT, Size(384, 12, 6, 1536, 16, 224), _TINY_IMAGE),
    )
}
