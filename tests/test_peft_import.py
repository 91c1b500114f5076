"""PEFT's LoRA adapters as deltas: on the base they give what PEFT's own merge gives; what they cannot hold is refused."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import paring
from adapters import adapted, gpt2, llama, logits
from conftest import bert, convnet
from paring import DeltaError
from paring.cli.main import main
from paring.neighbours.peft_export import export_peft
from paring.neighbours.peft_import import import_peft

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's advice on tied weights and fan_in_fan_out


def same(a: nn.Module, b: nn.Module) -> None:
    mine, theirs = a.state_dict(), b.state_dict()
    assert list(mine) == list(theirs)
    for name in mine:
        torch.testing.assert_close(
            mine[name], theirs[name], rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


SETTINGS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "bert": (bert, {"target_modules": ["query", "value", "output.dense"]}),
    "every layer": (bert, {"target_modules": "all-linear"}),
    "gpt2, also square": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "gpt2, also its head": (lambda: gpt2(tied=False), {"target_modules": ["c_attn", "c_proj", "lm_head"]}),
    "llama": (llama, {"target_modules": ["q_proj", "k_proj", "down_proj"], "task_type": "CAUSAL_LM"}),
    "rslora": (llama, {"target_modules": ["q_proj", "v_proj"], "use_rslora": True}),
    "patterns": (
        llama,
        {
            "target_modules": ["q_proj", "v_proj", "up_proj"],
            "rank_pattern": {"v_proj": 7, r"^model\.layers\.1\..*q_proj": 1},
            "alpha_pattern": {"layers.0.mlp.up_proj": 2, "v_proj": 11},
        },
    ),
    "rslora and patterns": (
        bert,
        {"target_modules": ["key"], "use_rslora": True, "rank_pattern": {"layer.1.attention.self.key": 6}},
    ),
    "embeddings": (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "a square embedding": (lambda: bert(max_position_embeddings=24), {"target_modules": ["position_embeddings"]}),
    "lora_bias": (bert, {"target_modules": ["query", "dense"], "lora_bias": True}),
    "all biases": (bert, {"target_modules": ["query", "dense"], "bias": "all"}),
    "biases of these": (bert, {"target_modules": ["query"], "bias": "lora_only"}),
    "modules whole": (
        bert,
        {"target_modules": ["query"], "modules_to_save": ["classifier", "LayerNorm"], "task_type": "SEQ_CLS"},
    ),
    "convolutions": (convnet, {"target_modules": ["0", "5"]}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_as_pefts_merge(name: str, tmp_path: Path) -> None:
    make, settings = SETTINGS[name]
    base = make()
    if name == "convolutions":
        base(torch.randn(2, 4, 8, 8))  # its lazy layer gets its shape
    merged = adapted(base, tmp_path, **settings)
    model = copy.deepcopy(base)
    vector = import_peft(tmp_path, base)
    applied = vector.apply(model)
    same(model, merged)
    assert len(vector) >= 1 and not vector.exact and vector.facts["method"] == "peft-lora"
    with pytest.raises(AssertionError):
        same(model, base)
    applied.revert()
    same(model, base)


def test_of_a_body_with_a_new_head(tmp_path: Path) -> None:
    """The base on disk has no "bert." before its names, and no classifier."""
    base = bert()
    base.bert.save_pretrained(tmp_path / "base")
    merged = adapted(base, tmp_path / "a", target_modules=["query"], modules_to_save=["classifier"], task_type="SEQ_CLS")
    vector = import_peft(tmp_path / "a", tmp_path / "base")
    assert vector.new == ("classifier.bias", "classifier.weight") and len(vector) == 3
    assert set(vector.base.tensors) == {n for n in base.state_dict() if n.startswith("bert.")}
    model = bert()
    vector.apply(model)
    same(model, merged)


def test_another_head_than_the_bases(tmp_path: Path) -> None:
    """A base with a head of its own, which a classifier on it does not have."""
    from transformers import BertForMaskedLM

    base = bert()
    whole = BertForMaskedLM(base.config)
    base.bert.load_state_dict(whole.bert.state_dict(), strict=False)
    whole.save_pretrained(tmp_path / "base")
    merged = adapted(base, tmp_path / "a", target_modules=["query"], modules_to_save=["classifier"])
    vector = import_peft(tmp_path / "a", tmp_path / "base")
    assert not any(n.startswith("cls.") for n in vector.base.tensors)
    vector.apply(base)
    same(base, merged)


def test_in_half_precision_it_is_rounded_once(tmp_path: Path) -> None:
    base = llama().bfloat16()
    adapted(base, tmp_path, target_modules=["q_proj"])
    vector = import_peft(tmp_path, base)
    tau = vector["model.layers.0.self_attn.q_proj.weight"]
    assert tau.dtype == torch.float32 and not torch.equal(tau, tau.bfloat16().float())
    before = base.get_parameter("model.layers.0.self_attn.q_proj.weight").detach().clone()
    vector.apply(base)
    assert torch.equal(base.get_parameter("model.layers.0.self_attn.q_proj.weight"), (before.float() + tau).bfloat16())


@pytest.mark.parametrize("name", ["gpt2, also square", "embeddings", "rslora and patterns", "lora_bias"])
def test_there_and_back(name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    make, settings = SETTINGS[name]
    base = make()
    merged = adapted(base, tmp_path / "a", **settings)
    made = export_peft(import_peft(tmp_path / "a", base), tmp_path / "b", 8, model=base)
    assert made.total_lost < 1e-9 and made.rank == (6 if "patterns" in name else 3)
    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "b")
    torch.testing.assert_close(logits(model), logits(merged), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2, also square", "embeddings", "rslora and patterns", "llama"])
def test_factors_stay_factors(name: str, tmp_path: Path) -> None:
    """In the file, times a number, and in an adapter again."""
    make, settings = SETTINGS[name]
    base = make()
    adapted(base, tmp_path / "a", **settings)
    vector = import_peft(tmp_path / "a", base)
    paring.save_delta(vector, tmp_path / "a.delta.safetensors")
    paring.save_delta(vector.in_memory(), tmp_path / "dense.delta.safetensors")
    adapter = (tmp_path / "a" / "adapter_model.safetensors").stat().st_size
    stored = load_file(tmp_path / "a.delta.safetensors")
    whole = {n for n in stored if n.endswith(":values")}
    assert bool(whole) == (name == "embeddings")  # of which PEFT saves the embedding itself, too
    assert {n.rpartition(":")[2] for n in stored.keys() - whole} == {"left", "right"}
    assert sum(t.numel() for n, t in stored.items() if n not in whole) * 4 <= adapter
    loaded = paring.load_delta(tmp_path / "a.delta.safetensors", base)
    for n in vector.names:
        assert torch.equal(loaded[n], vector[n]) and torch.equal((2 * loaded)[n], 2 * vector[n])
        assert torch.equal((vector + loaded)[n], 2 * vector[n])
        kept = f"{n}:left" in stored
        assert ((2 * loaded).changes[n].factors is not None) == kept and (vector + loaded).changes[n].factors is None
    export_peft(loaded, tmp_path / "b", 8, model=base)
    again = import_peft(tmp_path / "b", base)
    for n in vector.names:
        torch.testing.assert_close(again[n], vector[n], rtol=1e-5, atol=1e-8 if f"{n}:left" in stored else 1e-6)
        if (first := vector.changes[n].factors) and (second := again.changes[n].factors):
            assert first().rank == second().rank and torch.equal(first().A, second().A)
    with_less = export_peft(loaded, tmp_path / "c", 1, model=base)
    assert with_less.rank == 1 and with_less.total_lost > 0.01


@pytest.mark.parametrize("make", [gpt2, lambda: llama(tied=True)], ids=["gpt2", "llama"])
@pytest.mark.parametrize("on_disk", [True, False])
def test_tied_weights_change_alike_or_not_at_all(make: Callable[[], nn.Module], on_disk: bool, tmp_path: Path) -> None:
    from paring.delta.diff import diff

    base = make()
    base.save_pretrained(tmp_path / "base")
    where = tmp_path / "base" if on_disk else base
    embedding = "wte" if hasattr(base, "transformer") else "embed_tokens"
    adapted(base, tmp_path / "a", target_modules=[embedding])
    with pytest.raises(DeltaError, match=rf"changes '.*{embedding}.weight' but not 'lm_head.weight', which is the same tensor"):
        import_peft(tmp_path / "a", where)
    adapted(base, tmp_path / "b", target_modules=[embedding, "lm_head"])
    with pytest.raises(DeltaError, match="differently, the same tensor in .*; save the base untied"):
        import_peft(tmp_path / "b", where)
    tuned = copy.deepcopy(base)
    tuned.lm_head.weight.data[:, 0] += 1.0
    export_peft(diff(base, tuned), tmp_path / "c", 1, model=base)
    model = copy.deepcopy(base)
    vector = import_peft(tmp_path / "c", where)
    assert len(vector) == 1
    vector.apply(model)
    same(model, tuned)


def test_of_another_base(tmp_path: Path) -> None:
    adapted(bert(), tmp_path, target_modules=["query"])
    with pytest.raises(DeltaError, match="is no adapter of the LlamaForCausalLM: it changes 'bert.encoder"):
        import_peft(tmp_path, llama())
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(DeltaError, match="adapter_config.json is no JSON"):
        import_peft(tmp_path, bert())
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no adapter_config.json in .*; expected the folder of a PEFT adapter"):
        import_peft(tmp_path, bert())


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = bert()
    base.save_pretrained(tmp_path / "base")
    merged = adapted(base, tmp_path / "a", target_modules=["query", "dense"], bias="all")
    out = tmp_path / "a.delta.safetensors"
    command = ["import", str(tmp_path / "a"), str(out), "--base", str(tmp_path / "base")]
    assert main(command) == 0
    assert capsys.readouterr().out == f"Wrote {out}: {out.stat().st_size:,} bytes; see `paring inspect {out}`\n"
    model = bert()
    paring.load_delta(out).apply(model)
    same(model, merged)
    assert main(command) == 2 and "is there already" in capsys.readouterr().err
    size = out.stat().st_size
    assert main([*command, "--values", "int8", "--group", "32", "--overwrite"]) == 0
    stored = load_file(out)  # biases in int8; factors stay as they are
    assert stored["bert.pooler.dense.weight:left"].dtype == torch.float32 and "bert.pooler.dense.bias:scales" in stored
    assert size < (tmp_path / "base" / "model.safetensors").stat().st_size / 2
