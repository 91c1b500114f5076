"""Synthetic checkpoints: a base and its fine-tune, of a Llama's tensor shapes, in bf16.

Base weights are normal with standard deviation 0.02. The fine-tune is what a short run at a small rate leaves, rounded to bf16,
whose neighbouring numbers are 0.4 to 0.8 % apart:

- projections: normal differences whose standard deviation, one a tensor, is log-uniform in 1e-5 ... 1e-4 (0.05 to 0.5 % of
  the weights'). So 15 to 70 % of a tensor's entries change, most of those by one or two units in the last place;
- the embedding (tied to the head): 3e-5, in the quarter of the rows whose tokens occurred;
- norms stay as they are.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from paring.delta.checkpoint.read import TensorInfo
from paring.delta.checkpoint.write import write_checkpoint

STD = 0.02
LEAST, MOST, EMBEDDING = 1e-5, 1e-4, 3e-5
_SHARD_BYTES = 10**9


@dataclass(frozen=True)
class Size:
    """A model's dimensions; keys and values are as wide as queries, the head is the embedding."""

    title: str
    vocabulary: int
    width: int
    inner: int
    blocks: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        wide = {f"self_attn.{p}_proj": (self.width, self.width) for p in "qkvo"}
        wide |= {"mlp.gate_proj": (self.inner, self.width), "mlp.up_proj": (self.inner, self.width)}
        wide["mlp.down_proj"] = (self.width, self.inner)
        out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.width)}
        for i in range(self.blocks):
            out |= {f"model.layers.{i}.{name}.weight": shape for name, shape in wide.items()}
            out |= {f"model.layers.{i}.{n}_layernorm.weight": (self.width,) for n in ("input", "post_attention")}
        return out | {"model.norm.weight": (self.width,)}

    @property
    def num_parameters(self) -> int:
        return sum(map(math.prod, self.shapes().values()))

    @property
    def largest_bytes(self) -> int:
        return 2 * max(map(math.prod, self.shapes().values()))


SIZES = {
    "tiny": Size("tiny", 1000, 64, 176, 2),
    "250M": Size("250 M", 32000, 1024, 2816, 17),
    "1B": Size("1 B", 32000, 2048, 5632, 18),
}


def make(folder: Path, size: Size, seed: int = 0, num_tuned: int = 1) -> tuple[Path, ...]:
    """The base and its fine-tunes, in ``folder``; written unless they are there."""
    made = folder / "made.json"
    outs = [folder / "base", *(folder / ("tuned" if i == 1 else f"tuned{i}") for i in range(1, num_tuned + 1))]
    facts = {"size": size.title, "shapes": {n: list(s) for n, s in size.shapes().items()}, "seed": seed, "version": 1}
    facts |= {"num_tuned": num_tuned} if num_tuned != 1 else {}
    if made.exists() and json.loads(made.read_text()) == facts:
        return tuple(outs)
    infos = [(name, TensorInfo(torch.bfloat16, torch.Size(shape))) for name, shape in size.shapes().items()]
    for number, out in enumerate(outs):
        content = partial(_content, size=size, seed=seed, number=number)
        write_checkpoint(out, infos, content, shard_bytes=_SHARD_BYTES, overwrite=True)
    made.write_text(json.dumps(facts))
    return tuple(outs)


def _content(name: str, size: Size, seed: int, number: int) -> Iterator[Tensor]:
    """A tensor, in pieces: of the base (0), or of a fine-tune (from 1 on), which draws the same base again."""
    names = list(size.shapes())
    shape = size.shapes()[name]
    ours = torch.Generator().manual_seed(seed * 100_003 + 2 * names.index(name))
    theirs = torch.Generator().manual_seed(seed * 100_003 + 2 * names.index(name) + 1 + 1_000_003 * max(0, number - 1))
    std = EMBEDDING if "embed" in name else LEAST * (MOST / LEAST) ** float(torch.rand((), generator=theirs))
    rows = max(1, (1 << 22) // shape[-1])
    for start in range(0, shape[0] if len(shape) > 1 else 1, rows):
        piece = (min(rows, shape[0] - start), shape[1]) if len(shape) > 1 else shape
        weight = (torch.randn(piece, generator=ours) * STD).to(torch.bfloat16)
        if len(shape) == 1:
            weight = torch.ones(shape, dtype=torch.bfloat16)
        elif number:
            difference = torch.randn(piece, generator=theirs) * std
            if "embed" in name:
                difference *= torch.rand(piece[0], 1, generator=theirs) < 0.25
            weight = (weight.float() + difference).to(torch.bfloat16)
        yield weight
