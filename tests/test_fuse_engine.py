"""``paring.fuse.engine``: what comes out of a merge, for whatever goes in."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

import paring
from adapters import adapted, gpt2, llama
from conftest import assert_same_bits, bert, tokens
from merges import configure, content, edit, family, tuned, weighted, whole, write
from paring.cli.main import main
from paring.delta.checkpoint.fingerprint import fingerprint, total
from paring.delta.checkpoint.read import open_checkpoint
from paring.fuse.engine import fuse
from paring.fuse.models import Read, Tuned
from paring.fuse.output import hidden
from paring.fuse.registry import Inputs, method


def by_hand(name: str, base: Tensor | None, models: list[Tensor], weights: list[float]) -> Tensor:
    """Weighted sums in fp64."""
    if name == "linear":
        return sum(w * m.double() for w, m in zip(weights, models, strict=True)) / sum(weights)
    assert base is not None
    return base.double() + sum(w * (m.double() - base.double()) for w, m in zip(weights, models, strict=True))


def test_whole_models(tmp_path: Path) -> None:
    paths = family(tmp_path, 3)
    fused = fuse(write(tmp_path, weighted(paths)), tmp_path / "out")
    base, *models = map(whole, paths)
    out = whole(tmp_path / "out")
    assert out.keys() == base.keys() and fused.kept == 0
    for name, tensor in out.items():
        expected = by_hand("task_arithmetic", base[name], [m[name] for m in models], [0.5, 0.6, 0.7])
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
    model = type(llama()).from_pretrained(tmp_path / "out")
    assert model(tokens()["input_ids"]).logits.isfinite().all()
    assert {p.name for p in fused.files} == set(content(tmp_path / "out"))


def test_the_output_has_the_bases_type_or_the_one_asked_for(tmp_path: Path) -> None:
    paths = family(tmp_path, 2, llama().bfloat16())
    type(llama()).from_pretrained(paths[1]).half().save_pretrained(paths[1])
    config = weighted(paths)
    fuse(write(tmp_path, config), tmp_path / "a")
    assert {t.dtype for t in whole(tmp_path / "a").values()} == {torch.bfloat16}
    fuse(write(tmp_path, config | {"dtype": "float16"}), tmp_path / "b")
    assert {t.dtype for t in whole(tmp_path / "b").values()} == {torch.float16}
    fuse(write(tmp_path, config | {"dtype": "float16", "out_dtype": "float32"}), tmp_path / "c")
    assert {t.dtype for t in whole(tmp_path / "c").values()} == {torch.float32}
    assert json.loads((tmp_path / "c" / "config.json").read_text())["dtype"] == "float32"
    exact = whole(tmp_path / "c")
    for out, dtype in (("a", torch.bfloat16), ("b", torch.float16)):  # fp32 arithmetic, rounded once
        assert all(torch.equal(t, exact[n].to(dtype)) for n, t in whole(tmp_path / out).items())
    linear = {"merge_method": "linear", "models": config["models"]}
    fuse(write(tmp_path, linear), tmp_path / "d")  # without a base: the type that holds both
    assert {t.dtype for t in whole(tmp_path / "d").values()} == {torch.float32}


def test_inputs_in_shards_and_output_in_shards(tmp_path: Path) -> None:
    one, many = family(tmp_path / "1", max_shard_size="5GB"), family(tmp_path / "2", max_shard_size="10KB")
    fuse(write(tmp_path, weighted(one)), tmp_path / "a")
    fuse(write(tmp_path, weighted(many)), tmp_path / "b", shard_bytes=10_000)
    assert len(list(Path(many[0]).glob("*.safetensors"))) > 2 < len(list((tmp_path / "b").glob("*.safetensors")))
    assert_same_bits(dict(sorted(whole(tmp_path / "b").items())), dict(sorted(whole(tmp_path / "a").items())))
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == whole(tmp_path / "a").keys()
    type(llama()).from_pretrained(tmp_path / "b")


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare_ties", "linear"])
def test_same_inputs_same_bytes(tmp_path: Path, name: str) -> None:
    """In any process, with any number of threads, wherever the models lie; every file."""
    paths = family(tmp_path, 3)
    relative = [os.path.relpath(p, tmp_path) for p in paths]
    config = write(tmp_path, weighted(relative, name) | ({} if name == "linear" else {"seed": 3}))
    code = "import sys; from paring.cli.main import main; sys.exit(main(sys.argv[1:]))"
    for i, threads in enumerate(("1", "2", "7")):
        command = [sys.executable, "-c", code, "fuse", str(config), str(tmp_path / f"out{i}"), "--threads", threads]
        subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | {"PYTHONHASHSEED": str(i)})
    assert content(tmp_path / "out0") == content(tmp_path / "out1") == content(tmp_path / "out2")


@pytest.mark.filterwarnings("ignore")  # PEFT's own
@pytest.mark.parametrize(("name", "scope"), [("ties", "global"), ("della", "tensor"), ("sce", "global")])
def test_same_inputs_same_bytes_of_deltas_and_adapters(tmp_path: Path, name: str, scope: str) -> None:
    """Beside checkpoints; here and in another process, with one thread and with several."""
    base = llama()
    paths = family(tmp_path, 2, base)
    paring.save_delta(paring.diff(paths[0], paths[2]), tmp_path / "two.delta.safetensors")
    adapted(base, tmp_path / "adapter", target_modules=["q_proj"])
    own = {"select_topk": 0.3} if name == "sce" else {"density": 0.4, "weight": 0.5}
    models = [
        {"model": os.path.relpath(p, tmp_path)} for p in (paths[1], tmp_path / "two.delta.safetensors", tmp_path / "adapter")
    ]
    asked = {"merge_method": name, "base_model": "base", "scope": scope, "models": models, "parameters": own}
    config = write(tmp_path, asked)
    code = "import os, sys; os.chdir(sys.argv[1]); from paring.cli.main import main; sys.exit(main(sys.argv[2:]))"
    command = [sys.executable, "-c", code, str(tmp_path), "fuse", str(config), "out0", "--threads", "1"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "5"})
    with contextlib.chdir(tmp_path):
        fuse(config, "out1", threads=3)
    assert content(tmp_path / "out0") == content(tmp_path / "out1")


def test_threads_are_put_back(tmp_path: Path) -> None:
    paths = family(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        fuse(write(tmp_path, weighted(paths)), tmp_path / "out")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_checkpoints_deltas_and_adapters_mixed(tmp_path: Path) -> None:
    """A delta or an adapter merges as the checkpoint that it stands for."""
    torch.manual_seed(1)
    base = llama()
    paths = family(tmp_path, 2, base)
    merged = adapted(base, tmp_path / "adapter", target_modules=["q_proj", "up_proj"])
    merged.save_pretrained(tmp_path / "merged")
    delta = tmp_path / "two.delta.safetensors"
    paring.save_delta(paring.diff(paths[0], paths[2]), delta)
    rounded = tmp_path / "rounded.delta.safetensors"
    paring.save_delta(paring.diff(paths[0], paths[2], exact=False), rounded, values="fp32")
    plain = [paths[0], paths[1], paths[2], str(tmp_path / "merged")]
    fuse(write(tmp_path, weighted(plain)), tmp_path / "plain")
    fuse(write(tmp_path, weighted([paths[0], paths[1], str(delta), str(tmp_path / "adapter")])), tmp_path / "mixed")
    fuse(write(tmp_path, weighted([paths[0], paths[1], str(rounded), str(tmp_path / "adapter")])), tmp_path / "real")
    for name, tensor in whole(tmp_path / "plain").items():
        for other in ("mixed", "real"):
            torch.testing.assert_close(whole(tmp_path / other)[name], tensor, rtol=1e-5, atol=1e-6)
    record = json.loads((tmp_path / "mixed" / "paring-fuse.json").read_text())
    assert [m["kind"] for m in record["models"]] == ["checkpoint", "checkpoint", "delta", "adapter"]
    type(base).from_pretrained(tmp_path / "mixed")


def test_an_exact_delta_is_bitwise_its_fine_tune(tmp_path: Path) -> None:
    paths = family(tmp_path, 2, llama().bfloat16())
    delta = tmp_path / "two.delta"
    paring.save_delta(paring.diff(paths[0], paths[2]), delta, shard_bytes=10_000)
    for name in ("task_arithmetic", "ties"):
        fuse(write(tmp_path, weighted(paths, name)), tmp_path / f"{name}-plain")
        fuse(write(tmp_path, weighted([*paths[:2], str(delta)], name)), tmp_path / f"{name}-delta")
        assert_same_bits(whole(tmp_path / f"{name}-plain"), whole(tmp_path / f"{name}-delta"))


def test_the_folder_of_a_tuning(tmp_path: Path) -> None:
    """``paring tune`` leaves a delta in a folder of its own."""
    paths = family(tmp_path, 2)
    (tmp_path / "run").mkdir()
    paring.save_delta(paring.diff(paths[0], paths[2]), tmp_path / "run" / "model.delta.safetensors")
    fuse(write(tmp_path, weighted(paths)), tmp_path / "plain")
    fuse(write(tmp_path, weighted([*paths[:2], str(tmp_path / "run")])), tmp_path / "out")
    assert_same_bits(whole(tmp_path / "out"), whole(tmp_path / "plain"))


def test_a_rounded_delta_counts_in_full(tmp_path: Path) -> None:
    """Differences below the weights' own precision are not lost before they are added up."""
    base = {
        "w.weight": torch.full((4, 8), 1.0, dtype=torch.bfloat16)
    }  # the next number is 1.0078: a sixth of the way rounds away
    paths = []
    save_file(base, tmp_path / "base.safetensors")
    full = paring.diff(base, {n: torch.full_like(t, 1.0078125) for n, t in base.items()}, exact=False)
    for i in range(6):
        paths.append(str(tmp_path / f"{i}.delta.safetensors"))
        paring.save_delta(full / 6, paths[-1])
    models = [{"model": p, "parameters": {"weight": 1.0}} for p in paths]
    config = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base.safetensors"), "models": models}
    fuse(write(tmp_path, config), tmp_path / "out")
    assert torch.equal(whole(tmp_path / "out")["w.weight"], torch.full((4, 8), 1.0078125, dtype=torch.bfloat16))


