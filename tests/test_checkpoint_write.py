"""Checkpoints that are written: loadable by everyone, whole or not there, whatever is killed and whenever."""

import json
import multiprocessing
import os
import platform
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from conftest import assert_same_bits, bert
from paring import files as paring_files
from paring import syscalls
from paring.delta.checkpoint.read import TensorInfo, open_checkpoint
from paring.delta.checkpoint.write import plan, write_checkpoint
from paring.delta.errors import DeltaError
from paring.files import replacing, replacing_folder
from test_checkpoint_read import every_dtype, llama, same_bytes


def put(out: Path, made: dict[str, Tensor], piece: int = 1000, **settings: Any) -> list[Path]:
    def content(name: str) -> Iterator[Tensor]:
        yield from made[name].contiguous().view(-1).split(piece)

    return write_checkpoint(out, [(n, TensorInfo(t.dtype, t.shape)) for n, t in made.items()], content, **settings)


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


INDEX = "model.safetensors.index.json"
MADE = {"a": torch.arange(10.0), "b": torch.arange(6).view(2, 3), "c": torch.ones(3).bfloat16()}


@pytest.mark.parametrize("make", [bert, llama])
@pytest.mark.parametrize("shard_bytes", [5 * 10**9, 8000])
def test_transformers_loads_it(make: Any, shard_bytes: int, tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path / "in")
    (tmp_path / "in" / "tokenizer.json").write_text("{}")
    with open_checkpoint(tmp_path / "in") as source:
        infos = [(name, source.info(name)) for name in source.names]
        written = write_checkpoint(
            tmp_path / "out", infos, lambda n: source.pieces(n, 500), shard_bytes=shard_bytes, source=source.folder
        )
    assert sorted(path.name for path in written) == listed(tmp_path / "out")
    assert (len(written) > 5) == (shard_bytes == 8000)
    others = {n for n in listed(tmp_path / "in") if n != "model.safetensors"}
    assert others == {path.name for path in written if "model" not in path.name} and "tokenizer.json" in others
    assert all((tmp_path / "in" / n).read_bytes() == (tmp_path / "out" / n).read_bytes() for n in others)
    loaded, told = type(model).from_pretrained(tmp_path / "out", output_loading_info=True, dtype="auto")
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_bits(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("shard_bytes", [10**9, 700, 1])
def test_the_library_reads_it(tmp_path: Path, shard_bytes: int) -> None:
    made = every_dtype() | {
        "scalar": torch.tensor(3.0),
        "none": torch.empty(0, 3),
        "ünïcode \"'\n": torch.ones(2),
        "t": torch.ones(3, 2).t(),
    }
    written = put(tmp_path / "out", made, piece=5, shard_bytes=shard_bytes, metadata={"format": "pt", "ä": "ö"})
    weights = [path for path in written if path.suffix == ".safetensors"]
    read: dict[str, Tensor] = {}
    for path in weights:
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt", "ä": "ö"}
            read |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    assert read.keys() == made.keys()
    assert all(read[n].shape == t.shape and read[n].dtype == t.dtype and same_bytes(read[n], t) for n, t in made.items())
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert all(same_bytes(checkpoint.tensor(name), tensor) for name, tensor in made.items())


def test_the_layout(tmp_path: Path) -> None:
    """8 bytes of length, JSON padded to 8 with spaces, tensors at multiples of their entries' size, no holes."""
    made = {
        "x": torch.ones(3, dtype=torch.int8),
        "y": torch.ones(3).half(),
        "z": torch.ones(1, dtype=torch.float64),
        "w": torch.ones(3),
    }
    (path,) = put(tmp_path / "x.safetensors", made)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    assert length % 8 == 0 and raw[8:9] == b"{" and raw[8 : 8 + length].rstrip(b" ").endswith(b"}")
    header = json.loads(raw[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert list(header) == ["z", "w", "y", "x"]
    position = 0
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        assert start == position and start % made[name].itemsize == 0
        position = stop
    assert len(raw) == 8 + length + position
    put(tmp_path / "again.safetensors", made)
    assert (tmp_path / "again.safetensors").read_bytes() == raw
    for i in range(8):
        (path,) = put(tmp_path / f"{i}.safetensors", {"x" * (i + 1): torch.ones(1)})
        assert struct.unpack("<Q", path.read_bytes()[:8])[0] % 8 == 0


def test_shards_are_filled_in_order(tmp_path: Path) -> None:
    sizes = [3, 4, 3, 20, 1, 0, 9, 10]
    named = [(str(i), TensorInfo(torch.uint8, torch.Size([size]))) for i, size in enumerate(sizes)]
    assert [[n for n, _ in shard] for shard in plan(named, 10)] == [["0", "1", "2"], ["3"], ["4", "5", "6"], ["7"]]
    assert plan([], 10) == [[]] and len(plan(named, 1)) == 7  # nothing takes no room
    with pytest.raises(ValueError, match="shard_bytes is 0, expected at least 1"):
        plan(named, 0)
    written = put(tmp_path / "out", {n: torch.zeros(i.shape, dtype=i.dtype) for n, i in named}, shard_bytes=10)
    assert [p.name for p in written] == [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)] + [
        "model.safetensors.index.json"
    ]
    index = json.loads(written[-1].read_text())
    assert index["metadata"] == {"total_size": 50} and list(index["weight_map"]) == [n for n, _ in named]
    assert [p.name for p in put(tmp_path / "empty", {})] == ["model.safetensors"]
    assert load_file(tmp_path / "empty" / "model.safetensors") == {}


def test_what_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    weights = ["model.safetensors", "pytorch_model.bin", INDEX, "optimizer.pt", "rng_state.pth", "tf_model.h5"]
    for name in ("vocab.txt", "modeling.py", "README.md", ".hidden", "sub/config.json", *weights):
        (source / name).write_text(name)
    put(tmp_path / "unmarked", MADE, source=source)
    assert listed(tmp_path / "unmarked") == ["model.safetensors"]  # no configuration: just a place where weights lie
    (source / "config.json").write_text("{}")
    with (source / "huge.txt").open("wb") as file:
        file.truncate(10**9)
    with pytest.warns(UserWarning, match=r"huge\.txt is 1,000,000,000 bytes, more than .*, and is not copied"):
        put(tmp_path / "out", MADE, source=source, files={"vocab.txt": b"mine", "new.json": b"1"})
    assert listed(tmp_path / "out") == ["README.md", "config.json", "model.safetensors", "modeling.py", "new.json", "vocab.txt"]
    assert (tmp_path / "out" / "vocab.txt").read_bytes() == b"mine"
    (source / "huge.txt").unlink()
    (tmp_path / "secret").touch()
    (source / "link.json").symlink_to("../secret")
    with pytest.raises(
        DeltaError, match=r"path escape: .*link\.json is a link to .*secret, outside its folder; put the file there"
    ):
        put(tmp_path / "other", MADE, source=source)
    assert listed(tmp_path) == ["in", "out", "secret", "unmarked"]


def test_an_old_one_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "x.safetensors"
    put(out, MADE, shard_bytes=1), put(file, MADE)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for path in (out, file):
        with pytest.raises(FileExistsError, match=r"is there already; take another name, remove it first, or ask for it to be"):
            put(path, {"new": torch.ones(1)})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    for path in (out, file):
        put(path, {"new": torch.ones(1)}, overwrite=True)
        assert open_checkpoint(path).names == ["new"]
    assert listed(tmp_path) == ["out", "x.safetensors"] and listed(out) == ["model.safetensors"]
    (tmp_path / "link").symlink_to("out")
    put(tmp_path / "link", MADE, overwrite=True)
    assert (tmp_path / "link").is_symlink() and open_checkpoint(out).names == ["a", "b", "c"]


def _one_more(piece: Tensor) -> Tensor:
    return piece + 1


def test_in_place_of_its_own_source(tmp_path: Path) -> None:
    put(tmp_path / "out", MADE, files={"config.json": b"{}"})
    with open_checkpoint(tmp_path / "out") as source:
        infos = [(name, source.info(name)) for name in source.names]
        write_checkpoint(
            tmp_path / "out", infos, lambda n: map(_one_more, source.pieces(n, 8)), source=source.folder, overwrite=True
        )
    assert torch.equal(open_checkpoint(tmp_path / "out").tensor("a"), MADE["a"] + 1)
    assert listed(tmp_path / "out") == ["config.json", "model.safetensors"]


def test_only_a_checkpoint_is_overwritten(tmp_path: Path) -> None:
    for name, said in (("folder/notes.txt", r"holds folders \(folder\)"), ("notes.txt", "holds files but no weights")):
        out = tmp_path / name.split("/")[0].removesuffix(".txt") / "out"
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("mine")
        with pytest.raises(FileExistsError, match=said + ", which overwriting it would remove; take another name"):
            put(out, MADE, overwrite=True)
        assert (out / name).read_text() == "mine"
    (tmp_path / "file").touch(), (tmp_path / "x.safetensors").mkdir(), (tmp_path / "empty").mkdir()
    with pytest.raises(FileExistsError, match="is a file, expected a folder or nothing"):
        put(tmp_path / "file", MADE, overwrite=True)
    with pytest.raises(FileExistsError, match="is a folder, expected a file or nothing"):
        put(tmp_path / "x.safetensors", MADE, overwrite=True)
    with pytest.raises(FileExistsError, match="is there already"):
        put(tmp_path / "empty", MADE)
    put(tmp_path / "empty", MADE, overwrite=True)
    (tmp_path / "empty" / ".cache").mkdir()  # of the hub's tools
    put(tmp_path / "empty", MADE, overwrite=True)
    assert listed(tmp_path / "empty") == ["model.safetensors"]


def _raise(error: BaseException) -> Iterator[Tensor]:
    yield torch.ones(1)
    raise error


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            lambda: [torch.ones(3)],
            r"the content of tensor 'b' is 12 bytes, expected 16 \(torch.float32 of shape \[2, 2\]\)",
        ),
        (lambda: [], "is 0 bytes, expected 16"),
        (lambda: [torch.ones(4), torch.ones(1)], "is more than that bytes, expected 16"),
        (lambda: [torch.ones(4).bfloat16()], "is torch.bfloat16, expected torch.float32 as announced; convert it"),
        (lambda: _raise(RuntimeError("mine")), "mine"),
        (lambda: _raise(KeyboardInterrupt("mine")), "mine"),
    ],
)
def test_content_that_is_not_as_announced(
    tmp_path: Path, name: str, old: bool, content: Callable[[], Iterable[Tensor]], said: str
) -> None:
    out = tmp_path / "new" / name
    if old:
        put(out, MADE)
    infos = [(n, TensorInfo(torch.float32, torch.Size([2, 2]))) for n in "ab"]
    with pytest.raises((DeltaError, RuntimeError, KeyboardInterrupt), match=said):
        write_checkpoint(out, infos, lambda n: content() if n == "b" else [torch.ones(2, 2)], overwrite=old)
    assert not out.parent.exists() or listed(out.parent) == ([name] if old else [])
    assert not old or open_checkpoint(out).names == ["a", "b", "c"]


