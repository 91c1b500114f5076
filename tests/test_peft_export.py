"""Deltas as LoRA adapters that PEFT itself loads: the same outputs, the energy that is lost, what cannot be carried."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import paring
from adapters import MODELS, gpt2, llama, logits, tuned
from conftest import bert, tokens
from paring import DeltaError, SliceConfig, sliced
from paring.cli.main import main
from paring.delta.diff import diff
from paring.delta.taskvector import TaskVector
from paring.neighbours.layers import Layers, kind_of
from paring.neighbours.peft_export import export_peft

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's advice on tied weights and fan_in_fan_out

QUERY = "bert.encoder.layer.0.attention.self.query.weight"


def loaded(base: nn.Module, folder: Path) -> nn.Module:
    from peft import PeftModel

    return PeftModel.from_pretrained(copy.deepcopy(base), folder)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("exact", [True, False])
def test_peft_gives_the_tuned_models_outputs(name: str, exact: bool, tmp_path: Path) -> None:
    base = MODELS[name]()
    after = tuned(base, 2)
    made = export_peft(diff(base, after, exact=exact), tmp_path / "out", 4, model=base)
    assert made.total_lost < 1e-9 and max(made.lost.values()) < 1e-9
    assert ("Do not merge it with PEFT" in (tmp_path / "out" / "README.md").read_text()) == ("tied" in name)
    weights = {n for n, p in base.named_parameters() if kind_of(base.get_submodule(n.rpartition(".")[0])) != "other"}
    assert set(made.lost) == {n for n in weights if n.endswith(".weight")}  # of tied ones, the name that state_dict has first
    model = loaded(base, tmp_path / "out")
    assert not torch.allclose(logits(base), logits(after), atol=1e-2)
    torch.testing.assert_close(logits(model), logits(after), rtol=1e-4, atol=1e-5)
    if "tied" not in name:  # PEFT would add to a tied tensor once for each of its names
        torch.testing.assert_close(logits(model.merge_and_unload()), logits(after), rtol=1e-4, atol=1e-5)


def test_what_is_lost_is_what_a_whole_svd_loses(tmp_path: Path) -> None:
    base = bert()
    after = tuned(base, 24)
    vector = diff(base, after)
    made = export_peft(vector, tmp_path / "out", 3, model=base)
    expected, whole, nearby = 0.0, 0.0, copy.deepcopy(base)
    for name in made.lost:
        U, S, V = torch.linalg.svd(vector[name].double(), full_matrices=False)
        nearby.get_parameter(name).data += ((U[:, :3] * S[:3]) @ V[:3]).float()
        lost, total = float(S[3:].square().sum()), float(S.square().sum())
        assert made.lost[name] == pytest.approx(lost / total, rel=1e-6, abs=1e-12), name
        expected, whole = expected + lost, whole + total
    assert made.total_lost == pytest.approx(expected / whole, rel=1e-6)
    assert 0.1 < made.total_lost < 1 and made.rank == 3
    torch.testing.assert_close(logits(loaded(base, tmp_path / "out")), logits(nearby), rtol=1e-4, atol=1e-5)


def test_slices_are_of_low_rank(tmp_path: Path) -> None:
    """Two windows of 3 columns are of rank 6 at most, and come through whole."""
    model = bert()
    with sliced(model, SliceConfig(rank=3, move_steps=1, train_also=()), verbose=False) as session:
        optimizer = torch.optim.SGD(session.parameters(), lr=1.0)
        for i in range(2):
            model(**tokens(seed=i)).loss.backward()
            optimizer.step()
            session.step()
            optimizer.zero_grad()
        vector = session.delta()
    made = export_peft(vector, tmp_path / "out", 6, model=bert(), allow_lost=True)
    assert made.total_lost < 1e-9 and made.rank == 6 and not made.left_out
    torch.testing.assert_close(logits(loaded(bert(), tmp_path / "out")), logits(model), rtol=1e-4, atol=1e-5)


def test_lower_ranks_are_kept_low(tmp_path: Path) -> None:
    base = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)))
    after = copy.deepcopy(base)
    after[0].weight.data[:, 1] += 1.0  # "0", which is also how "1.0" ends
    after[1][1].weight.data += torch.diag(torch.arange(1.0, 7.0))
    made = export_peft(diff(base, after), tmp_path / "out", 8, model=base)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert made.rank == 6 and config["r"] == 6 and config["rank_pattern"] == {"^0": 1} and config["target_modules"] == r"0|1\.1"
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {n: list(t.shape) for n, t in adapter.items()} == {
        "base_model.model.0.lora_A.weight": [1, 6],
        "base_model.model.0.lora_B.weight": [6, 1],
        "base_model.model.1.1.lora_A.weight": [6, 6],
        "base_model.model.1.1.lora_B.weight": [6, 6],
    }
    x = torch.randn(5, 6)
    torch.testing.assert_close(loaded(base, tmp_path / "out")(x), after(x))


def test_biases_travel_where_peft_takes_them(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    base = bert()
    after = copy.deepcopy(base)
    for block, copied in zip(base.bert.encoder.layer, after.bert.encoder.layer, strict=True):
        copied.load_state_dict(tuned(block, 2, biases=True).state_dict())
    after.bert.encoder.layer[0].output.dense.weight.data.copy_(base.bert.encoder.layer[0].output.dense.weight)  # the bias alone
    assert export_peft(diff(base, after), tmp_path / "out", 2, model=base).total_lost < 1e-9
    torch.testing.assert_close(logits(loaded(base, tmp_path / "out")), logits(after), rtol=1e-4, atol=1e-5)
    with torch.device("meta"):
        class_only = BertForSequenceClassification(BertConfig(**base.config.to_dict()))
    export_peft(diff(base, after), tmp_path / "again", 2, model=class_only)  # a class is enough, without weights
    for file in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_what_no_lora_carries_is_an_error_or_told(tmp_path: Path) -> None:
    base = gpt2()
    after = tuned(base, 2)
    after.transformer.h[0].ln_1.weight.data += 0.5
    after.transformer.h[0].attn.c_attn.bias.data += 0.25
    vector = diff(base, after)
    with pytest.raises(DeltaError) as error:
        export_peft(vector, tmp_path / "out", 2, model=base)
    assert "'transformer.h.0.ln_1.weight' (no weight of a linear layer or an embedding)" in str(error.value)
    assert "'transformer.h.0.attn.c_attn.bias' (a bias; PEFT takes them only where every module has one, and '" in str(
        error.value
    )
    assert "--allow-lost" in str(error.value) and not (tmp_path / "out").exists()
    made = export_peft(vector, tmp_path / "out", 2, model=base, allow_lost=True)
    assert set(made.left_out) == {"transformer.h.0.ln_1.weight", "transformer.h.0.attn.c_attn.bias"}
    assert all(made.lost[name] == 1.0 for name in made.left_out)
    share = (24 * 0.25 + 72 * 0.0625) / vector.norm() ** 2
    assert made.total_lost == pytest.approx(share, rel=1e-5)
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "- `transformer.h.0.ln_1.weight`: no weight" in readme and f"{100 * share:.3g} % of the energy lost" in readme


def test_a_new_head_is_saved_whole(tmp_path: Path) -> None:
    from transformers import BertModel

    start = bert()
    start.bert.save_pretrained(tmp_path / "base")
    after = tuned(start, 2)
    after.classifier.load_state_dict(nn.Linear(24, 3).state_dict())
    vector = diff(tmp_path / "base", after)
    assert vector.new == ("classifier.weight", "classifier.bias")
    made = export_peft(vector, tmp_path / "out", 4, model=start)
    assert made.modules_to_save == ("classifier",)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["classifier"]
    assert config["task_type"] == "SEQ_CLS" and config["base_model_name_or_path"] == vector.base.origin == "base"
    base = bert()  # the tuned model's class, the base's body, a head of its own
    base.classifier.reset_parameters()
    base.bert.load_state_dict(BertModel.from_pretrained(tmp_path / "base").state_dict())
    torch.testing.assert_close(logits(loaded(base, tmp_path / "out")), logits(after), rtol=1e-4, atol=1e-5)


class PixelsForSequenceClassification(nn.Module):
    """By its name PEFT would pass token ids to it; "classifier" is how the name of another of its modules ends."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.pre_classifier, self.classifier = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pre_classifier(self.body(pixels)))