@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_an_adapter_by_a_plus_sign(tmp_path: Path) -> None:
    base = llama()
    paths = family(tmp_path / "c++", 1, base)
    merged = adapted(base, tmp_path / "c++" / "adapter", target_modules=["q_proj"])
    joined = f"{paths[0]}+{tmp_path / 'c++' / 'adapter'}"
    models = [{"model": m, "parameters": {"weight": 1.0}} for m in (joined, paths[1])]
    fuse(write(tmp_path, {"merge_method": "linear", "models": models}), tmp_path / "out")
    ours, tune, state = whole(tmp_path / "out"), whole(paths[1]), merged.state_dict()
    assert all(torch.allclose(t, (state[n] + tune[n]) / 2, atol=1e-6) for n, t in ours.items())


def test_gradients_over_the_layers_and_filters(tmp_path: Path) -> None:
    base = llama()
    base.config.num_hidden_layers = 2
    paths = family(tmp_path, 1, base)
    weight = [{"filter": "self_attn", "value": [0.25, 0.75]}, {"filter": "mlp", "value": [1, 0]}, {"value": 0.5}]
    models = [{"model": paths[1], "parameters": {"weight": weight}}]
    config = {"merge_method": "task_arithmetic", "base_model": paths[0], "models": models}
    fuse(write(tmp_path, config), tmp_path / "out")
    before, after, out = (whole(p) for p in (paths[0], paths[1], tmp_path / "out"))
    expected = {"layers.0.self_attn": 0.25, "layers.1.self_attn": 0.75, "layers.0.mlp": 1.0, "layers.1.mlp": 0.0}
    for name, tensor in out.items():
        w = next((v for key, v in expected.items() if key in name), 0.5)
        torch.testing.assert_close(tensor, before[name] + w * (after[name] - before[name]), rtol=1e-6, atol=1e-7)


