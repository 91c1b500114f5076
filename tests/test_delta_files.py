"""A delta as a file: bitwise the fine-tune again, one base only, and files that lie are found out."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import paring
from conftest import assert_same_bits, bert, bits, tokens
from paring import DeltaError, SliceConfig, sliced
from paring.delta.change import Change
from paring.delta.files import INDEX
from paring.delta.places import Scattered
from paring.delta.taskvector import TaskVector, ready

NAME = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A delta of two windows in bf16, and the model it was taken from."""
    model = bert().bfloat16()
    with sliced(model, SliceConfig(rank=3, move_steps=2, bias=True), verbose=False) as session:
        optimizer = torch.optim.SGD(session.parameters(), lr=5.0)
        for i in range(4):
            model(**tokens(seed=i)).loss.backward()
            optimizer.step()
            session.step()
            optimizer.zero_grad()
    path = tmp_path / "made" / "a.delta.safetensors"
    size = paring.save_delta(session.delta(), path, {"steps": 4})
    assert size == path.stat().st_size
    assert [p.name for p in path.parent.iterdir()] == ["a.delta.safetensors"]
    return path, model


def test_applied_and_taken_back_bitwise(saved: tuple[Path, nn.Module]) -> None:
    path, model = saved
    other = bert().bfloat16()
    delta = paring.load_delta(path, other)
    assert_same_bits(bits(other), bits(bert().bfloat16()))  # loading changes nothing
    delta.apply(other)
    assert_same_bits(bits(other), bits(model))
    delta.revert(other)
    assert_same_bits(bits(other), bits(bert().bfloat16()))
    paring.load_delta(path).apply(other)  # the base need not be given to load it
    assert_same_bits(bits(other), bits(model))


def test_as_numbers_only_beside_the_base(saved: tuple[Path, nn.Module]) -> None:
    path, model = saved
    with pytest.raises(DeltaError, match=r"exact differences, numbers only beside the base; load the delta with base="):
        paring.load_delta(path)[NAME]
    delta = paring.load_delta(path, bert().bfloat16())
    expected = bits(model)[NAME].float() - bits(bert().bfloat16())[NAME].float()
    assert torch.equal(delta[NAME], expected)
    save_file(bits(bert().bfloat16()), path.parent / "base.safetensors")
    assert torch.equal(paring.load_delta(path, path.parent / "base.safetensors")[NAME], expected)


def test_other_tools_can_read_it(saved: tuple[Path, nn.Module]) -> None:
    path, model = saved
    stored = load_file(path)
    assert {name.rpartition(":")[0] for name in stored} <= set(dict(model.named_parameters()))
    assert torch.equal(stored["classifier.weight:values"], model.classifier.weight)  # a new tensor as it is
    manifest = _manifest(path)
    assert manifest["format"] == 1 and manifest["facts"] == {"steps": 4}
    assert manifest["base"]["tensors"][NAME][:2] == ["bfloat16", [24, 24]]
    assert manifest["tensors"][NAME]["places"] == "blocks" and manifest["tensors"][NAME]["values"] == "bits16"


def test_it_goes_onto_its_own_base_alone(saved: tuple[Path, nn.Module]) -> None:
    path, _ = saved
    other = bert().bfloat16()
    with torch.no_grad():
        other.bert.embeddings.LayerNorm.bias[0] += 1  # a tensor that the delta does not touch
    with pytest.raises(
        DeltaError, match=r"the values of 'bert\.embeddings\.LayerNorm\.bias' differ; use the base it was made on"
    ):
        paring.load_delta(path, other)
    with pytest.raises(DeltaError, match=r"is \[50, 24\] float32 there; the delta was made on \[50, 24\] bfloat16"):
        paring.load_delta(path, bert())
    with pytest.raises(DeltaError, match=r"the Linear is not the base of this delta: it has no tensor 'bert"):
        paring.load_delta(path, nn.Linear(2, 2))
    fresh_head = bert().bfloat16()
    nn.init.normal_(fresh_head.classifier.weight)  # a new head may begin otherwise
    paring.load_delta(path, fresh_head).apply(fresh_head)
    with pytest.raises(DeltaError, match=r"'classifier.bias' is \[5\]"):
        paring.load_delta(path).apply(bert(labels=5).bfloat16())
    with pytest.raises(
        DeltaError, match=r"has no tensor 'classifier\.\w+', which the delta brings; make the model with that head"
    ):
        paring.load_delta(path).apply(bert().bfloat16().bert)