def test_heads_that_peft_would_mistake(tmp_path: Path) -> None:
    base = PixelsForSequenceClassification()
    after = copy.deepcopy(base)
    after.body.weight.data += 1.0
    state = base.state_dict()
    for missing, saved in ((("classifier.",), ()), (("pre_classifier.", "classifier."), ("pre_classifier", "classifier"))):
        vector = diff({n: t for n, t in state.items() if not n.startswith(missing)}, after)
        made = export_peft(vector, tmp_path / str(len(saved)), 1, model=base, allow_lost=True)
        assert made.modules_to_save == saved
        assert set(made.left_out) == (set() if saved else {"classifier.weight", "classifier.bias"})
        assert json.loads((made.folder / "adapter_config.json").read_text())["task_type"] is None
    x = torch.randn(3, 4)
    torch.testing.assert_close(loaded(base, tmp_path / "2")(x), after(x))
    with pytest.raises(
        DeltaError, match=r"'classifier.weight' \(new, in a module that the base has, or with a name that another"
    ):
        export_peft(diff({n: t for n, t in state.items() if not n.startswith("cl")}, after), tmp_path / "x", 1, model=base)


def test_bad_input_writes_nothing(tmp_path: Path) -> None:
    base = bert()
    vector = diff(base, tuned(base, 2))
    norms = diff(base, _with_norm(base))
    cases: list[tuple[TaskVector, int, nn.Module, type[Exception], str]] = [
        (vector, 0, base, ValueError, "rank: got 0; expected 1 or more"),
        (vector, 2, llama(), DeltaError, "LlamaForCausalLM has no tensor 'bert.embeddings"),
        (vector, 2, bert(labels=4), DeltaError, r"'classifier.weight' is \[4, 24\], the delta's 'classifier.weight' \[3, 24\]"),
        (norms, 2, base, DeltaError, "changes no weight of a linear layer or an embedding"),
    ]
    for delta, rank, model, kind, text in cases:
        with pytest.raises(kind, match=text):
            export_peft(delta, tmp_path / "out", rank, model=model, allow_lost=True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="is there already"):
        export_peft(vector, tmp_path / "out", 2, model=base)
    assert not list((tmp_path / "out").iterdir())


