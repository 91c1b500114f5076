"""How a delta file is put together, small or larger than memory is given to it; plain and compressed; the base read once."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import format_reader
import paring
from conftest import assert_same_bits
from paring import DeltaError
from paring.delta import sources, spool
from paring.delta.checkpoint.fingerprint import fingerprint, tensor_hash
from paring.delta.checkpoint.read import Checkpoint, open_checkpoint
from paring.delta.inspect import verify

DTYPES = {"a": torch.bfloat16, "b": torch.float32, "c": torch.float16, "d": torch.bfloat16}


@pytest.fixture
def states(tmp_path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A base and its fine-tune with three new tensors, whose bytes are no multiple of 8; also saved."""
    generator = torch.Generator().manual_seed(1)
    base = {n: (torch.randn(130, 90, generator=generator) * 0.02).to(dtype) for n, dtype in DTYPES.items()}
    tuned = {n: t + (0.02 * (torch.rand(t.shape, generator=generator) < 0.5)).to(t.dtype) for n, t in base.items()}
    tuned["d"] = base["d"].clone()
    tuned["d"][3, :5] += 1
    tuned |= {"head": torch.randn(5, 5, generator=generator).bfloat16(), "bias": torch.randn(7, generator=generator)}
    tuned["seen"] = torch.tensor([True, False, True])
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    return base, tuned


def header(path: Path) -> tuple[int, dict[str, Any]]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return 8 + length, json.loads(raw[8 : 8 + length])


