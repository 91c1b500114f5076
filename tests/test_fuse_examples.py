"""The example configurations of mergekit's repository, word for word, on tiny models of as many layers."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from merges import tuned, whole
from paring.cli.main import main
from paring.fuse.registry import Inputs, method

EXAMPLES = Path(__file__).parent / "mergekit"
RUN = sorted(p.stem for p in EXAMPLES.glob("*.yml") if p.stem != "mega")
LAYER = re.compile(r"\.layers\.(\d+)\.")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model that the examples name, in a folder of that name."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 40, "num_attention_heads": 2, "vocab_size": 20}
    base: nn.Module = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=8, tie_word_embeddings=False)).bfloat16()
    folder = tmp_path_factory.mktemp("models")
    text = "".join(p.read_text() for p in EXAMPLES.glob("*.yml"))
    names = set(re.findall(r"^\s*-?\s*(?:base_)?model: (\S+)$", text, re.MULTILINE)) - {"gradient-slerp"}
    for seed, name in enumerate(sorted(names)):
        is_base = name in ("TheBloke/Llama-2-13B-fp16", "mistralai/Mistral-7B-v0.1")
        (base if is_base else tuned(base, seed)).save_pretrained(folder / name)
    return folder


@pytest.fixture
def merged(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    monkeypatch.chdir(models)
    assert main(["fuse", str(EXAMPLES / f"{request.param}.yml"), str(tmp_path / "out")]) == 0
    return tmp_path / "out"


@pytest.mark.parametrize("merged", RUN, indirect=True)
def test_it_runs_and_loads(merged: Path) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(merged)
    assert model(torch.arange(8)[None]).logits.isfinite().all()


def gradient(values: list[float], name: str, num_layers: int = 40) -> float:
    """What a list of values is in a tensor's layer; outside of the layers the first."""
    found = LAYER.search(name)
    at = int(found[1]) / (num_layers - 1) if found else 0.0
    return float(np.interp(at, np.linspace(0, 1, len(values)), values))


@pytest.mark.parametrize("merged", ["gradient-slerp"], indirect=True)
def test_gradient_slerp(models: Path, merged: Path) -> None:
    first, second = whole(models / "psmathur/orca_mini_v3_13b"), whole(models / "garage-bAInd/Platypus2-13B")
    for name, tensor in whole(merged).items():
        lists = {"self_attn": [0, 0.5, 0.3, 0.7, 1], "mlp": [1, 0.5, 0.7, 0.3, 0]}
        t = next((gradient(v, name) for k, v in lists.items() if k in name), 0.5)
        a, b = first[name].double().view(-1), second[name].double().view(-1)
        theta = torch.acos((a @ b / a.norm() / b.norm()).clamp(-1, 1))
        expected = (1 - t) * a + t * b
        if theta.cos() < 0.9995:
            expected = (torch.sin((1 - t) * theta) * a + torch.sin(t * theta) * b) / torch.sin(theta)
        torch.testing.assert_close(tensor.double().view(-1), expected, rtol=2e-3, atol=2e-4)
        assert tensor.dtype == torch.float16


@pytest.mark.parametrize("merged", ["ties"], indirect=True)
def test_ties_with_gradients(models: Path, merged: Path) -> None:
    names = ("psmathur/orca_mini_v3_13b", "garage-bAInd/Platypus2-13B", "WizardLM/WizardMath-13B-V1.0")
    base, *three = (whole(models / n) for n in ("TheBloke/Llama-2-13B-fp16", *names))
    how = method("ties")
    for name, tensor in whole(merged).items():
        density = (gradient([1, 0.7, 0.1], name), 0.5, 0.33)
        weight = (1.0, gradient([0, 0.3, 0.7, 1], name), 0.5 if "mlp" in name else 0.0)
        settings = how.resolve({"normalize": True}, [{"weight": w, "density": d} for w, d in zip(weight, density, strict=True)])
        inputs = Inputs(name, tuple(m[name] for m in three), base[name], settings.parameters, settings.per_model)
        torch.testing.assert_close(tensor.float(), how(inputs).half().float(), rtol=0, atol=0)


@pytest.mark.parametrize("merged", ["orcamini-platy-44layer"], indirect=True)
def test_forty_four_layers(models: Path, merged: Path) -> None:
    first, second, out = (
        whole(models / "psmathur/orca_mini_v3_13b"),
        whole(models / "garage-bAInd/Platypus2-13B"),
        whole(merged),
    )

    def source(name: str) -> Tensor:
        found = LAYER.search(name)
        if not found:
            return (first if "embed" in name else second)[name]
        layer = int(found[1])
        return first[name] if layer < 24 else second[LAYER.sub(f".layers.{layer - 4}.", name)]

    assert sum("layers.43." in name for name in out) == 9 and not any("layers.44." in name for name in out)
    assert all(torch.equal(tensor, source(name).half()) for name, tensor in out.items())


def test_several_documents_are_another_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuse", str(EXAMPLES / "mega.yml"), str(tmp_path / "out")]) == 2
    assert "mega.yml, line 19: a second document, which mergekit-multi takes, is not supported" in capsys.readouterr().err
