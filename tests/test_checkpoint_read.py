"""Checkpoints read back equal, lazily; and files that lie are errors that name file and tensor."""

import json
import random
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conftest import assert_same_bits, bert
from paring.delta.checkpoint.read import Checkpoint, TensorInfo, open_checkpoint
from paring.delta.checkpoint.tensorinfo import DTYPES
from paring.delta.errors import DeltaError
from peak_memory import TELL, WATCH, told


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
    return LlamaForCausalLM(LlamaConfig(**settings)).bfloat16()


def every_dtype() -> dict[str, Tensor]:
    """A tensor of each dtype, from random bytes (of bool: zeros and ones)."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, dtype in DTYPES.items():
        raw = torch.randint(
            0, 2 if dtype == torch.bool else 256, (24 * dtype.itemsize,), dtype=torch.uint8, generator=generator
        )
        made[name] = raw.view(dtype).view(2, 3, 4)
    return made


def read_all(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {name: checkpoint.tensor(name) for name in checkpoint.names}


def same_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))


@pytest.mark.parametrize("make", [bert, llama])
@pytest.mark.parametrize("shard_size", ["5GB", "8KB"])
def test_what_transformers_saves(make: Any, shard_size: str, tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    with open_checkpoint(tmp_path) as checkpoint:
        assert (len(checkpoint.files) > 2) == (shard_size == "8KB")
        assert checkpoint.folder == tmp_path and checkpoint.metadata == {"format": "pt"} and checkpoint.tied == []
        assert_same_bits(dict(sorted(read_all(checkpoint).items())), dict(sorted(model.state_dict().items())))


def test_a_read_only_mapping(tmp_path: Path) -> None:
    save_file(
        {"b": torch.ones(3, 2), "a": torch.zeros((), dtype=torch.int8), "c": torch.empty(0, 5)}, tmp_path / "x.safetensors"
    )
    with open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        assert checkpoint.names == ["a", "b", "c"] == list(checkpoint) and len(checkpoint) == 3
        assert checkpoint.info("b") == TensorInfo(torch.float32, torch.Size([3, 2]), 24)
        assert checkpoint.info("c").nbytes == 0 and checkpoint.tensor("c").shape == (0, 5)
        assert list(checkpoint.pieces("c", 8)) == []
        assert torch.equal(checkpoint["b"], torch.ones(3, 2)) and checkpoint.tensor("a").shape == ()
        assert "b" in checkpoint and "d" not in checkpoint and checkpoint.get("d") is None
        with pytest.raises(KeyError, match=r"x\.safetensors', 3 tensors\) has no tensor 'd'"):
            checkpoint.info("d")
        mine = checkpoint.tensor("b")
        mine.zero_()  # one's own
        assert torch.equal(checkpoint.tensor("b"), torch.ones(3, 2))
    for read in (checkpoint.tensor, lambda name: next(checkpoint.pieces(name, 4))):
        with pytest.raises(ValueError, match="has been closed; read its tensors before leaving"):
            read("b")


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_every_dtype(tmp_path: Path, suffix: str) -> None:
    made = every_dtype()
    assert len(made) == 20
    path = tmp_path / f"x.{suffix}"
    save_file(made, path) if suffix == "safetensors" else torch.save(made, path)
    with open_checkpoint(path) as checkpoint:
        for name, tensor in made.items():
            assert checkpoint.info(name) == TensorInfo(tensor.dtype, tensor.shape, 24 * tensor.itemsize)
            assert same_bytes(checkpoint.tensor(name), tensor)
            for size in (1, 7, 16, 40, 10**6):
                pieces = [piece.clone() for piece in checkpoint.pieces(name, size)]
                assert all(p.ndim == 1 and p.dtype == tensor.dtype for p in pieces)
                assert all(p.numel() == max(1, size // tensor.itemsize) for p in pieces[:-1])
                assert same_bytes(torch.cat([p.view(torch.uint8) for p in pieces]), tensor)


def test_two_tensors_piece_by_piece_at_once(tmp_path: Path) -> None:
    save_file({"a": torch.arange(1000), "b": torch.arange(1000) * 2}, tmp_path / "x.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        for _ in range(3):
            pairs = zip(checkpoint.pieces("a", 256), checkpoint.pieces("b", 256), strict=True)
            assert all(torch.equal(a * 2, b) for a, b in pairs)
        first = next(checkpoint.pieces("a", 256))  # left half way: its buffer stays its own
        assert all(b[0] == b[0] for b in checkpoint.pieces("b", 256))
        assert torch.equal(first, torch.arange(32))


def test_from_several_threads(tmp_path: Path) -> None:
    made = {str(i): torch.full((5000,), i) for i in range(8)}
    save_file(made, tmp_path / "x.safetensors")
    wrong = []
    with open_checkpoint(tmp_path) as checkpoint:

        def read(name: str) -> None:
            for _ in range(20):
                wrong.extend(name for piece in checkpoint.pieces(name, 4096) if not (piece == int(name)).all())

        threads = [threading.Thread(target=read, args=(name,)) for name in made]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert not wrong


def test_the_file_that_was_opened_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2)}, path)
    with open_checkpoint(path) as checkpoint:
        path.unlink()
        save_file({"a": torch.zeros(2)}, path)
        assert torch.equal(checkpoint.tensor("a"), torch.ones(2))


def test_cut_off_while_in_use(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    with open_checkpoint(path) as checkpoint:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 100)
        for read in (checkpoint.tensor, lambda name: list(checkpoint.pieces(name, 512))):
            with pytest.raises(
                DeltaError, match=r"x\.safetensors: tensor 'a' lacks 100 bytes: the file was cut off while in use"
            ):
                read("a")


# Headers that lie. Whatever is accepted here must be accepted by safetensors too.

F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
NEXT = {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}


def hostile(path: Path, header: Any, data: bytes = b"0000") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def changed(**changes: Any) -> dict[str, Any]:
    return {"a": F32 | changes}


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"a": F32, "b": F32}, b"0000", "tensor 'b' begins at byte 0 of the data, expected 4"),
        ({"a": NEXT}, b"00000000", "tensor 'a' begins at byte 4 of the data, expected 0"),
        ({"a": F32}, b"000", "bytes long, expected"),
        ({"a": F32}, b"00000", "bytes long, expected"),
        ({"a": F32, "b": NEXT}, b"0000", "bytes long, expected"),
        (changed(data_offsets=[4, 0]), b"0000", r"data_offsets \[4, 0\], expected two that span 4 bytes"),
        (changed(data_offsets=[0, 2**70]), b"0000", "expected two that span 4 bytes"),
        (changed(data_offsets=[0]), b"0000", "expected two that span"),
        (changed(data_offsets=[0.0, 4.0]), b"0000", "expected two that span"),
        (changed(data_offsets=[False, 4]), b"0000", "expected two that span"),
        (changed(data_offsets="04"), b"0000", "expected two that span"),
        (changed(shape=[2]), b"0000", r"expected two that span 8 bytes \(F32 of shape \[2\]\)"),
        (changed(shape=[-1]), b"0000", r"shape \[-1\], expected at most 64 whole numbers"),
        (changed(shape=[1.0]), b"0000", "expected at most 64 whole numbers"),
        (changed(shape=1), b"0000", "expected at most 64 whole numbers"),
        (changed(shape=[1] * 65), b"0000", "expected at most 64 whole numbers"),
        (changed(shape=[2**62, 4]), b"0000", "which no memory holds"),
        (changed(shape=[0, 2**63], data_offsets=[0, 0]), b"", "which no memory holds"),
        (changed(shape=[10**4000] * 64), b"0000", "which no memory holds"),
        (changed(dtype="F33"), b"0000", "the dtype 'F33', expected one of BOOL, "),
        (changed(dtype=["F32"]), b"0000", "expected one of BOOL, "),
        (changed(dtype="F6_E2M3", shape=[4], data_offsets=[0, 3]), b"000", "the dtype 'F6_E2M3', expected"),
        (changed(dtype="F4", shape=[2, 3], data_offsets=[0, 3]), b"000", "expected an even last dimension"),
        ({"a": {"dtype": "F32", "shape": [1]}}, b"0000", "expected dtype, shape and data_offsets"),
        ({"a": [1]}, b"0000", "expected dtype, shape and data_offsets"),
        ({"__metadata__": {"x": 1}, "a": F32}, b"0000", "expected text names with text values"),
        ({"__metadata__": ["x"], "a": F32}, b"0000", "expected text names with text values"),
        (b'{"a":%s,"a":%s}' % ((json.dumps(F32).encode(),) * 2), b"0000", "the name 'a' stands in it twice"),
        (b'{"\\ud800":%s}' % json.dumps(F32).encode(), b"0000", "the name is no valid Unicode"),
        (b'{"a":' * 50_000, b"", "no valid JSON"),
        (b"{", b"", "no valid JSON"),
        (b'{"a":"\xff"}', b"", "no valid JSON"),
        (b" {}", b"", r"begins with b' ', expected b'\{'"),
        (b"[]", b"", r"begins with b'\[', expected b'\{'"),
        (b"", b"", r"begins with b'', expected b'\{'"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: Any, data: bytes, said: str) -> None:
    with pytest.raises(DeltaError, match=r"x\.safetensors.*" + said) as caught:
        open_checkpoint(hostile(tmp_path / "x.safetensors", header, data))
    assert len(str(caught.value)) < 1500


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content, said in (
        (b"", "is 0 bytes, expected a safetensors file of at least 8"),
        (b"\xff" * 100, "claims a header of 18,446,744,073,709,551,615 bytes in a file of 100, expected at most 92"),
        (b"version https://git-lfs.github.com/spec/v1\n", "claims a header of"),
    ):
        path.write_bytes(content)
        with pytest.raises(DeltaError, match=r"x\.safetensors " + said):
            open_checkpoint(path)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2 * 10**8))
        file.truncate(3 * 10**8)
    with pytest.raises(
        DeltaError, match="claims a header of 200,000,000 bytes in a file of 300,000,000, expected at most 100,000,000;"
    ):
        open_checkpoint(path)
    assert open_checkpoint(hostile(path, {}, b"")).names == []


def test_mutated_files(tmp_path: Path) -> None:
    """Never anything but a DeltaError, and nothing is accepted that the library refuses."""
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3), "b": torch.zeros(2, 2, dtype=torch.float16), "c": torch.zeros(0)}, path, {"k": "v"})
    good = path.read_bytes()
    chance = random.Random(0)
    accepted = 0
    for _ in range(1500):
        raw = bytearray(good)
        for _ in range(chance.randint(1, 2)):
            place = chance.randrange(len(raw))
            kind = chance.randrange(4)
            if kind == 0:
                raw[place] = chance.randrange(256)
            elif kind == 1:
                raw[place] = chance.choice(b'0123456789[]{}",:-')
            elif kind == 2:
                del raw[place : place + chance.randint(1, 8)]
            else:
                raw[place:place] = raw[place : place + chance.randint(1, 8)]
        path.write_bytes(raw)
        try:
            checkpoint = open_checkpoint(path)
        except DeltaError:
            continue
        accepted += 1
        read = read_all(checkpoint)
        try:
            with safe_open(path, framework="pt") as file:
                assert sorted(file.keys()) == checkpoint.names
                assert all(same_bytes(file.get_tensor(name), tensor) for name, tensor in read.items())
        except SafetensorError as error:
            pytest.fail(f"the library refuses {bytes(raw)!r}: {error}")
    assert 30 < accepted < 1000


# Shards and their index.


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    for file, names in (("1.safetensors", "ab"), ("2.safetensors", "c")):
        save_file({name: torch.ones(2) for name in names}, tmp_path / file, {"from": file})
    _index(tmp_path, a=1, b=1, c=2)
    return tmp_path


def _index(folder: Path, **where: int) -> None:
    weight_map = {name: f"{number}.safetensors" for name, number in where.items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_and_index_must_agree(sharded: Path) -> None:
    assert open_checkpoint(sharded).names == ["a", "b", "c"]
    assert open_checkpoint(sharded).metadata == {"from": "1.safetensors"}
    for where, said in (
        ({"a": 1, "b": 1, "c": 2, "d": 2}, r"index\.json: tensor 'd' is in none of the files, expected in 2\.safetensors"),
        ({"a": 1, "b": 2, "c": 2}, r"index\.json: tensor 'b' is in 1\.safetensors, expected in 2\.safetensors"),
        ({"a": 1, "c": 2}, r"1\.safetensors: tensor 'b' and 0 others are not in .*index\.json"),
    ):
        _index(sharded, **where)
        with pytest.raises(DeltaError, match=said):
            open_checkpoint(sharded)
    _index(sharded, a=1, b=1, c=2)
    save_file({name: torch.ones(2) for name in "bc"}, sharded / "2.safetensors")
    with pytest.raises(DeltaError, match=r"2\.safetensors: tensor 'b' is also in 1\.safetensors, expected in one file"):
        open_checkpoint(sharded)


def test_a_damaged_shard_is_named(sharded: Path) -> None:
    path = sharded / "2.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DeltaError, match=r"2\.safetensors is \d+ bytes long, expected \d+ as its header says"):
        open_checkpoint(sharded)


# Files of torch.save.


def test_torch_files(tmp_path: Path) -> None:
    model = llama()
    plain = model.state_dict()
    for name, content in (
        ("a.bin", plain),
        ("b.pt", {"state_dict": plain, "epoch": 3}),
        ("c.pth", {"model": {"state_dict": plain}}),
    ):
        torch.save(content, tmp_path / name)
        with open_checkpoint(tmp_path / name) as checkpoint:
            assert_same_bits(read_all(checkpoint), dict(sorted(plain.items())))
            mine = checkpoint.tensor("lm_head.weight")
            mine.zero_()
            assert torch.equal(checkpoint.tensor("lm_head.weight"), plain["lm_head.weight"])
        with pytest.raises(ValueError, match="has been closed"):
            checkpoint.tensor("lm_head.weight")


def test_torch_shards_with_an_index(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-1.bin")
    torch.save({"b": torch.zeros(2)}, tmp_path / "pytorch_model-2.bin")
    weight_map = {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert open_checkpoint(tmp_path).names == ["a", "b"]


def test_tied_and_strided_tensors(tmp_path: Path) -> None:
    base = torch.randn(4, 4)
    made = {
        "z": base,
        "a": base,
        "t": base.t(),
        "part": base[2:],
        "step": base[::2, 1],
        "none": torch.empty(0),
        "c": torch.randn(2).conj(),
    }
    torch.save(made | {"imag": torch.randn(3, dtype=torch.complex64).conj()}, tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt") as checkpoint:
        assert checkpoint.tied == [("a", "z")]
        for name, tensor in made.items():
            assert torch.equal(checkpoint.tensor(name), tensor) and checkpoint.tensor(name).is_contiguous()
            for size in (1, 8, 20, 1000):
                pieces = list(checkpoint.pieces(name, size))
                assert all(p.numel() <= max(1, size // 4) for p in pieces)
                assert torch.equal(torch.cat([torch.empty(0), *pieces]), tensor.reshape(-1))
        pieces = list(checkpoint.pieces("imag", 8))
        assert len(pieces) == 3 and not any(p.is_conj() for p in [*pieces, checkpoint.tensor("imag")])


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("it ran",))


def test_torch_files_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "x.pt"
    good = {"a": torch.ones(2)}
    for content, said in (
        ({"a": Code()}, r"reading it could run code, which is not done \(.*\); convert it to safetensors where you trust it"),
        (llama(), "could run code"),
        (torch.ones(2), "is a Tensor, expected a state dict; save model.state_dict"),
        (
            good | {"step": 3, "lr": [0.1], 5: torch.ones(1)},
            r"no tensors: 'step' \(int\), 'lr' \(list\), 5 \(Tensor\); save the w",
        ),
        ({"state_dict": good | {"step": 3}}, r"\['state_dict'\] holds entries that are no tensors: 'step'"),
        ({"state_dict": good, "model": good}, "has both of state_dict and model; save the one you mean"),
        ({"a": torch.ones(2).to_sparse()}, "tensor 'a' is of layout torch.sparse_coo on cpu, expected a plain tensor"),
        ({"a": torch.ones(2, device="meta")}, "tensor 'a' is of layout torch.strided on meta"),
        (
            {"a": torch.ones(1).expand(10**12)},
            r"tensor 'a' of shape .* takes 4,000,000,000,000 bytes, of which the file holds 4;",
        ),
    ):
        torch.save(content, path)
        with pytest.raises(DeltaError, match=r"x\.pt.*" + said):
            open_checkpoint(path)
    assert capsys.readouterr().out == ""
    torch.save(good, path, _use_new_zipfile_serialization=False)
    with pytest.raises(DeltaError, match="or of PyTorch before 1.6, which cannot be mapped; fetch it, or save it, again"):
        open_checkpoint(path)
    torch.save(good, path)
    whole = path.read_bytes()
    for content in (b"", b"junk", whole[:-30], whole[: len(whole) // 2], b"PK\x03\x04" + whole[40:]):
        path.write_bytes(content)
        with pytest.raises(
            DeltaError, match=r"x\.pt is no file of torch\.save, or a damaged one|x\.pt is damaged, or of|x\.pt holds something"
        ):
            open_checkpoint(path)


def test_mutated_torch_files(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(3), "b": torch.zeros(2, 2).t()}, path)
    good, chance = path.read_bytes(), random.Random(0)
    refused = whole = 0
    for _ in range(400):
        raw = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        path.write_bytes(raw)
        try:
            read_all(open_checkpoint(path))
        except DeltaError as error:
            refused += str(path) in str(error)
        else:
            whole += 1
    assert refused + whole == 400
    assert 50 < refused < 400  # most bytes of so small a file are padding between its parts


_MEMORY = f"""
import sys, torch
from pathlib import Path
from paring.delta.checkpoint.fingerprint import fingerprint
from paring.delta.checkpoint.read import open_checkpoint
from paring.delta.checkpoint.write import write_checkpoint
{WATCH}
with open_checkpoint(sys.argv[1]) as checkpoint:
    fingerprint(checkpoint, cache=False)
    infos = [(name, checkpoint.info(name)) for name in checkpoint.names]
    write_checkpoint(sys.argv[2], infos, lambda name: checkpoint.pieces(name, 1 << 20), shard_bytes=60_000_000)
{TELL}"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process's memory")
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_memory_stays_low(tmp_path: Path, suffix: str) -> None:
    """200 MB hashed and written: a few buffers, not a tensor, let alone a model."""
    source, out = tmp_path / f"x.{suffix}", tmp_path / "out"
    made = {str(i): torch.zeros(20, 2**20, dtype=torch.bfloat16) + i for i in range(5)}
    save_file(made, source) if suffix == "safetensors" else torch.save(made, source)
    try:
        done = subprocess.run([sys.executable, "-c", _MEMORY, str(source), str(out)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert told(done.stdout) < 50e6
        with open_checkpoint(out) as checkpoint:
            assert len(checkpoint.files) == 5
            assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in made.items())
        assert set(load_file(checkpoint.files[0])) == {"0"}
    finally:
        for path in [source, *(out.iterdir() if out.exists() else [])]:
            path.unlink()
