"""``paring diff``, ``apply`` and ``inspect`` on checkpoints as they lie on disks."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import paring
from conftest import assert_same_bits, bert, bits
from paring.cli.main import main
from paring.delta.inspect import lines, summarise
from paring.delta.patch import apply_to_checkpoint


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A body without a head as the base, and its fine-tune with one, as transformers saves them."""
    base, tuned = bert(), bert()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in tuned.parameters():
            p += torch.randn(p.shape, generator=generator) * 0.01
        tuned.bert.embeddings.word_embeddings.weight[3:].copy_(base.bert.embeddings.word_embeddings.weight[3:])
    base.bert.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    return tmp_path / "base", tmp_path / "tuned"


def whole(folder: Path) -> dict[str, Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


@pytest.mark.parametrize("shards", [[], ["--shard-size", "20KB"]])
def test_there_and_back_bitwise(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], shards: list[str]) -> None:
    base, tuned = folders
    delta, out = base.parent / "d.delta", base.parent / "out"
    assert main(["diff", str(base), str(tuned), str(delta), "--licence", "cc0", "--fact", "task=digits", *shards]) == 0
    said = capsys.readouterr().out
    assert "new, stored as they are: classifier.bias, classifier.weight" in said and str(delta) in said
    assert main(["apply", str(base), str(delta), str(out), *shards]) == 0
    assert_same_bits(whole(out), whole(tuned))
    assert delta.is_dir() == bool(shards) and (len(list(out.glob("*.safetensors"))) > 1) == bool(shards)
    assert (out / "tokenizer.json").is_file()
    assert json.loads((out / "config.json").read_text()) == json.loads((tuned / "config.json").read_text())
    loaded = type(bert()).from_pretrained(out)
    assert_same_bits(bits(loaded), bits(type(bert()).from_pretrained(tuned)))
    assert paring.load_delta(delta).facts["licence"] == "cc0" and paring.load_delta(delta).facts["task"] == "digits"
    capsys.readouterr()
    assert main(["diff", str(base), str(tuned), str(delta), *shards]) == 2
    assert main(["apply", str(base), str(delta), str(out)]) == 2
    assert capsys.readouterr().err.count("is there already") == 2
    assert main(["apply", str(base), str(delta), str(out), "--overwrite"]) == 0
    assert_same_bits(whole(out), whole(tuned))
    assert not [p for p in base.parent.iterdir() if p.name.startswith(".")]


