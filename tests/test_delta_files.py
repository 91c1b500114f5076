"""A delta as a file: exact both ways, one base only, and files that lie are found out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import paring
from conftest import assert_same_bits, bert, bits, tokens
from paring import SliceConfig, sliced


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


def test_applied_and_removed_bitwise(saved: tuple[Path, nn.Module]) -> None:
    path, model = saved
    other = bert().bfloat16()
    delta = paring.load_delta(path, other)
    assert_same_bits(bits(other), bits(bert().bfloat16()))  # loading changes nothing
    delta.apply(other)
    assert_same_bits(bits(other), bits(model))
    delta.remove(other)
    assert_same_bits(bits(other), bits(bert().bfloat16()))


def test_other_tools_can_read_it(saved: tuple[Path, nn.Module]) -> None:
    path, model = saved
    values = load_file(path)
    assert set(values) <= set(dict(model.named_parameters()))
    with safe_open(path, framework="pt") as file:
        manifest = json.loads(file.metadata()["paring"])
    assert manifest["format"] == 1 and manifest["facts"] == {"steps": 4}
    assert manifest["tensors"]["classifier.weight"]["dtype"] == "bfloat16"
    assert manifest["fresh"] == ["classifier.bias", "classifier.weight"]


def test_it_goes_onto_its_own_base_alone(saved: tuple[Path, nn.Module]) -> None:
    path, _ = saved
    other = bert().bfloat16()
    with torch.no_grad():
        other.bert.encoder.layer[1].output.dense.weight[0, 0] += 1
    with pytest.raises(ValueError, match=r"'bert\.encoder\.layer\.1\.output\.dense\.weight' was made on other values"):
        paring.load_delta(path, other)
    with pytest.raises(ValueError, match=r"was made on .*bfloat16, here it is .*float32"):
        paring.load_delta(path, bert())
    with pytest.raises(ValueError, match=r"is no tensor of this Linear; .* another model"):
        paring.load_delta(path, nn.Linear(2, 2))
    fresh_head = bert().bfloat16()
    nn.init.normal_(fresh_head.classifier.weight)  # a new head may begin otherwise
    paring.load_delta(path, fresh_head).apply(fresh_head)


def _with_manifest(path: Path, change: Any) -> None:
    values = load_file(path)
    with safe_open(path, framework="pt") as file:
        manifest = json.loads(file.metadata()["paring"])
    change(manifest)
    save_file(values, path, {"paring": json.dumps(manifest)})


NAME = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2), r"has delta format 2; this version reads format 1"),
        (lambda m: m.pop("tensors"), "is no delta: its metadata has no manifest"),
        (lambda m: m["tensors"].pop(NAME), "is damaged: its manifest names"),
        (lambda m: m["tensors"][NAME].update(encoding="sparse"), r"has the encoding 'sparse'; this version reads 'blocks'"),
        (lambda m: m["tensors"][NAME].pop("rects"), "its manifest entry is incomplete"),
        (lambda m: m["tensors"][NAME]["rects"][0].__setitem__(1, 10**9), "its blocks do not fit its shape"),
        (lambda m: m["tensors"][NAME]["rects"][0].__setitem__(0, -3), "its blocks do not fit its shape"),
        (lambda m: m["tensors"][NAME].update(rects=[[0, 3, 0, 24]] * 2), r"its blocks (overlap|do not fit)"),
        (lambda m: m["tensors"][NAME].update(dtype="float32"), "do not fit"),
        (lambda m: m["tensors"][NAME].update(shape=[24, 25]), r"was made on \[24, 25\]|do not fit"),
    ],
)
def test_a_file_that_lies_is_found_out(saved: tuple[Path, nn.Module], change: Any, message: str) -> None:
    path, _ = saved
    _with_manifest(path, change)
    model = bert().bfloat16()
    with pytest.raises(ValueError, match=message):
        paring.load_delta(path, model)
    assert_same_bits(bits(model), bits(bert().bfloat16()))


def test_overlapping_blocks_are_found() -> None:
    from paring.delta.blocks import Rect
    from paring.delta.files import _overlap

    assert not _overlap([Rect(0, 2, 0, 9), Rect(2, 5, 0, 3), Rect(2, 5, 3, 9)])
    assert _overlap([Rect(0, 3, 0, 9), Rect(2, 5, 0, 3)])
    assert _overlap([Rect(0, 3, 0, 9), Rect(0, 3, 0, 9)])
    assert not _overlap([])


def test_no_delta_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no delta file"):
        paring.load_delta(tmp_path / "none", bert())
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="is no safetensors file, or a damaged one"):
        paring.load_delta(tmp_path / "text", bert())
    save_file({"a": torch.zeros(2)}, tmp_path / "plain")
    with pytest.raises(ValueError, match="is no delta: its metadata has no manifest of paring's"):
        paring.load_delta(tmp_path / "plain", bert())


def test_a_write_that_fails_leaves_the_old_file(saved: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = saved
    before = path.read_bytes()

    def fails(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("paring.delta.files.save_file", fails)
    with pytest.raises(OSError, match="no space left"):
        paring.save_delta(paring.Delta({}, {}), path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]
