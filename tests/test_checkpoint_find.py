"""Where a checkpoint is: files, folders, indices, the hub's cache; and indices that lie."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from paring.delta.checkpoint.find import find
from paring.delta.checkpoint.read import open_checkpoint
from paring.delta.errors import DeltaError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def weights(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.ones(2) for name in names or ("a",)}, path)
    return path


def indexed(folder: Path, weight_map: Any, name: str = "model.safetensors.index.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 16}, "weight_map": weight_map}))
    return folder


def test_a_file_by_its_suffix(tmp_path: Path) -> None:
    for name, kind in (("x.safetensors", "safetensors"), ("x.pt", "torch"), ("x.pth", "torch"), ("x.bin", "torch")):
        (tmp_path / name).touch()
        found = find(str(tmp_path / name))
        assert (found.kind, found.files, found.folder, found.weight_map) == (kind, (tmp_path / name,), tmp_path, None)
    (tmp_path / "x.ckpt").touch()
    with pytest.raises(DeltaError, match=r"x\.ckpt has the suffix '\.ckpt', expected \.safetensors, "):
        find(tmp_path / "x.ckpt")
    assert find(tmp_path / "x.ckpt", "torch").kind == "torch"


def test_a_folder_in_the_order_of_what_it_holds(tmp_path: Path) -> None:
    weights(tmp_path / "other.safetensors")
    assert find(tmp_path).files == (tmp_path / "other.safetensors",)
    weights(tmp_path / ".hidden.safetensors")
    assert find(tmp_path).files == (tmp_path / "other.safetensors",)
    indexed(tmp_path, {"a": "s.bin"}, "pytorch_model.bin.index.json")
    (tmp_path / "s.bin").touch()
    assert find(tmp_path).files == (tmp_path / "s.bin",)
    (tmp_path / "pytorch_model.bin").touch()
    assert find(tmp_path).files == (tmp_path / "pytorch_model.bin",)
    indexed(tmp_path, {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"})
    weights(tmp_path / "1.safetensors"), weights(tmp_path / "2.safetensors")
    found = find(tmp_path)
    assert found.files == (tmp_path / "1.safetensors", tmp_path / "2.safetensors")
    assert found.index == tmp_path / "model.safetensors.index.json" and found.weight_map is not None
    assert find(found.index) == found
    weights(tmp_path / "model.safetensors")
    assert find(tmp_path).files == (tmp_path / "model.safetensors",)


def test_a_folder_with_none_or_two(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no checkpoint; expected model.safetensors, "):
        find(tmp_path)
    weights(tmp_path / "a.safetensors"), weights(tmp_path / "b.safetensors")
    with pytest.raises(DeltaError, match=r"2 files that could be it, expected one: a\.safetensors, b\.safetensors; name the"):
        find(tmp_path)


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    for name in ("gone.safetensors", "a/b/c/d"):
        with pytest.raises(FileNotFoundError, match=f"there is no file (or folder )?.*{name}"):
            find(tmp_path / name)
    (tmp_path / "link.safetensors").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name in ("link", "pipe"):
        with pytest.raises(FileNotFoundError, match="is no file: a link to nothing, a device or a pipe"):
            find(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    "name",
    ["../s.safetensors", "/tmp/s.safetensors", "sub/s.safetensors", "..", ".", "", "..\\s.safetensors", "C:s.safetensors",
     "a\0.safetensors", "a\n.safetensors",
     "x" * 300 + ".safetensors", "ä" * 130 + ".safetensors", 7, None, ["s.safetensors"], {}],
)  # fmt: skip
def test_path_escapes(tmp_path: Path, name: Any) -> None:
    folder = indexed(tmp_path / "model", {"good": "s.safetensors", "layer.weight": name})
    for there in (tmp_path, folder, folder / "sub"):
        weights(there / "s.safetensors", "good")
    with pytest.raises(DeltaError, match=r"index\.json: path escape: tensor 'layer.weight' is said to be in "):
        find(folder)


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    folder = indexed(tmp_path / "model", {"a": "s.safetensors"})
    weights(folder / "real.safetensors")
    (folder / "s.safetensors").symlink_to("real.safetensors")
    assert find(folder).files == (folder / "s.safetensors",)
    (folder / "s.safetensors").unlink()
    (folder / "s.safetensors").symlink_to(weights(tmp_path / "outside.safetensors"))
    with pytest.raises(
        DeltaError, match=r"path escape: s\.safetensors is a link to .*outside\.safetensors, outside the folder"
    ):
        find(folder)
    (tmp_path / "linked").symlink_to(folder)  # the way to the folder may be one
    (folder / "s.safetensors").unlink()
    weights(folder / "s.safetensors")
    assert find(tmp_path / "linked").files == (tmp_path / "linked" / "s.safetensors",)


def test_missing_shards_are_all_named(tmp_path: Path) -> None:
    folder = indexed(tmp_path, {f"t{i}": f"{i}.safetensors" for i in range(4)})
    weights(folder / "2.safetensors")
    with pytest.raises(
        DeltaError, match=r"names 4 files, of which 3 are missing: 0\.safe.*, 1\.safe.*, 3\.safetensors; fetch it"
    ):
        find(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "no valid JSON"),
        (b"{", "no valid JSON"),
        (b"\xff\xfe{\x00}\x00", "no valid JSON"),
        (b"[" * 200_000, "no valid JSON"),
        (b"[]", "got a JSON list, expected an object"),
        (b"{}", "has the weight_map None, expected an object"),
        (b'{"weight_map": {}}', "has the weight_map {}, expected"),
        (b'{"weight_map": [["a", "b"]]}', "has the weight_map .*, expected an object"),
        (b'{"weight_map": {"a": "s.safetensors", "a": "t.safetensors"}}', "the name 'a' stands in it twice"),
        (b'{"weight_map": {"a": "s.bin"}}', "which is no safetensors file"),
        (b'{"weight_map": NaN}', "NaN is no JSON"),
        (b'{"weight_map": ' + b"9" * 10_000 + b"}", "no valid JSON"),
    ],
)
def test_indices_that_are_none(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(text)
    with pytest.raises(DeltaError, match=r"model\.safetensors\.index\.json.*" + said):
        find(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {"weight_map": "\x1b[31m\x9bred\u202e"},
        {"weight_map": {"\x1b[31m": "\x1b/\n"}},
        {"weight_map": {"\x07": "\x1b.bin"}},
        {"\x1b": 1},
    ],
)
def test_an_index_does_not_command_the_terminal(tmp_path: Path, content: Any) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(DeltaError) as caught:
        find(tmp_path)
    assert str(caught.value).isprintable()


def test_a_huge_index_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors.index.json").open("wb") as file:
        file.truncate(10**12)  # takes no room
    with pytest.raises(DeltaError, match=r"is 1,000,000,000,000 bytes, expected at most 100,000,000; it is no index"):
        find(tmp_path)
    (tmp_path / "x.other.index.json").touch()
    with pytest.raises(DeltaError, match="an index of an unknown kind"):
        find(tmp_path / "x.other.index.json")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with two shards of one repository, as links into its blobs."""
    cache = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    repo = cache / "models--org--name"
    snapshot = indexed(repo / "snapshots" / COMMIT, {"a": "1.safetensors", "b": "2.safetensors"})
    for file, name in (("1.safetensors", "a"), ("2.safetensors", "b")):
        weights(repo / "blobs" / f"{name}.safetensors", name).rename(repo / "blobs" / name)
        (snapshot / file).symlink_to(f"../../blobs/{name}")
    (repo / "refs" / "refs" / "pr").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "refs" / "refs" / "pr" / "1").write_text(COMMIT + "\n")
    return cache