def test_what_cannot_be_stored(tmp_path: Path) -> None:
    one = TensorInfo(torch.float32, torch.Size([1]))
    for named, said in (
        ([("a", one), ("a", one)], "tensor 'a' comes twice"),
        ([("__metadata__", one)], "tensor '__metadata__' is the format's own name"),
        ([("\ud800", one)], "the name is no valid Unicode"),
        (
            [("a", TensorInfo(torch.complex128, torch.Size([1])))],
            "torch.complex128 has no place in a safetensors file, which holds",
        ),
        ([("a", TensorInfo(torch.float4_e2m1fn_x2, torch.Size([])))], "tensor 'a' is a single torch.float4"),
    ):
        with pytest.raises(DeltaError, match=said):
            write_checkpoint(tmp_path / "out", named, lambda n: [torch.ones(1)])
    with pytest.raises(DeltaError, match="expected text names with text values"):
        put(tmp_path / "out", MADE, metadata={"x": 1})
    with pytest.raises(DeltaError, match=r"torch.float32 of shape \[1\] takes 4 bytes, got nbytes=5"):
        TensorInfo(torch.float32, torch.Size([1]), 5)
    assert listed(tmp_path) == []


def test_a_full_disk_is_known_before(tmp_path: Path) -> None:
    huge = [("a", TensorInfo(torch.uint8, torch.Size([10**15])))]
    for name in ("new/out", "new/out.safetensors"):
        with pytest.raises(OSError, match=r"new/out.* takes 1,000,000,000,\d+,\d+ bytes, of which .* has .* free"):
            write_checkpoint(tmp_path / name, huge, lambda n: [torch.ones(1)])
    assert listed(tmp_path) == []


