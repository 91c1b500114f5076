"""Adapters that are damaged, or do more than a difference of weights can say: refused by name, nothing written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import paring
from adapters import adapted
from conftest import bert
from paring import DeltaError
from paring.neighbours.peft_import import import_peft

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's advice

QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


def edit(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "use_dora is True, which a difference of weights cannot express; merge it with PEFT"),
    "method": ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA adapters"),
    "replication": ({"layer_replication": [[0, 2], [1, 3]]}, r"layer_replication is \[\[0, 2\], \[1, 3\]\]"),
    "tokens": ({"trainable_token_indices": [1]}, r"trainable_token_indices is \[1\]"),
    "parameters": ({"target_parameters": ["experts"]}, "target_parameters is"),
    "alora": ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is"),
    "unknown": ({"brand_new": {"x": 1}}, r"brand_new is {'x': 1}, which a difference"),
    "pissa": (
        {"init_lora_weights": "pissa_niter_4"},
        "init_lora_weights is 'pissa_niter_4', which changes the base's weights, too",
    ),
    "rank": ({"r": 4}, r"its factors are \[3, 24\] and \[24, 3\], but adapter_config.json gives it rank 4"),
    "no rank": ({"r": "3"}, "r is '3', lora_alpha is 5; expected a whole number above 0"),
    "pattern": ({"alpha_pattern": {"(": 1}}, "alpha_pattern has '\\(', no regular expression"),
    "pattern's value": ({"rank_pattern": {"query": 0}}, "rank_pattern is 0 for 'query'; expected a number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_are_refused(name: str, tmp_path: Path) -> None:
    settings, text = REFUSED[name]
    adapted(bert(), tmp_path, target_modules=["query"])
    edit(tmp_path, **settings)
    with pytest.raises(DeltaError, match=text) as error:
        import_peft(tmp_path, bert())
    assert str(tmp_path) in str(error.value)


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "one factor": (lambda t: t.pop(f"{QUERY}.lora_B.weight"), "query.weight' has only one of its two factors"),
    "magnitude": (lambda t: t.update({f"{QUERY}.lora_magnitude_vector": torch.ones(24)}), "belongs to a kind of adapter that"),
    "prefix": (
        lambda t: t.update({"model.query.weight": torch.ones(24)}),
        "'model.query.weight' does not start with 'base_model.mod",
    ),
    "dimensions": (lambda t: t.update({f"{QUERY}.lora_A.weight": torch.ones(3)}), "expected two matrices"),
    "shape": (
        lambda t: t.update({f"{QUERY}.lora_A.weight": torch.ones(3, 25)}),
        r"factors give \[24, 25\], the base has \[24, 24\]",
    ),
    "unknown": (
        lambda t: t.update(
            {"base_model.model.x.lora_A.weight": torch.ones(3, 2), "base_model.model.x.lora_B.weight": torch.ones(2, 3)}
        ),
        "it changes 'x.weight', which is not there",
    ),
    "resized": (
        lambda t: t.update({"base_model.model.bert.embeddings.word_embeddings.weight": torch.ones(51, 24)}),
        r"is \[51, 24\], in the base it is \[50, 24\]; merge",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_files_that_are_refused(name: str, tmp_path: Path) -> None:
    change, text = TENSORS[name]
    adapted(bert(), tmp_path, target_modules=["query"])
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(DeltaError, match=text):
        import_peft(tmp_path, bert())


def test_not_finite(tmp_path: Path) -> None:
    adapted(bert(), tmp_path, target_modules=["query"])
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors[f"{QUERY}.lora_A.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    vector = import_peft(tmp_path, bert())
    with pytest.raises(DeltaError, match="query.weight': the adapter holds NaN or infinity"):
        paring.save_delta(vector, tmp_path / "a.delta.safetensors")
    assert not (tmp_path / "a.delta.safetensors").exists()
