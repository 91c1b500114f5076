"""Models with several towers, with quantised weights, with counters: what a mean is taken of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from merges import configure, edit, family, tuned, weighted, whole, write
from paring import DeltaError
from paring.fuse.engine import fuse
from test_fuse_refused import refused

TEXT, VISION = "text_model.encoder.layers.", "vision_model.encoder.layers."


def clip(text: int = 2, vision: int = 3) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    words = {**sizes, "num_hidden_layers": text, "vocab_size": 40, "max_position_embeddings": 8}
    images = {**sizes, "num_hidden_layers": vision, "image_size": 8, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=words, vision_config=images, projection_dim=8))


def test_a_gradient_runs_over_each_tower(tmp_path: Path) -> None:
    paths = family(tmp_path, base=clip())[1:]
    weights = ([1.0, 0.0], [0.0, 1.0])
    models = [{"model": p, "parameters": {"weight": w}} for p, w in zip(paths, weights, strict=True)]
    fuse(write(tmp_path, {"merge_method": "linear", "models": models}), tmp_path / "out")
    got, first, last = whole(tmp_path / "out"), whole(paths[0]), whole(paths[1])
    for tower, top in ((TEXT, 1), (VISION, 2)):
        name = f"{tower}{{}}.mlp.fc1.weight"
        torch.testing.assert_close(got[name.format(0)], first[name.format(0)])
        torch.testing.assert_close(got[name.format(top)], last[name.format(top)])
    middle = f"{VISION}1.mlp.fc1.weight"
    torch.testing.assert_close(got[middle], (first[middle] + last[middle]) / 2)


def test_layers_of_two_towers_are_not_put_together(tmp_path: Path) -> None:
    path = family(tmp_path, 0, base=clip())[0]
    slices = [{"sources": [{"model": path, "layer_range": r}]} for r in ([0, 2], [1, 3])]
    config = {"merge_method": "passthrough", "slices": slices}
    refused(
        tmp_path,
        config,
        r"base/model.safetensors has 2 stacks \(text_model.encoder.layers., vision_model.encoder.layers.\); slices",
    )


def test_the_depth_of_a_nested_configuration_is_changed(tmp_path: Path) -> None:
    """Of a vision tower alone, as a checkpoint whose configuration nests it."""
    path = family(tmp_path, 0, base=clip())[0]
    edit(path, **{name.replace(".", "__"): None for name in whole(path) if not name.startswith("vision_model")})
    slices = [{"sources": [{"model": path, "layer_range": r}]} for r in ([0, 2], [1, 3])]
    fuse(write(tmp_path, {"merge_method": "passthrough", "slices": slices}), tmp_path / "out")
    from transformers import CLIPConfig

    found = CLIPConfig.from_pretrained(tmp_path / "out")
    assert (found.vision_config.num_hidden_layers, found.text_config.num_hidden_layers) == (4, 2)


def fp8(folder: Path, **more: Any) -> str:
    torch.manual_seed(0)
    codes = torch.randn(8, 8).to(torch.float8_e4m3fn)
    tensors = {"layers.0.up.weight": codes, "layers.0.norm.weight": torch.ones(8)} | more
    return save(folder, tensors)


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> str:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return str(folder)


def test_codes_are_not_averaged(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)
    configure(paths[2], quantization_config={"quant_method": "gptq", "bits": 4})
    refused(
        tmp_path,
        weighted(paths),
        r"tuned2/model.safetensors has a quantization_config \(gptq\) in its configuration: its tensors are codes",
    )
    scaled = [fp8(tmp_path / f"fp8-{i}", **{"layers.0.up.weight_scale_inv": torch.ones(1, 1)}) for i in range(2)]
    refused(tmp_path, weighted([scaled[0], *scaled]), r"fp8-0/model.safetensors has the tensor 'layers.0.up.weight_scale_inv'")
    copied = {"merge_method": "passthrough", "models": [{"model": scaled[0]}]}
    fuse(write(tmp_path, copied), tmp_path / "out")
    assert torch.equal(whole(tmp_path / "out")["layers.0.up.weight"].float(), whole(scaled[0])["layers.0.up.weight"].float())


def test_eight_bit_floats_beside_others_need_a_type(tmp_path: Path) -> None:
    plain = fp8(tmp_path / "plain")
    tensors = whole(plain)
    wide = save(tmp_path / "wide", {name: t.float() for name, t in tensors.items()})
    models = [{"model": p, "parameters": {"weight": 0.5}} for p in (plain, wide)]
    config = {"merge_method": "linear", "models": models}
    refused(
        tmp_path, config, r"the models are float32 and float8_e4m3fn|the models are float8_e4m3fn and float32, which no type"
    )
    fuse(write(tmp_path, config | {"dtype": "bfloat16"}), tmp_path / "out")
    got = whole(tmp_path / "out")["layers.0.up.weight"]
    assert torch.equal(got, tensors["layers.0.up.weight"].float().bfloat16())


def test_counters_are_one_models(tmp_path: Path) -> None:
    base, paths = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), []
    for i in range(3):
        state = tuned(base, i).state_dict()
        paths.append(save(tmp_path / f"m{i}", state | {"1.num_batches_tracked": torch.tensor(10 * i + 5)}))
    fuse(write(tmp_path, weighted(paths)), tmp_path / "out")
    assert int(whole(tmp_path / "out")["1.num_batches_tracked"]) == 5


def test_a_width_that_is_the_vocabularys_size_makes_no_vocabulary(tmp_path: Path) -> None:
    from test_fuse_tokens import WORDS
    from test_fuse_tokens import save as with_tokenizer

    words = {"base": WORDS[:8], "one": [*WORDS[:6], "zz"]}
    paths = [with_tokenizer(tmp_path / name, of, [], seed=i, rows=8) for i, (name, of) in enumerate(words.items())]
    for path in paths:
        assert whole(path)["model.norm.weight"].shape == (8,)  # the model is 8 wide, and has 8 words
    config = weighted(paths, weight=1.0) | {"tokenizer_source": "base"}
    fuse(write(tmp_path, config), tmp_path / "out")
    got, one = whole(tmp_path / "out"), whole(paths[1])
    for name in ("model.norm.weight", "model.layers.0.self_attn.q_proj.weight"):
        torch.testing.assert_close(got[name], one[name])
    table = "model.embed_tokens.weight"
    torch.testing.assert_close(got[table][3], one[table][3])
    assert not torch.allclose(got[table][6], one[table][6])  # another word


def test_a_missing_weight_names_the_model(tmp_path: Path) -> None:
    paths = family(tmp_path)
    config = weighted(paths)
    del config["models"][1]["parameters"]
    config["models"] = [{"model": paths[0]}, *config["models"]]
    refused(tmp_path, config, r"line 8: .*task_arithmetic: .*tuned2: no weight; expected one for each model")


def test_an_adapter_that_is_not_there(tmp_path: Path) -> None:
    path = family(tmp_path, 0)[0]
    config = {"merge_method": "linear", "models": [{"model": f"{path}+{tmp_path}/gone", "parameters": {"weight": 1}}]}
    with pytest.raises((FileNotFoundError, DeltaError), match="gone"):
        fuse(write(tmp_path, config), tmp_path / "out")


def test_a_filter_that_matches_nothing_shows_a_layers_name(tmp_path: Path) -> None:
    paths = family(tmp_path)
    config = weighted(paths, weight=[{"filter": "mpl", "value": 1}, {"value": 0}])
    refused(tmp_path, config, r"names are such as 'model\.layers\.0\.")