# The folder that is there whole or not at all.


@pytest.fixture(params=[True, False], ids=["system call", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With Linux's own call, and where there is none."""
    if not request.param:
        monkeypatch.setattr(syscalls, "rename", lambda *_: False)
    return bool(request.param)


def test_folders_are_replaced(tmp_path: Path, way: bool) -> None:
    path = tmp_path / "deep" / "out"
    for text in ("one", "two"):
        with replacing_folder(path, overwrite=text == "two") as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / text).touch()
            assert folder.parent == path.parent and ".out.tmp-" in folder.name and f"-{os.getpid()}-" in folder.name
        assert listed(path.parent) == ["out"] and listed(path / "sub") == [text]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("file", [True, False])
def test_one_that_comes_meanwhile_stays(tmp_path: Path, way: bool, file: bool) -> None:
    path = tmp_path / "out"
    with pytest.raises(FileExistsError, match="out is there already"):
        with replacing(path, overwrite=False) if file else replacing_folder(path):
            path.write_text("theirs") if file else path.mkdir()
    assert listed(tmp_path) == ["out"] and (path.is_dir() or path.read_text() == "theirs")


def test_a_swap_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "rename", lambda *_: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    original, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("no")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="no"), replacing_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").touch()
    assert listed(tmp_path) == ["out"] and listed(tmp_path / "out") == ["old"]


