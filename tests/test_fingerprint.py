"""Hashes of tensors and checkpoints: what they see, what they do not, and when a remembered one counts."""

import json
import os
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import save_file

from paring.delta.checkpoint import fingerprint as module
from paring.delta.checkpoint.fingerprint import fingerprint, module_hash, tensor_hash, total
from paring.delta.checkpoint.read import open_checkpoint
from paring.delta.errors import DeltaError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fingerprints"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = {
        "w": torch.arange(6, dtype=torch.float32).view(2, 3),
        "h": torch.tensor([1.0, -2.0, 0.5], dtype=torch.bfloat16),
        "s": torch.tensor(7),
        "none": torch.empty(0, 4, dtype=torch.float16),
    }
    save_file(made, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each tensor that is hashed from now on."""
    calls: list[int] = []
    original = module.tensor_hash
    monkeypatch.setattr(module, "tensor_hash", lambda pieces: calls.append(1) or original(pieces))
    return calls


def test_golden_values(path: Path, cache: Path) -> None:
    """These stand in delta files: they never change."""
    with open_checkpoint(path) as checkpoint:
        hashes = fingerprint(checkpoint)
        entries = {n: (str(checkpoint.info(n).dtype)[6:], checkpoint.info(n).shape, hashes[n]) for n in checkpoint.names}
    assert hashes == {
        "h": "117c0d174e9c852f0250b77571b6fc63",
        "none": "af1349b9f5f9a1a6a0404dea36dcc949",
        "s": "6f3287cd13d7e1d790ece8ec6da9b2a5",
        "w": "f643c80020fab138198a118c92203f64",
    }
    assert total(entries) == "f048091051b2b43591d297c1872f2609"
    assert total({}) == "d53d18c23212ea7b6300594bb89bce60"


def test_the_text_behind_the_total() -> None:
    entries = {
        "b": ("float32", torch.Size([2, 3]), "0" * 32),
        'a"\\\x7f\n\tä😀': ("bfloat16", (), "f" * 32),
        "B": ("int8", [0], "1" * 32),
    }
    text = (
        '[["B","int8",[0],"11111111111111111111111111111111"],'
        '["a\\"\\\\\\u007f\\n\\t\\u00e4\\ud83d\\ude00","bfloat16",[],"ffffffffffffffffffffffffffffffff"],'
        '["b","float32",[2,3],"00000000000000000000000000000000"]]'
    )
    assert total(entries) == blake3(text.encode()).hexdigest()[:32]
    for changed in (("float16", (2, 3), "0" * 32), ("float32", (3, 2), "0" * 32), ("float32", (2, 3), "1" * 32)):
        assert total(entries | {"b": changed}) != total(entries)
    assert total(dict(reversed(entries.items()))) == total(entries)


def test_how_it_is_cut_makes_no_difference() -> None:
    tensor = torch.randn(1000).bfloat16()
    expected = blake3(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()[:32]
    for size in (1, 7, 512, 1000):
        assert tensor_hash(tensor.split(size)) == expected
    assert tensor_hash([tensor[:0], tensor.view(10, 100)]) == expected == module_hash(tensor)
    assert tensor_hash([-torch.zeros(1)]) != tensor_hash([torch.zeros(1)])


def test_tensors_of_any_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE_BYTES", 8)  # pieces of 64 bytes
    base = torch.randn(6, 5, 7)
    images = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    complex_ = torch.randn(40, dtype=torch.complex64)
    for tensor in (
        base, base[0], base.permute(2, 0, 1), base[:, ::2, 1:], base.mT, torch.randn(1).expand(4, 30), torch.tensor(1.0),
        torch.empty(0, 3).t(), base.half(), complex_.conj(), complex_.imag, images,
        torch.nn.Parameter(base[1].t()), base > 0,
    ):  # fmt: skip
        plain = torch.empty_like(tensor, memory_format=torch.contiguous_format).copy_(tensor.detach())
        assert module_hash(tensor) == tensor_hash([plain])
    for tensor, said in ((base[0].to_sparse(), "of layout torch.sparse_coo"), (torch.empty(1, device="meta"), "on meta")):
        with pytest.raises(DeltaError, match=f"a tensor .*{said}.*has no plain bytes"):
            module_hash(tensor)


@pytest.mark.filterwarnings("ignore:.*are deprecated and will be removed:UserWarning")
def test_quantized_tensors_have_no_plain_bytes(tmp_path: Path) -> None:
    tensor = torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8)
    torch.save({"q": tensor}, tmp_path / "x.pt")
    with pytest.raises(DeltaError, match=r"x\.pt: tensor 'q' is quantized, expected a plain tensor"):
        open_checkpoint(tmp_path / "x.pt")
    with pytest.raises(DeltaError, match="a tensor quantized has no"):
        module_hash(tensor)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_a_gpu() -> None:
    tensor = torch.randn(3000, 1000)
    for there in (tensor.cuda(), tensor.t().contiguous().cuda().t(), tensor.cuda().t()):
        assert module_hash(there) == module_hash(there.cpu())


def test_as_many_pieces_as_it_takes(tmp_path: Path, cache: Path) -> None:
    made = {"big": torch.randn(1_500_001), "small": torch.ones(1), "half": torch.randn(700_000).half()}
    save_file(made, tmp_path / "x.safetensors")
    with open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        assert fingerprint(checkpoint) == {name: module_hash(made[name]) for name in sorted(made)}
    torch.save(made | {"turned": torch.randn(3, 500_000).t()}, tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt") as other:
        assert fingerprint(other)["big"] == module_hash(made["big"])
        assert fingerprint(other)["turned"] == module_hash(other.tensor("turned"))


def test_a_remembered_one(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    with open_checkpoint(path) as checkpoint:
        first = fingerprint(checkpoint)
        assert len(calls) == 4 and len(list(cache.iterdir())) == 1
        assert fingerprint(checkpoint) == first == fingerprint(open_checkpoint(path)) and len(calls) == 4
        assert fingerprint(checkpoint, cache=False) == first and len(calls) == 8


def test_any_change_of_a_file_counts(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(open_checkpoint(path))
    calls = counted(monkeypatch)
    times = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1  # of one tensor: same size
    path.write_bytes(raw)
    # The time of the content's change put back: the time of any change still tells.
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns and path.stat().st_size == times.st_size
    after = fingerprint(open_checkpoint(path))
    assert len(calls) == 4 and sum(after[n] != before[n] for n in before) == 1
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert fingerprint(open_checkpoint(path)) == before and len(calls) == 8
    os.utime(path)  # touch
    assert fingerprint(open_checkpoint(path)) == before and len(calls) == 12
    assert fingerprint(open_checkpoint(path)) == before and len(calls) == 12
    assert len(list(cache.iterdir())) == 1
    # The same bytes elsewhere are another checkpoint.
    (path.parent / "other").mkdir()
    copy = path.rename(path.parent / "other" / path.name)
    assert fingerprint(open_checkpoint(copy)) == before and len(calls) == 16 and len(list(cache.iterdir())) == 2


def test_every_shard_counts(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        save_file({name: torch.ones(2)}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    fingerprint(open_checkpoint(tmp_path))
    save_file({"b": torch.zeros(2)}, tmp_path / "b.safetensors")
    assert fingerprint(open_checkpoint(tmp_path))["b"] == module_hash(torch.zeros(2))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-5],
        lambda content: b"[]",
        lambda content: b"null",
        lambda content: b"\xff" * 50,
        lambda content: b"[" * 100_000,
        lambda content: content.replace(b'"format": 1', b'"format": 0'),
        lambda content: content.replace(b'"hashes"', b'"hushes"'),
        lambda content: content.replace(b'"w"', b'"v"'),
        lambda content: content.replace(b"af13", b""),
        lambda content: content.replace(b'"af1349b9f5f9a1a6a0404dea36dcc949"', b"7"),
        lambda content: content.replace(b'"af1349b9f5f9a1a6a0404dea36dcc949"', b'"../../../../../../../../../passwd"'),
    ],
)
def test_a_damaged_one_counts_as_none(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, damage: object) -> None:
    before = fingerprint(open_checkpoint(path))
    (file,) = cache.iterdir()
    sound = file.read_bytes()
    assert damage(sound) != sound  # type: ignore[operator]
    file.write_bytes(damage(sound))  # type: ignore[operator]
    calls = counted(monkeypatch)
    assert fingerprint(open_checkpoint(path)) == before and len(calls) == 4
    assert file.read_bytes() == sound


def test_a_cache_that_cannot_be_written(path: Path, cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert len(fingerprint(open_checkpoint(path))) == 4


def test_a_file_that_changes_meanwhile_is_not_remembered(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = module.tensor_hash
    monkeypatch.setattr(module, "tensor_hash", lambda pieces: os.utime(path, ns=(1, 1)) or original(pieces))
    fingerprint(open_checkpoint(path))
    assert not cache.exists()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from paring.files import cache_folder

    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    monkeypatch.delenv("PARING_CACHE", raising=False)
    assert cache_folder() == Path("/elsewhere/paring")
    monkeypatch.setenv("PARING_CACHE", "/mine")
    assert cache_folder() == Path("/mine")
    monkeypatch.setenv("PARING_CACHE", "")
    assert cache_folder() == Path("/elsewhere/paring")