def test_what_stands_nearer_to_the_model_counts_more(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)
    sources = [{"model": p, "layer_range": [0, 2]} for p in paths]
    sources[1]["parameters"] = {"weight": [{"filter": "mlp", "value": 1.0}]}
    config = {
        "merge_method": "task_arithmetic",
        "base_model": paths[0],
        "slices": [{"sources": sources, "parameters": {"weight": [{"filter": "q_proj", "value": 0.5}]}}],
        "parameters": {"weight": 0.25},
    }
    fuse(write(tmp_path, config), tmp_path / "out")
    base, one, two, out = (whole(p) for p in (*paths, tmp_path / "out"))
    for name in out:
        others = 0.5 if "q_proj" in name else 0.25
        expected = (
            base[name] + (1.0 if "mlp" in name else others) * (one[name] - base[name]) + others * (two[name] - base[name])
        )
        torch.testing.assert_close(out[name], expected, rtol=1e-6, atol=1e-7)


def test_runs_of_layers(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)
    slices: list[dict[str, Any]] = [
        {"sources": [{"model": paths[1], "layer_range": [0, 2]}]},
        {"sources": [{"model": paths[2], "layer_range": [1, 2], "parameters": {"scale": 0.5}}]},
    ]
    fuse(write(tmp_path, {"merge_method": "passthrough", "slices": slices}), tmp_path / "out")
    first, second, out = whole(paths[1]), whole(paths[2]), whole(tmp_path / "out")
    assert_same_bits({n: out[n] for n in first if ".layers." in n}, {n: t for n, t in first.items() if ".layers." in n})
    for name, tensor in second.items():
        if ".layers.1." in name:
            assert torch.equal(out[name.replace(".layers.1.", ".layers.2.")], tensor * 0.5)
    assert torch.equal(out["model.embed_tokens.weight"], first["model.embed_tokens.weight"])  # before the blocks: the first's
    assert torch.equal(out["lm_head.weight"], second["lm_head.weight"] * 0.5)  # after them: the last's, with its settings
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 3
    model = type(llama()).from_pretrained(tmp_path / "out")
    assert len(model.model.layers) == 3