@pytest.mark.parametrize("write", [lambda path: put(path, MADE), lambda path: paring_files.write_bytes(path, b"")])
def test_leftovers_of_processes_that_are_gone(tmp_path: Path, write: Callable[[Path], Any]) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    prefix = paring_files._prefix(tmp_path / "out")
    theirs = [".out.tmp-0000000x-1-abc", f"{prefix}{os.getpid()}-abc", f"{prefix}1-abc", f"{prefix}x-abc", ".other", ".out.x"]
    for name in [*theirs, f"{prefix}{gone.pid}-abc", f"{prefix}{gone.pid}-abc-old"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    (tmp_path / f"{prefix}{gone.pid}-def").touch()
    with pytest.raises(RuntimeError), replacing_folder(tmp_path / "out"):
        raise RuntimeError
    assert len(listed(tmp_path)) == 9  # only who succeeds cleans up
    write(tmp_path / "out")
    assert listed(tmp_path) == sorted(["out", *theirs])


def test_system_calls_that_fail_say_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        syscalls.rename(tmp_path / "none", tmp_path / "x", syscalls.NO_REPLACE)
    (tmp_path / "a").touch(), (tmp_path / "b").touch()
    with pytest.raises(FileExistsError):
        syscalls.rename(tmp_path / "a", tmp_path / "b", syscalls.NO_REPLACE)
    assert not syscalls.rename(tmp_path / "a", tmp_path / "b", 1 << 20)  # a flag nobody knows
    syscalls.start_writing(-1, 0, 10)  # a hint, whatever comes of it


def _write_for_ever(out: str, version: int, ready: Any) -> None:
    """One version after the other, each of three shards and a file that says which it is."""
    while True:
        version += 1
        made = {name: torch.full((50_000,), version) for name in "abc"}
        put(Path(out), made, piece=5000, shard_bytes=400_000, files={"config.json": str(version).encode()}, overwrite=True)
        ready.set()


def test_killed_at_any_moment_the_old_one_is_whole(tmp_path: Path) -> None:
    chance = random.Random(0)
    out = tmp_path / "out"
    # Processes are forked off one that has loaded what is large.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "safetensors.torch", "paring.delta.checkpoint.write"])
    left = 0
    for first in range(0, 20_000, 1000):
        ready = context.Event()
        process = context.Process(target=_write_for_ever, args=(str(out), first, ready), daemon=True)
        process.start()
        assert ready.wait(60)
        time.sleep(chance.uniform(0, 0.15))
        process.kill()  # SIGKILL
        process.join()
        assert process.exitcode == -9
        left += len(listed(tmp_path)) > 1
        with open_checkpoint(out) as checkpoint:
            version = int((out / "config.json").read_text())
            assert listed(out) == [
                "config.json", *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)), "model.safetensors.index.json"
            ]  # fmt: skip
            assert all((checkpoint.tensor(name) == version).all() for name in "abc") and len(checkpoint) == 3
        assert first < version < first + 1000
    assert left > 3  # it was killed in the midst of writing
    put(out, MADE, overwrite=True)
    assert listed(tmp_path) == ["out"]


