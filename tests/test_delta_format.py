"""docs/format.md: golden files, read by us and by a reader written from it alone; written again as they were."""

import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import format_reader
import paring
from conftest import assert_same_bits
from paring import DeltaError
from paring.delta.base import Base, TensorFacts
from paring.delta.change import Change
from paring.delta.factors import LowRank
from paring.delta.files import INDEX, shards_of
from paring.delta.inspect import summarise, verify
from paring.delta.patch import apply_to_checkpoint
from paring.delta.places import Everywhere, Scattered
from paring.delta.taskvector import low_rank, ready

GOLDEN = Path(__file__).parent / "golden"
sys.path.append(str(GOLDEN))
import make  # noqa: E402 - beside the files it made

NAMES = list(make.GOLDEN)
State = dict[str, Tensor]


def base() -> State:
    return load_file(GOLDEN / "base.safetensors")


def expected(name: str) -> State:
    """The whole result."""
    state = base() | load_file(GOLDEN / "expected" / f"{name}.safetensors")
    if name == "removed":
        del state["old.bias"]
    return dict(sorted(state.items()))


class Model(nn.Module):
    """Holds a state dict under its own names."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for name, tensor in state.items():
            *path, last = name.split(".")
            home = self
            for part in path:
                if not hasattr(home, part):
                    home.add_module(part, nn.Module())
                home = getattr(home, part)
            home.register_buffer(last, tensor.clone())


def manifests(path: Path) -> list[dict[str, Any]]:
    return [json.loads(format_reader.read_safetensors(p)[1]["paring.delta"]) for p in shards_of(path)]


@pytest.mark.parametrize("name", NAMES)
def test_onto_a_checkpoint(name: str, tmp_path: Path) -> None:
    apply_to_checkpoint(GOLDEN / "base.safetensors", paring.load_delta(make.path_of(name)), tmp_path / "out.safetensors")
    out = load_file(tmp_path / "out.safetensors")
    renamed = {n.removeprefix("model."): t for n, t in out.items()}  # of "prefix": the result has the fine-tune's names
    assert (name == "prefix") == (renamed.keys() != out.keys())
    assert_same_bits(dict(sorted(renamed.items())), expected(name))


@pytest.mark.parametrize("name", NAMES)
def test_onto_a_model_and_off_again(name: str) -> None:
    state = base() | ({n: torch.zeros_like(t) for n, t in expected(name).items() if n not in base()})
    if name == "tied":  # the model knows the tensor by its other name
        state["head.weight"] = state.pop("embed.weight")
    model = Model(state)
    with paring.load_delta(make.path_of(name), model).apply(model):
        after = {
            n.replace("head.", "embed."): t.clone()
            for n, t in model.state_dict().items()
            if n in expected(name) or name == "tied"
        }
    assert_same_bits(dict(sorted(after.items())), expected(name))
    assert_same_bits(dict(sorted(model.state_dict().items())), dict(sorted(state.items())))


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_written_from_the_specification(name: str) -> None:
    read = format_reader.read_delta(make.path_of(name), format_reader.read_safetensors(GOLDEN / "base.safetensors")[0])
    wanted = expected(name)
    assert sorted(read) == list(wanted)
    for tensor, (kind, bits) in read.items():
        assert kind == format_reader.NAMES[str(wanted[tensor].dtype).removeprefix("torch.")]
        assert bits.shape == tuple(wanted[tensor].shape)
        assert bits.tobytes() == wanted[tensor].view(-1).view(torch.uint8).numpy().tobytes(), tensor


@pytest.mark.parametrize("name", NAMES)
def test_written_again_as_it_was(name: str, tmp_path: Path) -> None:
    path, out = make.path_of(name), tmp_path / make.path_of(name).name
    with make.fixed_tool():
        paring.save_delta(paring.load_delta(path), out, **make.options_of(name))
    if name == "half-mask":  # a writer is free to take another coding where so many change
        apply_to_checkpoint(GOLDEN / "base.safetensors", paring.load_delta(out), tmp_path / "all.safetensors")
        assert_same_bits(dict(sorted(load_file(tmp_path / "all.safetensors").items())), expected(name))
        return
    for old, new in zip(shards_of(path), shards_of(out), strict=True):
        if '"zstd"' not in json.dumps(manifests(path)):
            assert new.read_bytes() == old.read_bytes()
            continue
        # Another version of zstd may find other bytes: what is stored is compared unpacked, the manifest without them.
        for made, kept in zip(_unpacked(new).items(), _unpacked(old).items(), strict=True):
            assert made == kept
    assert not path.is_dir() or (out / INDEX).read_bytes() == (path / INDEX).read_bytes()


def _unpacked(path: Path) -> dict[str, Any]:
    stored, metadata = format_reader.read_safetensors(path)
    manifest = json.loads(metadata["paring.delta"])
    unpacked: dict[str, Any] = {"manifest": manifest}
    for name, entry in manifest["tensors"].items():
        for part, packed in entry["parts"].items():
            unpacked[f"{name}:{part}"] = format_reader._payload(stored[f"{name}:{part}"], packed)
            if packed[0] == "zstd":
                packed[2] = ""
    return unpacked


def test_every_coding_is_in_a_golden_file() -> None:
    entries = [e for name in NAMES for m in manifests(make.path_of(name)) for e in m["tensors"].values()]
    found = {(e["kind"], e["places"], e["values"]) for e in entries}
    places = ("dense", "blocks", "mask", "gaps")
    assert {("real", p, v) for p in places for v in ("fp32", "bf16", "fp16", "int8", "int4", "sign")} <= found
    assert {("exact", p, "bits16") for p in places} | {("exact", "dense", f"bits{w}") for w in (8, 16, 32, 64)} <= found
    assert ("real", "dense", "lowrank") in found
    assert {e["places"] for e in entries if e["parts"].get("places", [""])[0] == "zstd"} == {"mask", "gaps"}
    assert {e.get("group", 0) for e in entries if e["values"] in make.SCALES} == {0, 3, 4}


def test_hashes_are_those_of_the_specification() -> None:
    for name in NAMES:
        for path, manifest in zip(shards_of(make.path_of(name)), manifests(make.path_of(name)), strict=True):
            stored, _ = format_reader.read_safetensors(path)
            for tensor, entry in manifest["tensors"].items():
                for part, (_, _, digest) in entry["parts"].items():
                    assert blake3(stored[f"{tensor}:{part}"].bits.tobytes()).hexdigest(16) == digest
            there = {n.removeprefix("model."): f for n, f in manifest["base"]["tensors"].items()}
            for tensor, (_, _, digest) in there.items():
                assert blake3(base()[tensor].view(-1).view(torch.uint8).numpy().tobytes()).hexdigest(16) == digest
            rows = sorted([n, *f] for n, f in manifest["base"]["tensors"].items())
            assert blake3(json.dumps(rows, separators=(",", ":")).encode()).hexdigest(16) == manifest["base"]["total"]


def test_the_specification_shows_a_whole_file() -> None:
    text = (GOLDEN.parents[1] / "docs" / "format.md").read_text()
    header = "".join(line.strip() for line in re.findall(r"```json\n(.*?)```", text, re.S)[0].splitlines()).encode()
    header += b" " * int(re.findall(r"ending in (\d) spaces", text)[0])
    length, data = (
        bytes.fromhex(b) for b in re.findall(r"(?:length of the header, \d+|Bytes 624 to 628, data): `([0-9a-f ]+)`", text)
    )
    assert length + header + data == (GOLDEN / "example.delta.safetensors").read_bytes()
    assert struct.unpack("<Q", length) == (len(header),)
    model = Model(load_file(GOLDEN / "example-base.safetensors"))
    paring.load_delta(GOLDEN / "example.delta.safetensors", model).apply(model)
    assert model.w.tolist() == [[1, 2.015625, 3], [4, 5, 5.96875]]
    read = format_reader.read_delta(
        GOLDEN / "example.delta.safetensors", format_reader.read_safetensors(GOLDEN / "example-base.safetensors")[0]
    )
    assert read["w"].bits.tobytes() == model.w.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=True), "has delta format True"),
        (lambda m: m.update(format=1.0), "has delta format 1.0"),
        (lambda m: m.update(more=1), "the top level has the field 'more', which format 1 has not"),
        (lambda m: m["base"].update(more=1), "'base' has the field 'more'"),
        (lambda m: m["tensors"]["norm.bias"].update(more=1), "'norm.bias' has the field 'more'"),
        (lambda m: m["tensors"]["norm.bias"].update(count=5), "'norm.bias' has the field 'count'"),
        (lambda m: m["tensors"]["norm.bias"].update(group=4), "the group of 'norm.bias'"),
        (lambda m: m["tensors"]["wide.weight"].update(rects=[[0, 1, 0, 1]]), "'wide.weight' has the field 'rects'"),
        (lambda m: m["tensors"]["norm.bias"].update(dtype="float16"), "'norm.bias' has the field 'dtype'"),
        (lambda m: m.update(removed=["a", "a"]), "'removed' is not"),
        (lambda m: m.update(removed=[""]), "'removed' is not"),
        (lambda m: m.update(tool="\x1b[31m"), "the top level is not"),
        (lambda m: m["base"].update(origin="a\nb"), "'base' is not"),
        (lambda m: m["tensors"].update({"a\x07": {}}), r"'a\\x07' is not"),
        (lambda m: m["tensors"].update({"a" * 1025: {}}), "aaa is not as the format has it"),
        (lambda m: m["facts"].update(a="\ud800"), "'facts' is not"),
        (lambda m: m["facts"].update({"\udfff": 1}), "'facts' is not"),
        (lambda m: m["facts"].update(a=json.loads("[" * 64 + "]" * 64)), "'facts' is not"),
        (lambda m: m["facts"].update(a=float("nan")), "NaN is no JSON"),
        (lambda m: m["base"]["tied"].update(a="nothing"), "'tied' is not"),
    ],
)
def test_what_the_manifest_may_not_say(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    path = tmp_path / "a.delta.safetensors"
    _rewritten(make.path_of("exact-places"), path, change)
    with pytest.raises(DeltaError, match=message):
        paring.load_delta(path)


def _rewritten(old: Path, new: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    (manifest,) = manifests(old)
    change(manifest)
    save_file(load_file(old), new, {"paring.delta": json.dumps(manifest)})


def test_no_name_twice_and_no_infinity(tmp_path: Path) -> None:
    path, stored = tmp_path / "a.delta.safetensors", load_file(make.path_of("removed"))
    text = json.dumps(manifests(make.path_of("removed"))[0])
    for old, new, message in (
        ('"facts": {', '"facts": {}, "facts": {', "the name 'facts' stands in it twice"),
        ('"facts": {', '"facts": {"a": 1e999', "'facts' is not as the format has it"),
        ('"facts": {', '"facts": {"a": -Infinity', "-Infinity is no JSON"),
        ('"facts": {', '"facts": {"a": ' + "[" * 100_000, "no valid JSON"),
    ):
        assert old in text
        save_file(stored, path, {"paring.delta": text.replace(old, new)})
        with pytest.raises(DeltaError, match=message):
            paring.load_delta(path)


@pytest.mark.parametrize("name", ["experts[01]", "experts[3]", "experts[1][1]", "norm.bias[0]", "steps[0]", "experts[٢]"])
def test_parts_that_are_none(tmp_path: Path, name: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["tensors"][name] = manifest["tensors"].pop("experts[1]")

    path = tmp_path / "a.delta.safetensors"
    _rewritten(make.path_of("parts"), path, change)
    with pytest.raises(DeltaError, match="is no tensor of its base|the number of"):
        paring.load_delta(path)


def test_whole_and_part_are_not_both_changed(tmp_path: Path) -> None:
    vector = paring.load_delta(make.path_of("parts"))
    both = paring.load_delta(make.path_of("exact")).only("experts").changes | vector.changes
    made = type(vector)(both, vector.base)
    for options in ({}, {"shard_bytes": 1}):
        with pytest.raises(DeltaError, match="'experts'.* as a whole and in part"):
            paring.save_delta(made, tmp_path / "out", **options)
            paring.load_delta(tmp_path / "out")  # each shard alone is well


def test_shards_of_two_deltas(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    vector = paring.load_delta(make.path_of("exact-places"))
    paring.save_delta(vector, folder, shard_bytes=40)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(make.path_of("new").read_bytes())  # of the same base
    paring.load_delta(folder)
    shard.write_bytes(make.path_of("exact").read_bytes())
    with pytest.raises(DeltaError, match="they differ in 'facts'"):
        paring.load_delta(folder)
    shard.write_bytes(make.path_of("prefix").read_bytes())
    with pytest.raises(DeltaError, match="they differ in 'base'"):
        paring.load_delta(folder)
    shard.unlink()
    shard.symlink_to(make.path_of("new"))
    with pytest.raises(DeltaError, match="is a link to a file outside its folder"):
        paring.load_delta(folder)
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {"base": "0" * 32}))
    with pytest.raises(DeltaError, match=r"is a link|of another delta than .*index\.json: their bases differ"):
        paring.load_delta(folder)
    (folder / INDEX).write_text(json.dumps(index) + " " * (1 << 20))
    with pytest.raises(DeltaError, match="expected at most 1,048,576"):
        paring.load_delta(folder)
    with pytest.raises(DeltaError, match="is an index, expected a delta file or the folder"):
        paring.load_delta(folder / INDEX)


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    vector = paring.load_delta(make.path_of("new"))
    named = type(vector)({"a\n": vector.changes["classifier.weight"]}, vector.base)
    with pytest.raises(DeltaError, match="the new delta is damaged: in its manifest, 'a\\\\n' is not as"):
        paring.save_delta(named, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    origin = type(vector)(vector.changes, type(vector.base)(vector.base.tensors, {}, "a\n\udc80"))
    paring.save_delta(origin, tmp_path / "out")
    assert paring.load_delta(tmp_path / "out").base.origin == "a\ufffd\ufffd"


def test_one_tensor_here_and_two_where_the_delta_was_made() -> None:
    state = {"a": torch.randn(4, 4), "b": torch.zeros(4, 4)}
    state["b"] = state["a"].clone()
    tuned = {n: t + 0.1 for n, t in state.items()}
    model = Model(state)
    model.b = model.a
    vector = paring.diff(state, tuned)
    with vector.apply(model):
        assert_same_bits(dict(model.state_dict()), tuned)
    assert_same_bits(dict(model.state_dict()), state)
    model.a.copy_(tuned["a"])
    paring.diff(state, tuned).revert(model)
    assert_same_bits(dict(model.state_dict()), state)
    for other in (tuned["b"] + 1, state["b"].index_fill(0, torch.tensor(1), 7)):
        with pytest.raises(
            DeltaError, match="'a' and 'b' are one tensor in this model, and the delta changes them differently"
        ):
            paring.diff(state, tuned | {"b": other}).apply(model)
        assert_same_bits(dict(model.state_dict()), state)


def test_a_refusal_half_way_with_memory_shared() -> None:
    state = {"a": torch.ones(4, 4), "b": torch.ones(2, 4), "c": torch.ones(2).half()}
    model = Model(state)
    model.b = model.a[:2]  # not the same tensor, but the same memory
    vector = 1.0 * paring.diff(state, {"a": state["a"] + 1, "b": state["b"] + 2, "c": torch.full((2,), 6e4).half()})
    with pytest.raises(DeltaError, match="'c': the change leads out of the range"):
        (2 * vector).apply(model)
    assert_same_bits(dict(model.state_dict()), state)


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64", "float8_e5m2", "float8_e4m3fn", "int8", "bool", "complex64"])
def test_few_entries_of_any_type(dtype: str, tmp_path: Path) -> None:
    before = torch.zeros(4, 64).to(getattr(torch, dtype))
    after = before.clone()
    after.view(torch.uint8)[2, :3] = torch.tensor([1, 0, 1], dtype=torch.uint8)
    paring.save_delta(paring.diff({"a": before}, {"a": after}), tmp_path / "a")
    assert manifests(tmp_path / "a")[0]["tensors"]["a"]["places"] == "gaps"
    model = Model({"a": before})
    with paring.load_delta(tmp_path / "a").apply(model):
        assert_same_bits(dict(model.state_dict()), {"a": after})
    assert_same_bits(dict(model.state_dict()), {"a": before})


def test_differences_in_numbers_stay_in_their_type() -> None:
    for before, after, fits in (
        (torch.tensor([100], dtype=torch.int8), 27, True),
        (torch.tensor([100], dtype=torch.int8), 28, False),
        (torch.tensor([1], dtype=torch.uint8), -1, True),
        (torch.tensor([1], dtype=torch.uint8), -2.5, False),
        (torch.tensor([0], dtype=torch.int64), 2.0**63, False),
        (torch.tensor([True]), 1.5, False),
        (torch.tensor([240.0]).to(torch.float8_e4m3fn), 208, True),
        (torch.tensor([240.0]).to(torch.float8_e4m3fn), 1000, False),
    ):
        from paring.delta.change import Change
        from paring.delta.places import Everywhere

        change = Change(before.shape, before.dtype, "real", Everywhere(1), torch.tensor([float(after)]))
        if fits:
            assert change.after(before, "a").float().item() == before.float().item() + after
        else:
            with pytest.raises(DeltaError, match="leads out of the range"):
                change.after(before, "a")


def test_golden_files_in_a_table() -> None:
    for name in NAMES:
        summary = summarise(make.path_of(name), by="tensor")
        assert sum(row.stored for row in summary.rows) < summary.num_bytes


VERIFY = """
import resource, sys
from pathlib import Path
from paring import DeltaError
from paring.delta.inspect import verify
verify(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused = ""
try:
    verify(Path(sys.argv[2]))
except DeltaError as error:
    refused = str(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, refused)
"""


@pytest.mark.parametrize("places", ["dense", "scattered"])
@pytest.mark.parametrize("honest", [True, False])
def test_a_small_file_takes_little_memory_without_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: str, honest: bool
) -> None:
    """Signs, all alike: at most 2 KB for each byte of the file, or refused before any."""
    numel = 16_000_000
    made = Everywhere(numel) if places == "dense" else Scattered(torch.arange(numel // 2, numel))
    change = Change(torch.Size((4_000, 4_000)), torch.bfloat16, "real", made, torch.ones(made.count))
    facts = TensorFacts("bfloat16", (4_000, 4_000), "0" * 32)
    vector = paring.TaskVector({"w": ready(change)}, Base({"w": facts}))
    if not honest:
        monkeypatch.setattr("paring.delta.codec.values._MOST_VALUES", 2_048)
    path, first = tmp_path / "x.delta.safetensors", GOLDEN / "real-sign.delta.safetensors"
    size = paring.save_delta(vector, path, values="sign")
    done = subprocess.run([sys.executable, "-c", VERIFY, first, path], capture_output=True, text=True, check=True)
    grown, _, refused = done.stdout.strip().partition(" ")
    assert size > made.count / 70 if honest else size < 80_000
    assert int(grown) < (2_000 * size if honest else 24 << 20)
    assert ("compressed bytes claim to hold" in refused) != honest


def low_rank_file(tmp_path: Path, low: LowRank, shape: tuple[int, ...]) -> Path:
    facts = TensorFacts("float32", shape, "0" * 32)
    lazy = low_rank(torch.Size(shape), torch.float32, lambda: low, "'w'")
    paring.save_delta(paring.TaskVector({"w": lazy}, Base({"w": facts})), tmp_path / "x.delta.safetensors")
    return tmp_path / "x.delta.safetensors"


def test_factors_of_a_product_that_no_memory_holds(tmp_path: Path) -> None:
    """They are verified and summarised, and not multiplied."""
    path = low_rank_file(tmp_path, LowRank(torch.ones(1 << 22, 1), torch.ones(1, 1 << 22)), (1 << 22, 1 << 22))
    assert verify(path) == 1 and summarise(path).rows[0].coding == "real dense lowrank 1"
    with pytest.raises(DeltaError, match="is not the base of this delta"):
        paring.load_delta(path, {"w": torch.ones(2, 2)})


@pytest.mark.parametrize(
    ("low", "message"),
    [
        (LowRank(torch.ones(4, 2), torch.ones(3, 5)), r"'w': factors \[4, 2\] and \[3, 5\] are none of \[4, 5\]"),
        (LowRank(torch.ones(4, 0), torch.ones(0, 5), 1.0), "are none of|no rank"),
        (LowRank(torch.ones(4, 2), torch.ones(2, 5).double()), "expected fp32, bf16 or fp16"),
        (LowRank(torch.ones(4, 2), torch.full((2, 5), torch.inf)), "a factor holds NaN or infinity"),
    ],
)
def test_factors_that_are_none(tmp_path: Path, low: LowRank, message: str) -> None:
    if not low.rank:  # zero, and so not written at all
        assert not paring.load_delta(low_rank_file(tmp_path, low, (4, 5))).changes
        return
    with pytest.raises(DeltaError, match=message):
        low_rank_file(tmp_path, low, (4, 5))
    assert not list(tmp_path.iterdir())


def test_a_product_out_of_range_is_refused() -> None:
    low = LowRank(torch.full((2, 1), 1e30), torch.full((1, 2), 1e30))
    with pytest.raises(DeltaError, match="'w': the product of its factors is not finite; scale them down"):
        low.change(torch.Size((2, 2)), torch.float32, "'w'")
    assert low.times(1e-10).scale == 1e-10 and not low.is_zero() and low.times(0.0).is_zero()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.update(rank=2), "its right factor is .*; expected rank 2"),
        (lambda e: e.update(rank=0), "the rank of 'layer.weight'"),
        (lambda e: e.update(rank=True), "the rank of 'layer.weight'"),
        (lambda e: e.update(scale=10**400), "the scale of 'layer.weight'"),
        (lambda e: e.update(scale=float("inf")), "Infinity is no JSON"),
        (lambda e: e.update(scale="1"), "the scale of 'layer.weight'"),
        (lambda e: e.update(group=2), "the group of 'layer.weight'"),
        (lambda e: e.pop("scale"), "its manifest lacks 'scale'"),
        (lambda e: e.update(places="mask", count=1), "the value type of 'layer.weight'"),
        (lambda e: e.update(values="fp32"), "the parts of 'layer.weight'"),
        (lambda e: e["parts"].pop("left"), "is only in its manifest, or only in the file|the parts of"),
        (lambda e: e["parts"]["left"].__setitem__(0, "zstd"), "the compression of 'layer.weight'"),
        (lambda e: e["parts"]["left"].__setitem__(1, 95), "96 bytes of left are stored, the manifest says 95"),
    ],
)
def test_what_the_manifest_may_not_say_of_factors(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    _rewritten(make.path_of("low-rank"), tmp_path / "x.safetensors", lambda m: change(m["tensors"]["layer.weight"]))
    with pytest.raises(DeltaError, match=message):
        verify(tmp_path / "x.safetensors")