def test_runs_of_layers_are_merged(tmp_path: Path) -> None:
    paths = family(tmp_path, 1)
    sources = [{"model": p, "layer_range": [i, i + 1]} for i, p in enumerate(paths)]
    sources[1]["parameters"] = {"weight": 0.25}
    config = {"merge_method": "task_arithmetic", "base_model": paths[0], "slices": [{"sources": sources}]}
    fuse(write(tmp_path, config), tmp_path / "out")
    base, other, out = whole(paths[0]), whole(paths[1]), whole(tmp_path / "out")
    name = "model.layers.0.mlp.up_proj.weight"
    there = other[name.replace("0", "1")]
    torch.testing.assert_close(out[name], base[name] + 0.25 * (there - base[name]))
    assert "model.layers.1.mlp.up_proj.weight" not in out


def test_global_thresholds(tmp_path: Path) -> None:
    """With one density over all tensors, a tensor that hardly changed keeps hardly anything."""
    paths = family(tmp_path, 1)
    before, after = whole(paths[0]), whole(paths[1])
    quiet = "model.layers.0.mlp.up_proj.weight"
    edit(paths[1], **{quiet.replace(".", "__"): before[quiet] + (after[quiet] - before[quiet]) * 1e-3})
    after = whole(paths[1])
    shares = {}
    for scope in ("tensor", "global"):
        fuse(write(tmp_path, weighted(paths, "ties", density=0.2) | {"scope": scope}), tmp_path / scope)
        changed = {n: int((t != before[n]).sum()) for n, t in whole(tmp_path / scope).items()}
        shares[scope] = changed[quiet] / before[quiet].numel()
        assert sum(changed.values()) == pytest.approx(0.2 * sum(t.numel() for t in before.values()), rel=0.02)
    assert shares["tensor"] == pytest.approx(0.2, abs=0.01) and shares["global"] == 0
    tau = torch.cat([(after[n] - before[n]).abs().view(-1) for n in before])
    least = tau.sort(descending=True).values[tau.numel() // 5 - 1]
    out = whole(tmp_path / "global")
    for name in before:
        assert torch.equal(out[name] != before[name], (after[name] - before[name]).abs() >= least)


@pytest.mark.parametrize("name", ["ties", "breadcrumbs", "pcb", "sce"])
def test_a_global_threshold_decodes_what_it_ranks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of deltas each tensor is decoded for its own model's ranking, not for every one; the output is that of checkpoints."""
    paths = family(tmp_path, 4)
    deltas = [paths[0]]
    for path in paths[1:]:
        deltas.append(str(tmp_path / f"{Path(path).name}.delta.safetensors"))
        paring.save_delta(paring.diff(paths[0], path), deltas[-1])
    parameters: dict[str, Any] = {"select_topk": 0.3} if name == "sce" else {"density": 0.3}
    parameters |= {"weight": 0.5} if name in ("ties", "breadcrumbs") else {}
    read = Tuned.read
    for out, models in (("plain", paths), ("deltas", deltas)):
        asked = {"merge_method": name, "base_model": models[0], "scope": "global", "parameters": parameters}
        reads: dict[tuple[str, str], int] = {}

        def counting(model: Tuned, tensor: str, reads: dict[tuple[str, str], int] = reads) -> Read:
            key = model.called, tensor
            reads[key] = reads.get(key, 0) + 1
            return read(model, tensor)

        with monkeypatch.context() as patched:
            patched.setattr(Tuned, "read", counting)
            fuse(write(tmp_path, asked | {"models": [{"model": m} for m in models[1:]]}), tmp_path / out)
    assert_same_bits(whole(tmp_path / "deltas"), whole(tmp_path / "plain"))
    # two readings that count, one for ties, the merge itself; sce counts what is not zero besides, pcb ranks a second time by
    # scores, to which every model adds
    most = {"ties": 4, "breadcrumbs": 4, "sce": 5, "pcb": 4 + 3 * 4}[name]
    assert len(reads) == 4 * len(whole(paths[0])) and set(reads.values()) <= set(range(1, most + 1))


def test_a_prefix_more_or_less(tmp_path: Path) -> None:
    """A body saved without the name it has in a model with a head."""
    base = bert()
    base.bert.save_pretrained(tmp_path / "base")
    paths = [str(tmp_path / "base")]
    for i in (1, 2):
        tuned(base.bert, i).save_pretrained(tmp_path / f"plain{i}")
        edit_prefix(tmp_path / f"plain{i}", tmp_path / f"long{i}")
        paths.append(str(tmp_path / f"long{i}"))
    fuse(write(tmp_path, weighted([paths[0], str(tmp_path / "plain1"), str(tmp_path / "plain2")])), tmp_path / "a")
    fuse(write(tmp_path, weighted(paths)), tmp_path / "b")
    assert_same_bits(whole(tmp_path / "a"), whole(tmp_path / "b"))


def edit_prefix(source: Path, target: Path) -> None:
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file({f"bert.{n}": t for n, t in whole(source).items()}, target / "model.safetensors", {"format": "pt"})


def test_a_tied_head_that_one_model_saved(tmp_path: Path) -> None:
    """What is tied may be stored once or twice; the output has it as the base does."""
    paths = family(tmp_path, 2, gpt2())
    assert "lm_head.weight" not in whole(paths[0])
    edit(paths[1], lm_head__weight=whole(paths[1])["transformer.wte.weight"].clone())
    fuse(write(tmp_path, weighted(paths)), tmp_path / "a")
    assert "lm_head.weight" not in whole(tmp_path / "a")
    edit(paths[0], lm_head__weight=whole(paths[0])["transformer.wte.weight"].clone())
    fuse(write(tmp_path, weighted(paths)), tmp_path / "b")
    out = whole(tmp_path / "b")
    assert torch.equal(out["lm_head.weight"], out["transformer.wte.weight"])
    edit(paths[1], lm_head__weight=whole(paths[1])["transformer.wte.weight"] + 1)
    edit(paths[0], lm_head__weight=None)
    with pytest.raises(paring.DeltaError, match=r"tuned1.* has a 'lm_head.weight' of its own, which .*base.* ties to"):
        fuse(write(tmp_path, weighted(paths)), tmp_path / "c")


def test_tied_weights_in_a_torch_file(tmp_path: Path) -> None:
    paths = []
    for i in range(3):
        shared = torch.randn(6, 4, generator=torch.Generator().manual_seed(i))
        paths.append(str(tmp_path / f"{i}.pt"))
        torch.save({"embed.weight": shared, "head.weight": shared, "norm": torch.ones(4)}, paths[-1])
    fuse(write(tmp_path, weighted(paths, "dare_linear", density=0.5)), tmp_path / "a")
    out = whole(tmp_path / "a")
    assert torch.equal(out["embed.weight"], out["head.weight"])
    torch.save({"embed.weight": shared, "head.weight": shared + 1, "norm": torch.ones(4)}, paths[-1])
    with pytest.raises(
        paring.DeltaError, match=r"'embed.weight' and 'head.weight' are one tensor in .*0\.pt and differ in .*2\.pt"
    ):
        fuse(write(tmp_path, weighted(paths)), tmp_path / "b")


def test_integer_buffers(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)
    numbers = torch.arange(7)
    for path in paths[:2]:  # the third was saved by a newer version, which leaves them out
        edit(path, model__position_ids=numbers)
    fuse(write(tmp_path, weighted(paths)), tmp_path / "a")
    assert torch.equal(whole(tmp_path / "a")["model.position_ids"], numbers)
    edit(paths[1], model__position_ids=numbers + 1)
    with pytest.raises(ValueError, match=r"'model.position_ids': torch.int64 values that differ between .*base.* and .*tuned1"):
        fuse(write(tmp_path, weighted(paths)), tmp_path / "b")
    assert not (tmp_path / "b").exists()


FREQUENCIES = "model.layers.0.self_attn.rotary_emb.inv_freq"


@pytest.mark.parametrize("old", [0, 1])
def test_float_buffers_that_new_versions_do_not_save(tmp_path: Path, capsys: pytest.CaptureFixture[str], old: int) -> None:
    """They are the base's where it has them, in its type, and left out where it has none."""
    paths = family(tmp_path, 2, llama().bfloat16())
    values = torch.rand(3)
    edit(paths[old], **{FREQUENCIES.replace(".", "__"): values})
    config = str(write(tmp_path, weighted(paths)))
    assert main(["fuse", config, str(tmp_path / "out")]) == 0
    said = f"1 buffer of floats ('{FREQUENCIES}' …) as in {paths[0]}/model.safetensors, not merged"
    assert (said in capsys.readouterr().out) == (old == 0)
    assert main(["fuse", config, str(tmp_path / "other"), "--dry-run"]) == 0
    assert (said in capsys.readouterr().out) == (old == 0)
    out = whole(tmp_path / "out")
    assert torch.equal(out[FREQUENCIES], values) if old == 0 else FREQUENCIES not in out


def test_the_masks_of_old_gpt2(tmp_path: Path) -> None:
    paths = family(tmp_path, 1, gpt2())
    edit(
        paths[0], transformer__h__0__attn__bias=torch.ones(1, 1, 5, 5), transformer__h__0__attn__masked_bias=torch.tensor(-1e4)
    )
    fuse(write(tmp_path, weighted(paths)), tmp_path / "out")
    assert torch.equal(whole(tmp_path / "out")["transformer.h.0.attn.masked_bias"], torch.tensor(-1e4))


def test_one_type_for_all_of_the_output(tmp_path: Path) -> None:
    """Without a base it holds those of all models, of every slice too; and config.json names it, by the key that it has."""
    paths = family(tmp_path, 2, llama().bfloat16())
    type(llama()).from_pretrained(paths[1]).float().save_pretrained(paths[1])

    def types(out: str) -> tuple[set[torch.dtype], str]:
        found = json.loads((tmp_path / out / "config.json").read_text())
        return {t.dtype for t in whole(tmp_path / out).values()}, found.get("dtype", found.get("torch_dtype"))

    weights = [{"model": p, "parameters": {"weight": 1}} for p in reversed(paths[1:])]
    fuse(write(tmp_path, {"merge_method": "linear", "models": weights}), tmp_path / "a")
    assert types("a") == ({torch.float32}, "float32")
    slices = [{"sources": [{"model": p, "layer_range": [0, 2]}]} for p in reversed(paths[1:])]
    fuse(write(tmp_path, {"merge_method": "passthrough", "slices": slices}), tmp_path / "b")
    assert types("b") == ({torch.float32}, "float32")
    configure(paths[0], dtype="float32", torch_dtype="float16")  # not what its tensors are
    fuse(write(tmp_path, weighted(paths)), tmp_path / "c")
    assert types("c") == ({torch.bfloat16}, "bfloat16")
    path = Path(paths[0]) / "config.json"
    path.write_text(path.read_text().replace('"dtype"', '"was"'))
    fuse(write(tmp_path, weighted(paths)), tmp_path / "d")
    found = json.loads((tmp_path / "d" / "config.json").read_text())
    assert found["torch_dtype"] == "bfloat16" and "dtype" not in found


def test_a_tensor_of_a_wider_type_keeps_it(tmp_path: Path) -> None:
    """Where all models have it so: a router in fp32, say."""
    paths = family(tmp_path, 2, llama().bfloat16())
    for path in paths:
        edit(path, model__norm__weight=whole(path)["model.norm.weight"].float())
    fuse(write(tmp_path, {"merge_method": "linear", "models": weighted(paths)["models"]}), tmp_path / "out")
    found = {name: t.dtype for name, t in whole(tmp_path / "out").items()}
    assert found.pop("model.norm.weight") == torch.float32 and set(found.values()) == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_passing_a_model_through_is_bitwise(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        paths = family(tmp_path / str(dtype), 1, llama().to(dtype))
        fuse(write(tmp_path, {"merge_method": "passthrough", "models": [{"model": paths[1]}]}), tmp_path / f"out-{dtype}")
        assert_same_bits(whole(tmp_path / f"out-{dtype}"), whole(paths[1]))


def test_what_is_written_beside_the_weights(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)
    (Path(paths[0]) / "tokenizer.json").write_text("{}")
    (Path(paths[1]) / "tokenizer.json").write_text("not this one")
    config = write(tmp_path, weighted(paths, "dare_ties", density=0.5) | {"seed": 5})
    fuse(config, tmp_path / "out")
    out = content(tmp_path / "out")
    assert out["tokenizer.json"] == b"{}" and out["paring-fuse.yml"] == config.read_bytes()
    assert sorted(out) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "paring-fuse.json", "paring-fuse.yml",
        "tokenizer.json",
    ]  # fmt: skip
    record = json.loads(out["paring-fuse.json"])
    for entry, path in zip([*record["models"], record["output"]], [*paths, tmp_path / "out"], strict=True):
        checkpoint = open_checkpoint(path)
        hashes = fingerprint(checkpoint, cache=False)
        facts = {n: ("float32", list(checkpoint.info(n).shape), h) for n, h in hashes.items()}
        assert entry["fingerprint"] == total(facts) and entry["tensors"] == len(hashes)
    assert (record["merge_method"], record["seed"], record["scope"]) == ("dare_ties", 5, "tensor")
    card = out["README.md"].decode()
    assert card.startswith("---\ntags:") and record["output"]["fingerprint"] in card and config.read_text().rstrip() in card
    assert str(tmp_path) not in card.partition("## Configuration")[0]
    assert yaml.safe_load(card.split("---")[1])["tags"] == ["merge", "paring"]


def test_what_was_hashed_is_remembered(tmp_path: Path) -> None:
    from paring.delta.checkpoint.fingerprint import remembered

    paths = family(tmp_path, 1)
    fuse(write(tmp_path, weighted(paths)), tmp_path / "out")
    for path in paths:
        checkpoint = open_checkpoint(path)
        assert remembered(checkpoint) == fingerprint(checkpoint, cache=False)


def test_a_library_that_is_not_there_is_not_loaded(tmp_path: Path) -> None:
    """The process start counts: transformers takes seconds."""
    paths = family(tmp_path, 2)
    config = write(tmp_path, weighted(paths))
    code = (
        "import sys; from paring.cli.main import main; code = main(sys.argv[1:]); "
        "assert not {'transformers', 'matplotlib', 'ray', 'pandas', 'scipy', 'sympy'} & set(sys.modules), 1; sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", code, "fuse", str(config), str(tmp_path / "out")], check=True)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_file_that_is_open_when_python_ends(tmp_path: Path, kind: str) -> None:
    """Modules may be emptied before their objects go."""
    path = tmp_path / f"x.{kind}"
    (torch.save if kind == "pt" else save_file)({"w": torch.ones(2)}, path)
    code = (
        "import sys; from paring.delta.checkpoint import read, shards; found = read.open_checkpoint(sys.argv[1]); "
        "shards.os = None; del found"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    assert not done.stderr


HELD = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started with it ignored
from paring.fuse import engine, output
from paring.cli.main import main
begin, write, runners, written = engine.Runner.run, output.Output.write, [], []
def run(self, *arguments):
    runners.append(self)
    begin(self, *arguments)
def held(self, name, tensor):
    write(self, name, tensor)
    written.append(name)
    os.write(1, name.encode() + b"\\n")
    while len(written) >= int(sys.argv[1]) and not (os.path.exists(sys.argv[2]) or runners[0]._stop.is_set()):
        time.sleep(0.01)
engine.Runner.run, output.Output.write = run, held
sys.exit(main(sys.argv[3:]))
"""


def held(after: int, go: Path, *arguments: str) -> subprocess.Popen[str]:
    """A merge that waits, when it has written ``after`` tensors, until the file ``go`` is there or it is interrupted."""
    command = [sys.executable, "-c", HELD, str(after), str(go), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_folders_of_modules(tmp_path: Path) -> None:
    """A model of sentence-transformers is a whole one after it, too; also over an old one, and after a run that was killed."""
    paths = family(tmp_path)
    for path in paths:
        modules = [{"path": p, "type": "x"} for p in ("", "1_Pooling")]
        (Path(path) / "modules.json").write_text(json.dumps(modules))
        (Path(path) / "1_Pooling").mkdir()
        (Path(path) / "1_Pooling" / "config.json").write_text(f'{{"of": "{Path(path).name}"}}')
    left = hidden(tmp_path / "out")
    (left / "1_Pooling").mkdir(parents=True)
    (left / "1_Pooling" / "left.json").touch()
    for overwrite in (False, True):
        fused = fuse(write(tmp_path, weighted(paths)), tmp_path / "out", overwrite=overwrite)
        assert [p.name for p in (tmp_path / "out" / "1_Pooling").iterdir()] == ["config.json"]
        assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == '{"of": "base"}'
        assert tmp_path / "out" / "1_Pooling" / "config.json" in fused.files and all(p.is_file() for p in fused.files)
    (Path(paths[0]) / "1_Pooling" / "model.safetensors").touch()
    with pytest.warns(UserWarning, match="1_Pooling holds 'model.safetensors', which is not copied: no text"):
        fuse(write(tmp_path, weighted(paths)), tmp_path / "other")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    paths, out = family(tmp_path, 2), tmp_path / "out"
    config = write(tmp_path, weighted(paths, "dare_ties", density=0.5))
    fuse(config, tmp_path / "whole", shard_bytes=20_000)
    arguments = ["fuse", str(config), str(out), "--shard-size", "20KB"]
    process = held(6, tmp_path / "never", *arguments)
    assert process.stdout
    names = [process.stdout.readline().strip() for _ in range(6)]
    process.send_signal(how)
    process.communicate()
    assert process.returncode == (-9 if how == signal.SIGKILL else 130)
    assert not out.exists() and hidden(out).is_dir()
    done = [json.loads(line) for line in (hidden(out) / "journal.jsonl").read_text().splitlines()[1:]]
    assert {d["tensor"] for d in done} >= set(names) and len(done) < len(whole(tmp_path / "whole"))
    # One finished tensor is damaged, and the journal's last line cut: both are made again.
    victim = done[0]["tensor"]
    shard = next(p for p in hidden(out).glob("*.safetensors") if victim in header(p))
    offset = 8 + int.from_bytes(shard.read_bytes()[:8], "little") + header(shard)[victim]["data_offsets"][0]
    with shard.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x01\x02\x03")
    with (hidden(out) / "journal.jsonl").open("ab") as file:
        file.write(b'{"tensor": "model.no')
    fused = fuse(config, out, shard_bytes=20_000)
    assert fused.kept == len({d["tensor"] for d in done}) - 1
    assert content(out) == content(tmp_path / "whole")
    assert not hidden(out).exists()


def header(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    return dict(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]))


def test_another_run_does_not_take_up_what_is_not_its_own(tmp_path: Path) -> None:
    paths, out = family(tmp_path, 1), tmp_path / "out"
    config = write(tmp_path, weighted(paths))
    process = held(1, tmp_path / "never", "fuse", str(config), str(out))
    assert process.stdout
    process.stdout.readline()
    process.kill()
    process.communicate()
    write(tmp_path, weighted(paths, weight=0.25))
    fused = fuse(config, out)
    fuse(config, tmp_path / "again")
    assert fused.kept == 0 and content(out) == content(tmp_path / "again")


def test_two_processes_do_not_write_the_same(tmp_path: Path) -> None:
    paths, out = family(tmp_path, 1), tmp_path / "out"
    config = write(tmp_path, weighted(paths))
    process = held(1, tmp_path / "go", "fuse", str(config), str(out))
    assert process.stdout
    process.stdout.readline()
    with pytest.raises(OSError, match="another process is writing .*out; wait for it"):
        fuse(config, out)
    (tmp_path / "go").touch()
    process.communicate()
    assert process.returncode == 0 and out.is_dir() and not hidden(out).exists()


def test_overwriting_swaps_a_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    paths, out = family(tmp_path, 1), tmp_path / "out"
    config = write(tmp_path, weighted(paths))
    fuse(config, out)
    (out / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="out is there already"):
        fuse(config, out)
    fuse(config, out, overwrite=True)
    assert not (out / "mine.txt").exists() and not hidden(out).exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    with pytest.raises(FileExistsError, match="files but no weights"):
        fuse(config, tmp_path / "notes", overwrite=True)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths, out = family(tmp_path, 2), tmp_path / "out"
    config = str(write(tmp_path, weighted(paths, "ties", density=0.5)))
    assert main(["fuse", config, str(out), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "ties (Yadav et al. 2023" in said and "base  " in said and "reads " in said and "memory  about" in said
    assert not out.exists() and not hidden(out).exists()
    assert main(["fuse", config, str(out), "--threads", "2"]) == 0
    assert f"Wrote {out}: " in capsys.readouterr().out
    assert main(["fuse", config, str(out)]) == 2 and "is there already" in capsys.readouterr().err
    assert main(["fuse", config, str(out), "--threads", "0"]) == 2 and "expected at least 1" in capsys.readouterr().err
    assert main(["fuse", config, str(tmp_path / "x.safetensors")]) == 2 and "is a file's name" in capsys.readouterr().err


def test_progress_in_bytes(tmp_path: Path) -> None:
    from io import StringIO

    from paring.cli.fuse import Progress

    said: list[tuple[int, int]] = []
    paths = family(tmp_path, 2)
    fused = fuse(write(tmp_path, weighted(paths)), tmp_path / "out", report=lambda done, total: said.append((done, total)))
    num_bytes = sum(t.numel() * 4 for t in whole(paths[0]).values())
    assert said[-1] == (4 * num_bytes, 4 * num_bytes) and [s[0] for s in said] == sorted(s[0] for s in said)
    assert fused.num_bytes > num_bytes
    stream = StringIO()
    progress = Progress(stream)
    progress(0, 4 * 10**9)
    assert stream.getvalue() == ""
    progress._said -= 11
    time.sleep(0.01)
    progress(10**9, 4 * 10**9)
    assert stream.getvalue().startswith("fusing: 1.00 of 4.00 GB read and written, 0 s left")


def test_a_method_on_the_engine_is_the_method_itself(tmp_path: Path) -> None:
    """Whatever the method, tensor by tensor what the pure function gives."""
    paths = family(tmp_path, 3, llama().bfloat16())
    base, *models = map(whole, paths)
    for name in ("ties", "dare_linear", "breadcrumbs", "della"):
        config = weighted(paths, name, density=0.4)
        fuse(write(tmp_path, config | {"seed": 9}), tmp_path / name)
        how = method(name)
        settings = how.resolve({}, [m["parameters"] for m in config["models"]])
        keys = ("tuned1", "tuned2", "tuned3")
        for tensor, out in whole(tmp_path / name).items():
            inputs = Inputs(
                tensor, tuple(m[tensor] for m in models), base[tensor], settings.parameters, settings.per_model, keys, seed=9
            )
            assert torch.equal(out, how(inputs, torch.empty_like(base[tensor]))), (name, tensor)


def test_layers_that_have_a_list_in_the_configuration(tmp_path: Path) -> None:
    paths = family(tmp_path, 1)
    for path in paths:
        configure(path, layer_types=["full_attention", "sliding_attention"])
    slices = [{"sources": [{"model": paths[1], "layer_range": r}]} for r in ([1, 2], [0, 2])]
    fuse(write(tmp_path, {"merge_method": "passthrough", "slices": slices}), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]