def sentence_model(folder: Path, *paths: Any) -> Path:
    """A base as sentence-transformers saves one."""
    put(folder, MADE, files={"config.json": b"{}", "modules.json": json.dumps([{"idx": 0, "path": p} for p in paths]).encode()})
    return folder


def copied(source: Path, out: Path, **settings: Any) -> list[Path]:
    return put(out, MADE, source=source, **settings)


def test_folders_of_modules_travel_along(tmp_path: Path) -> None:
    source = sentence_model(tmp_path / "in", "", "1_Pooling", "2_Normalize", "3_Gone")
    (source / "1_Pooling").mkdir(), (source / "2_Normalize").mkdir(), (source / "notes").mkdir()
    (source / "1_Pooling" / "config.json").write_text('{"pooling": "mean"}')
    (source / "notes" / "mine.txt").write_text("mine")
    for overwrite in (False, True, True):  # what was written so may be written over
        written = copied(source, tmp_path / "out", overwrite=overwrite)
        assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == '{"pooling": "mean"}'
        assert (tmp_path / "out" / "config.json").read_text() == "{}"
        assert listed(tmp_path / "out") == ["1_Pooling", "config.json", "model.safetensors", "modules.json"]
        assert tmp_path / "out" / "1_Pooling" / "config.json" in written and all(path.is_file() for path in written)
    (tmp_path / "out" / "1_Pooling" / "weights.bin").touch()
    with pytest.raises(FileExistsError, match=r"holds folders \(1_Pooling\)"):
        copied(source, tmp_path / "out", overwrite=True)


def test_weights_of_modules_are_left_out_and_told(tmp_path: Path) -> None:
    source = sentence_model(tmp_path / "in", "", "2_Dense")
    (source / "2_Dense").mkdir()
    for name in ("config.json", "model.safetensors", "a.index.json", "\x1b.py"):
        (source / "2_Dense" / name).write_text("{}")
    with pytest.warns(
        UserWarning, match=r"2_Dense holds '\\x1b\.py', 'a\.index\.json', 'model\.safetensors', which is not copied: no text"
    ):
        copied(source, tmp_path / "out")
    assert listed(tmp_path / "out" / "2_Dense") == ["config.json"]


@pytest.mark.parametrize("path", ["../other", "/tmp", "..", ".", "a/b", "a\\b", ".git", "\x1b[31m", 7, None])
def test_modules_elsewhere_are_refused(tmp_path: Path, path: Any) -> None:
    source = sentence_model(tmp_path / "in", "", path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret.json").write_text("{}")
    said = "path escape: a module is said to be in" if isinstance(path, str) else "no list of modules with a path each"
    with pytest.raises(DeltaError, match=said) as caught:
        copied(source, tmp_path / "out")
    assert str(caught.value).isprintable() and not (tmp_path / "out").exists()


def test_links_out_of_a_module_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret.json").write_text("{}")
    source = sentence_model(tmp_path / "in", "1_Pooling")
    (source / "1_Pooling").symlink_to(tmp_path / "other")
    with pytest.raises(DeltaError, match=r"path escape: .*secret\.json is a link to"):
        copied(source, tmp_path / "out")
    (source / "modules.json").write_text("{")
    with pytest.raises(DeltaError, match=r"modules\.json is no JSON"):
        copied(source, tmp_path / "out")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_freed_memory_is_kept() -> None:
    """Blocks of half a megabyte are not zeroed by the system each time they are asked for again."""
    code = (
        "import resource, sys; from paring.syscalls import keep_freed_memory\n"
        "if sys.argv[1] == 'kept': keep_freed_memory(64 << 20, 4 << 20)\n"
        "def blocks(): return [b'x' * (1 << 19) for _ in range(8)]\n"
        "blocks(); before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(50): blocks()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    plain, kept = (
        int(subprocess.run([sys.executable, "-c", code, how], check=True, capture_output=True, text=True).stdout)
        for how in ("plain", "kept")
    )
    assert kept < 2_000 < 20_000 < plain, (kept, plain)