@pytest.mark.parametrize("values", ["fp32", "bf16", "fp16", "int8", "int4", "sign"])
@pytest.mark.parametrize("scattered", [True, False])
def test_differences_in_numbers_are_stored_as_asked(tmp_path: Path, values: str, scattered: bool) -> None:
    model = bert()
    vector = 0.5 * paring.diff(bits(bert()), {n: t + 0.01 * torch.randn(t.shape) for n, t in bits(model).items()})
    if scattered:
        vector = _pruned(vector)
    path = tmp_path / "a.delta.safetensors"
    paring.save_delta(vector, path, values=values, group=64)
    loaded = paring.load_delta(path)
    assert set(loaded) == set(vector) and not loaded.exact
    worst = {"fp32": 0.0, "bf16": 2**-8, "fp16": 2**-10, "int8": 2**-7, "int4": 0.3, "sign": 3.0}[values]
    for name in vector:
        expected, got = vector[name], loaded[name]
        assert (got - expected).abs().max() <= worst * expected.abs().max() + 1e-12, name
        assert torch.equal(got == 0, expected == 0) or not scattered or values in ("int4",), name
    loaded.apply(model)


def _pruned(vector: TaskVector) -> TaskVector:
    """A tenth of the entries of each tensor."""
    changes = {}
    for name in vector:
        flat = vector[name].flatten()
        positions = flat.abs().topk(max(1, flat.numel() // 10)).indices.sort().values
        change = vector.change(name)
        changes[name] = ready(Change(change.shape, change.dtype, "real", Scattered(positions), flat[positions]))
    return TaskVector(changes, vector.base)


def test_shards(saved: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path, model = saved
    folder = tmp_path / "sharded.delta"
    vector = paring.load_delta(path)
    written = paring.save_delta(vector, folder, shard_bytes=600)
    files = sorted(p.name for p in folder.iterdir())
    assert len(files) > 3 and files[-1] == INDEX and written == sum((folder / f).stat().st_size for f in files)
    other = bert().bfloat16()
    paring.load_delta(folder).apply(other)
    assert_same_bits(bits(other), bits(model))
    with pytest.raises(FileExistsError):
        paring.save_delta(vector, folder, shard_bytes=600, overwrite=False)
    assert paring.save_delta(vector, folder, shard_bytes=600) == written
    (folder / "model.safetensors").touch()
    with pytest.raises(FileExistsError, match=r"holds model\.safetensors, which overwriting it would remove"):
        paring.save_delta(vector, folder, shard_bytes=600)
    (folder / "model.safetensors").unlink()
    (folder / files[1]).unlink()
    with pytest.raises(DeltaError, match=f"lacks {files[1]}, which its index names"):
        paring.load_delta(folder)
    for shards in (["../a.delta.safetensors"], ["/etc/passwd"], [""], [".."], [files[0], files[0]], "a", [], [1]):
        (folder / INDEX).write_text(json.dumps({"format": 1, "shards": shards}))
        with pytest.raises(DeltaError, match="is damaged: expected format 1 and a list of file names"):
            paring.load_delta(folder)
    (folder / INDEX).unlink()
    with pytest.raises(DeltaError, match="a folder without"):
        paring.load_delta(folder)


def _manifest(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["paring.delta"])


def _with_manifest(path: Path, change: Callable[[Any], Any]) -> None:
    stored, manifest = load_file(path), _manifest(path)
    change(manifest)
    save_file(stored, path, {"paring.delta": json.dumps(manifest)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2), r"has delta format 2; this version reads format 1: update paring"),
        (lambda m: m.pop("tensors"), "is damaged: its manifest lacks 'tensors'"),
        (lambda m: m["tensors"].pop(NAME), "is damaged: '.*' is only in its manifest, or only in the file"),
        (lambda m: m["tensors"][NAME].update(places="sparse"), "the coding 'sparse' of"),
        (lambda m: m["tensors"][NAME].pop("rects"), "its manifest lacks 'rects'"),
        (lambda m: m["tensors"][NAME]["rects"][0].__setitem__(1, 10**9), r"block \[.*1000000000.*\] is not inside"),
        (lambda m: m["tensors"][NAME]["rects"][0].__setitem__(0, -3), "a block of '.*' is not as the format has it"),
        (lambda m: m["tensors"][NAME]["rects"][0].__setitem__(0, True), "a block of '.*' is not as the format has it"),
        (lambda m: m["tensors"][NAME].update(rects=[[0, 3, 0, 24]] * 2), "its blocks overlap"),
        (lambda m: m["tensors"][NAME].update(rects=[[0, 3, 0, 24]]), "cannot have"),
        (lambda m: m["tensors"][NAME].update(values="bits32"), "the value type of"),
        (lambda m: m["tensors"][NAME].update(kind="real", values="fp32"), "cannot have"),
        (lambda m: m["tensors"][NAME].update(group=-1), "is not as the format has it"),
        (lambda m: m["tensors"][NAME]["parts"]["values"].__setitem__(1, 7), "cannot have 7 bytes|manifest says 7"),
        (lambda m: m["tensors"][NAME]["parts"]["values"].__setitem__(2, "0" * 32), "the stored values are damaged"),
        (lambda m: m["tensors"][NAME]["parts"].pop("values"), "the parts of"),
        (lambda m: m["base"]["tensors"][NAME].__setitem__(1, [24, 25]), "hash of its base's table is not the one it states"),
        (lambda m: m["base"].update(total="0" * 32), "hash of its base's table is not the one it states"),
        (lambda m: m["base"]["tensors"].pop(NAME), "hash of its base's table|is no tensor of its base"),
        (lambda m: m["tensors"]["classifier.bias"].update(shape=[10**9, 10**9]), "the shape of"),
        (lambda m: m["tensors"]["classifier.bias"].update(shape=[4]), r"the delta.s is \[4\]|the manifest says otherwise"),
        (lambda m: m["tensors"]["classifier.bias"].update(dtype="load"), "'load' is no tensor type"),
        (lambda m: m.update(removed=[1]), "'removed' is not as the format has it"),
        (lambda m: m.update(facts=[]), "the top level is not as the format has it"),
    ],
)
def test_a_manifest_that_lies_is_found_out(saved: tuple[Path, nn.Module], change: Callable[[Any], Any], message: str) -> None:
    path, _ = saved
    _with_manifest(path, change)
    model = bert().bfloat16()
    with pytest.raises(DeltaError, match=message):
        paring.load_delta(path, model).apply(model)
    assert_same_bits(bits(model), bits(bert().bfloat16()))


def test_flipped_bits_and_cut_files_are_found_out(saved: tuple[Path, nn.Module]) -> None:
    path, _ = saved
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    for at in range(start, len(content), max(1, (len(content) - start) // 50)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(DeltaError, match="are damaged \\(their hash differs\\)"):
            for _ in paring.load_delta(path).load_all():
                pass
    for length in (0, 7, 100, start, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DeltaError):
            paring.load_delta(path)


def test_no_delta_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no delta file"):
        paring.load_delta(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(DeltaError, match="expected a safetensors file"):
        paring.load_delta(tmp_path / "text")
    save_file({"a": torch.zeros(2)}, tmp_path / "plain")
    with pytest.raises(DeltaError, match="is no delta: its metadata has no manifest of paring's"):
        paring.load_delta(tmp_path / "plain")


def test_a_write_that_fails_leaves_the_old_file(saved: tuple[Path, nn.Module]) -> None:
    path, _ = saved
    before = path.read_bytes()
    vector = paring.diff(bits(bert()), bits(bert()) | {NAME: torch.full((24, 24), torch.nan)})
    with pytest.raises(DeltaError, match="holds NaN or infinity"):
        paring.save_delta(vector, path)
    with pytest.raises(DeltaError, match=r"facts: .*; expected texts, finite numbers"):
        paring.save_delta(paring.load_delta(path), path, {"a": object()})
    with pytest.raises(FileExistsError):
        paring.save_delta(paring.load_delta(path), path, overwrite=False)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]