def test_hub_names_from_the_cache(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cache / "models--org--name" / "snapshots" / COMMIT
    for name in ("org/name", "org/name@main", "org/name@refs/pr/1", f"org/name@{COMMIT}"):
        assert find(name).folder == snapshot
    assert open_checkpoint("org/name").names == ["a", "b"]
    (cache / "models--org--name").rename(cache / "models--gpt2")
    assert find("gpt2").files[0].name == "1.safetensors"
    (tmp_path / "gpt2").mkdir()
    weights(tmp_path / "gpt2" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert find("gpt2").files == (Path("gpt2/model.safetensors"),)  # what is on disk comes first


def test_the_variables_that_place_the_cache(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    home = tmp_path / "home"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    cache.rename(home / ".cache" / "huggingface" / "hub")
    monkeypatch.setenv("HOME", str(home))
    assert find("org/name").kind == "safetensors"
    with monkeypatch.context() as other:
        other.setenv("HF_HOME", str(tmp_path))
        with pytest.raises(FileNotFoundError, match=str(tmp_path / "hub")):
            find("org/name")
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    assert find("org/name").kind == "safetensors"


def test_names_that_are_not_cached_say_how_to_fetch_them(cache: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no file or folder org/other, and the hub's .*fetch it with: hf download org/other$"
    ):
        find("org/other")
    with pytest.raises(FileNotFoundError, match=rf"lacks its revision 'v2' \(of org/name it holds {COMMIT}\).* --revision v2$"):
        find("org/name@v2")
    # A snapshot that was fetched in part, and links whose blob is gone.
    (cache / "models--org--name" / "blobs" / "b").unlink()
    with pytest.raises(DeltaError, match=r"1 are missing: 2\.safetensors"):
        find("org/name")


@pytest.mark.parametrize(
    "name", ["org/../x", "../org", "org/name@../../x", "org/name@a/../../b", "org//x", "a b/c", "org/n@", "@x"]
)
def test_names_that_are_none(cache: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="and it is no name on the hub either"):
        find(name)


def test_a_ref_does_not_lead_out_of_the_cache(cache: Path, tmp_path: Path) -> None:
    weights(tmp_path / "outside" / "model.safetensors")
    for text in ("../../../../outside", str(tmp_path / "outside"), "..", "", "\xff"):
        (cache / "models--org--name" / "refs" / "main").write_bytes(text.encode("latin-1"))
        with pytest.raises(FileNotFoundError, match="lacks its revision 'main'"):
            find("org/name")