@pytest.mark.parametrize("compression", ["zstd", "none"])
@pytest.mark.parametrize("values", ["exact", "int8"])
@pytest.mark.parametrize("reserve", [None, 0, 64, 1 << 20])
def test_larger_than_what_waits_in_memory(
    states: tuple[dict[str, Tensor], dict[str, Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compression: str,
    values: str,
    reserve: int | None,
) -> None:
    """Room as estimated; none, so that all is moved up; and too much, which spaces fill."""
    base, tuned = states
    vector = paring.diff(base, tuned, exact=values == "exact")
    options: dict[str, Any] = {"values": "fp32" if values == "exact" else values, "compression": compression, "group": 64}
    size = paring.save_delta(vector, tmp_path / "small.delta.safetensors", **options)
    monkeypatch.setattr(spool, "_IN_MEMORY", 1000)
    monkeypatch.setattr(spool, "FLUSH_BYTES", 1000)
    if reserve is not None:
        monkeypatch.setattr("paring.delta.files.header_room", lambda *_: reserve)
    path = tmp_path / "large.delta.safetensors"
    assert paring.save_delta(vector, path, **options) == path.stat().st_size >= size
    assert path.stat().st_size - size < 10_000 if reserve is None else path.stat().st_size - size < reserve + 16
    small, large = load_file(tmp_path / "small.delta.safetensors"), load_file(path)  # by another reader, each tensor aligned
    assert small.keys() == large.keys()
    assert_same_bits(large, small)
    start, described = header(path)
    widths = {"BF16": 2, "F32": 4}
    assert all(
        (start + d["data_offsets"][0]) % widths.get(d["dtype"], 1) == 0 for n, d in described.items() if n != "__metadata__"
    )
    after = paring.load_delta(path).applied_to(base)
    if values == "exact":
        assert_same_bits(after, tuned)
    first = path.read_bytes()
    paring.save_delta(vector, path, **options)
    assert path.read_bytes() == first
    assert {p.name for p in tmp_path.iterdir()} >= {path.name} and not [p for p in tmp_path.iterdir() if p.name[0] == "."]


def test_the_room_for_a_header_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with names and facts that grow when they are escaped, twice."""
    monkeypatch.setattr(spool, "_IN_MEMORY", 0)
    moved: list[int] = []
    original = spool._move_up
    monkeypatch.setattr(spool, "_move_up", lambda file, start, by: moved.append(by) or original(file, start, by))
    base = {f'"\\{i}ä😀': torch.randn(3, 70) for i in range(40)}
    tuned = {n: t + 1e-3 * (torch.rand(t.shape) < 0.5) for n, t in base.items()} | {'"neu"': torch.randn(3)}
    vector = paring.diff(base, tuned)
    paring.save_delta(vector, tmp_path / "x", {'"note\\"': '"\\ä😀' * 500})
    assert moved == [0]
    assert_same_bits(paring.load_delta(tmp_path / "x").applied_to(base), tuned)


def test_plain_differences_are_as_large_as_what_they_change(
    states: tuple[dict[str, Tensor], dict[str, Tensor]], tmp_path: Path
) -> None:
    base, tuned = states
    vector = paring.diff(base, tuned)
    path, packed = tmp_path / "plain.delta.safetensors", tmp_path / "packed.delta.safetensors"
    paring.save_delta(vector, path, compression="none")
    paring.save_delta(vector, packed)
    start, described = header(path)
    manifest = json.loads(described["__metadata__"]["paring.delta"])
    assert {part[0] for entry in manifest["tensors"].values() for part in entry["parts"].values()} == {"none"}
    assert [manifest["tensors"][n]["places"] for n in "abcd"] == ["dense", "dense", "dense", "gaps"]
    plain = sum(base[n].numel() * base[n].itemsize for n in "abc")
    assert plain < path.stat().st_size - start < plain + 300 and packed.stat().st_size < 0.7 * path.stat().st_size
    assert verify(path) == 7
    after = format_reader.read_delta(path, format_reader.read_safetensors(tmp_path / "base.safetensors")[0])
    for name, bits in format_reader.read_safetensors(tmp_path / "tuned.safetensors")[0].items():
        assert (after[name].bits == bits.bits).all()
    for values in ("fp32", "int4", "sign"):
        paring.save_delta(0.5 * vector.only("a"), path, values=values, compression="none")
        assert torch.allclose(paring.load_delta(path, base)["a"], 0.5 * vector["a"], atol=1.0 if values != "fp32" else 0)
    with pytest.raises(ValueError, match=r"compression: 'gzip'; expected 'zstd' or 'none'"):
        paring.save_delta(vector, tmp_path / "no", compression="gzip")
    assert not (tmp_path / "no").exists()


def test_the_base_is_read_once(
    states: tuple[dict[str, Tensor], dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hashes are made while its differences are taken; what is not read for these is hashed at the end."""
    monkeypatch.setenv("PARING_CACHE", str(tmp_path / "cache"))
    base, tuned = states
    save_file(base | {"gone": torch.ones(9)}, tmp_path / "base.safetensors")
    read: list[tuple[str, str]] = []
    original = Checkpoint.pieces

    def pieces(self: Checkpoint, name: str, piece_bytes: int) -> Iterator[Tensor]:
        read.append((self.files[0].name, name))
        return original(self, name, piece_bytes)

    monkeypatch.setattr(Checkpoint, "pieces", pieces)
    vector = paring.diff(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", allow=["removed"])
    assert not read
    paring.save_delta(vector, tmp_path / "x.delta.safetensors")
    assert sorted(name for file, name in read if file == "base.safetensors") == ["a", "b", "c", "d", "gone"]
    listed = paring.load_delta(tmp_path / "x.delta.safetensors").base
    assert {n: f.hash for n, f in listed.tensors.items()} == {n: tensor_hash([base[n]]) for n in "abcd"}
    assert listed.total == vector.base.total == paring.diff(base, tuned).base.total
    del read[:]
    with open_checkpoint(tmp_path / "base.safetensors") as checkpoint:  # remembered, all of them
        assert fingerprint(checkpoint)["gone"] == tensor_hash([torch.ones(9)]) and not read
    monkeypatch.setattr(sources, "hashed", None)  # a second diff hashes nothing
    again = paring.diff(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", allow=["removed"])
    assert again.change("a").values.numel() and len(read) == 2
    with pytest.raises(KeyError):
        again.base.tensors["gone"]


def test_hashes_of_a_base_that_changes_meanwhile_are_not_remembered(
    states: tuple[dict[str, Tensor], dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARING_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "base.safetensors"
    vector = paring.diff(path, tmp_path / "tuned.safetensors")
    vector.change("a")
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert vector.base.tensors["a"].hash == tensor_hash([states[0]["a"]])  # of what the difference was taken from
    assert sources.remembered(open_checkpoint(path)) is None
    vector.base.total  # noqa: B018 - hashes what was not read
    with pytest.raises(DeltaError, match="not the base of this delta: the values of"):
        paring.load_delta(_saved(vector, tmp_path), states[0])


def _saved(vector: paring.TaskVector, tmp_path: Path) -> Path:
    paring.save_delta(vector, tmp_path / "late.delta.safetensors")
    return tmp_path / "late.delta.safetensors"