def test_apply_refuses_another_base_and_writes_nothing(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = folders
    delta, out = base.parent / "d.delta.safetensors", base.parent / "out"
    assert main(["diff", str(base), str(tuned), str(delta)]) == 0
    content = load_file(base / "model.safetensors")
    content["encoder.layer.0.output.dense.bias"][1] += 1
    save_file(content, base / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert main(["apply", str(base), str(delta), str(out)]) == 2
    assert "the values of 'bert.encoder.layer.0.output.dense.bias' differ" in capsys.readouterr().err
    assert not out.exists() and not [p for p in base.parent.iterdir() if p.name.startswith(".")]


def test_numbers_in_place_of_bits(folders: tuple[Path, Path]) -> None:
    base, tuned = folders
    sizes = {}
    for values in ("exact", "fp32", "bf16", "int8", "int4", "sign"):
        delta = base.parent / f"{values}.delta.safetensors"
        assert main(["diff", str(base), str(tuned), str(delta), "--values", values, "--group", "32"]) == 0
        made = base.parent / f"{values}.safetensors"
        assert main(["apply", str(base), str(delta), str(made)]) == 0
        name = "bert.encoder.layer.0.output.dense.weight"
        error = (load_file(made)[name] - whole(tuned)[name]).abs().max() / 0.01
        assert error <= {"exact": 0, "fp32": 1e-4, "bf16": 0.02, "int8": 0.02, "int4": 0.6, "sign": 4.0}[values], values
        sizes[values] = sum(r.stored for r in summarise(delta).rows)
    assert sizes["fp32"] > sizes["bf16"] > sizes["int8"] > sizes["int4"] > sizes["sign"]


def test_a_torch_file_with_tied_weights(tmp_path: Path) -> None:
    shared = torch.randn(6, 4)
    torch.save({"embed.weight": shared, "head.weight": shared, "scale": torch.ones(2)}, tmp_path / "base.pt")
    changed = shared + 0.5
    torch.save({"embed.weight": changed, "head.weight": changed, "scale": torch.ones(2)}, tmp_path / "tuned.pt")
    vector = paring.diff(tmp_path / "base.pt", tmp_path / "tuned.pt")
    assert sorted(n for n in vector if vector[n].any()) == ["embed.weight"]
    paring.save_delta(vector, tmp_path / "d.delta.safetensors")
    delta = paring.load_delta(tmp_path / "d.delta.safetensors")
    apply_to_checkpoint(tmp_path / "base.pt", delta, tmp_path / "out.safetensors")
    out = load_file(tmp_path / "out.safetensors")
    assert torch.equal(out["embed.weight"], changed) and torch.equal(out["head.weight"], changed)


def test_parts_of_fused_tensors(tmp_path: Path) -> None:
    """One expert of a fused tensor has a change of its own."""
    import dataclasses

    base = {"experts": torch.randn(3, 4, 5), "other": torch.ones(2)}
    save_file(base, tmp_path / "base.safetensors")
    part = paring.diff({"experts[1]": base["experts"][1]}, {"experts[1]": base["experts"][1] + 1})
    table = paring.diff(tmp_path / "base.safetensors", base).base
    vector = dataclasses.replace(part, base=table)
    paring.save_delta(vector, tmp_path / "d.delta.safetensors")
    loaded = paring.load_delta(tmp_path / "d.delta.safetensors", tmp_path / "base.safetensors")
    assert torch.equal(loaded["experts[1]"], (base["experts"][1] + 1) - base["experts"][1])
    apply_to_checkpoint(tmp_path / "base.safetensors", loaded, tmp_path / "out.safetensors")
    expected = base["experts"].clone()
    expected[1] += 1
    assert torch.equal(load_file(tmp_path / "out.safetensors")["experts"], expected)


def test_removed_and_reshaped_tensors_need_leave(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = folders
    content = load_file(tuned / "model.safetensors")
    del content["bert.pooler.dense.bias"]
    content["bert.embeddings.word_embeddings.weight"] = torch.randn(52, 24)
    save_file(content, tuned / "model.safetensors", {"format": "pt"})
    delta, out = base.parent / "d.delta.safetensors", base.parent / "out.safetensors"
    assert main(["diff", str(base), str(tuned), str(delta)]) == 2
    assert "'bert.embeddings.word_embeddings.weight' [50, 24] float32 -> [52, 24]" in capsys.readouterr().err
    assert main(["diff", str(base), str(tuned), str(delta), "--allow", "reshaped"]) == 2
    assert "lacks tensors" in (error := capsys.readouterr().err) and "'pooler.dense.bias'; --allow removed" in error
    assert not delta.exists()
    assert main(["diff", str(base), str(tuned), str(delta), "--allow", "reshaped", "removed"]) == 0
    assert main(["apply", str(base), str(delta), str(out)]) == 0
    assert_same_bits(dict(sorted(load_file(out).items())), dict(sorted(content.items())))


def test_inspect_shows_layers_and_verifies(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = folders
    delta = base.parent / "d.delta.safetensors"
    assert main(["diff", str(base), str(tuned), str(delta)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(delta), "--verify", "--card", str(base.parent / "README.md")]) == 0
    assert "bitwise the fine-tune" in (base.parent / "README.md").read_text()
    said = capsys.readouterr().out
    assert re.search(r"bert\.encoder\.layer\.1 +\d[\d,]* +\d[\d,]* +1\.0000 +\d[\d,]* +█+ +exact dense bits32", said)
    assert "base + delta is bitwise the fine-tune" in said and "every hash as stated" in said
    assert str(base.parent) not in said.partition("\n")[2].partition("Wrote")[0]  # where the base lay stays here
    by_tensor = summarise(delta, by="tensor")
    assert {r.name for r in by_tensor.rows} >= {"classifier.weight", "bert.encoder.layer.1.output.dense.weight"}
    assert sum(r.stored for r in by_tensor.rows) == sum(r.stored for r in summarise(delta).rows) < by_tensor.num_bytes
    embedding = next(r for r in by_tensor.rows if "word_embeddings" in r.name)
    assert embedding.kept == 3 * 24 and embedding.entries == 50 * 24  # three rows changed, the others are not there
    assert any("bits for each parameter" in line for line in lines(by_tensor))
    content = delta.read_bytes()
    delta.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert main(["inspect", str(delta)]) == 0  # what it says of itself is whole
    assert main(["inspect", str(delta), "--verify"]) == 2
    assert re.search(r"d\.delta\.safetensors: '.*': the stored values are damaged", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["diff", "BASE", "nothing", "OUT"], "nothing"),
        (["diff", "BASE", "TUNED", "OUT", "--fact", "novalue"], "expected KEY=TEXT"),
        (["apply", "BASE", "BASE", "OUT"], "is no delta"),
        (["apply", "BASE", "nothing.delta.safetensors", "OUT"], "there is no delta file"),
        (["inspect", "nothing.delta.safetensors"], "there is no delta file"),
    ],
)
def test_bad_input(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    base, tuned = folders
    names = {"BASE": str(base), "TUNED": str(tuned), "OUT": str(base.parent / "out")}
    assert main([names.get(a, a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("paring: error: ") and "Traceback" not in error
    assert not (base.parent / "out").exists()


def test_facts_do_not_command_the_terminal(tmp_path: Path) -> None:
    vector = paring.diff({"a": torch.zeros(2)}, {"a": torch.ones(2)})
    paring.save_delta(vector, tmp_path / "d.delta.safetensors", {"no\x1b[2Jte": "\x1b]0;mine\x07", "list": ["\x1b[31m"]})
    said = "\n".join(lines(summarise(tmp_path / "d.delta.safetensors")))
    assert "\x1b" not in said and "\x07" not in said and "mine" in said


def test_a_size_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    from paring.cli.deltas import byte_size

    assert [byte_size(t) for t in ("1", "20KB", "1.5 GB", "5g")] == [1, 20_000, 1_500_000_000, 5_000_000_000]
    with pytest.raises(SystemExit):
        main(["diff", "a", "b", "c", "--shard-size", "much"])
    assert "expected a size such as 500MB or 5GB" in capsys.readouterr().err