def _with_norm(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    model.bert.encoder.layer[0].output.LayerNorm.weight.data += 1
    return model


def test_modules_by_kind() -> None:
    layers = Layers(gpt2())
    assert (
        layers.kind("transformer.h.0.attn.c_attn.weight") == "conv1d" and layers.kind("transformer.wpe.weight") == "embedding"
    )
    assert layers.kind("transformer.ln_f.weight") == "other" and layers.kind("lm_head.weight") == "linear"
    assert layers.names_of("lm_head.weight") == ("transformer.wte.weight", "lm_head.weight")
    scaled = type("Scaled", (nn.Embedding,), {"forward": lambda self, ids: 2 * nn.Embedding.forward(self, ids)})
    assert kind_of(scaled(3, 4)) == "other"  # an adapter beside it would not be scaled
    attention = nn.MultiheadAttention(8, 2)
    assert kind_of(attention.out_proj) == "other"  # never called: its weight is read


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = bert()
    base.save_pretrained(tmp_path / "base")
    after = tuned(base, 5)
    after.save_pretrained(tmp_path / "tuned")
    delta, out = tmp_path / "a.delta.safetensors", tmp_path / "adapter"
    assert main(["diff", str(tmp_path / "base"), str(tmp_path / "tuned"), str(delta)]) == 0
    assert main(["export", str(delta), str(out), "--to", "peft-lora", "--rank", "5"]) == 2
    assert "give it with --base BASE" in capsys.readouterr().err and not out.exists()
    assert main(["export", str(delta), str(out), "--rank", "5", "--base", str(tmp_path / "base")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(QUERY) and line.endswith(" %") for line in lines)
    assert f"Wrote {out}: " in lines[-1] and "rank 5" in lines[-1] and lines[-2].startswith("total")
    torch.testing.assert_close(logits(loaded(base, out)), logits(after), rtol=1e-4, atol=1e-5)
    assert paring.load_delta(delta).base.total in (out / "README.md").read_text()
    (tmp_path / "base" / "config.json").unlink()  # the delta has the tuned model's own
    command = ["export", str(delta), str(out), "--rank", "2", "--base", str(tmp_path / "base")]
    assert main([*command, "--overwrite"]) == 0
    (out / "optimizer.pt").touch()
    assert main([*command, "--overwrite"]) == 2
    assert f"{out} holds optimizer.pt, which overwriting it would remove" in capsys.readouterr().err
    (out / "optimizer.pt").unlink()
    (tmp_path / "empty").mkdir()
    assert main([*command, "--config", str(tmp_path / "empty")]) == 2
    assert "there is no config.json in" in capsys.readouterr().err
