"""What a merge refuses: every case names the file and the tensor or line, and leaves nothing behind."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import paring
from adapters import adapted, gpt2, llama
from conftest import bert
from merges import configure, edit, family, tuned, weighted, whole, write
from paring.cli.main import main
from paring.delta.change import exact_change
from paring.delta.places import Everywhere
from paring.delta.taskvector import ready
from paring.fuse.config import read_config
from paring.fuse.engine import fuse
from paring.fuse.output import Output, hidden
from paring.fuse.plan import make_plan
from paring.fuse.record import run_key

UP = "model.layers.0.mlp.up_proj.weight"
Change = Callable[[list[str]], None]


def refused(tmp_path: Path, config: Any, message: str, **settings: Any) -> None:
    """That a merge ends with an error that says this, and that nothing has changed on the disk."""
    path = write(tmp_path, config)
    before = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises((ValueError, OSError), match=message):
        fuse(path, tmp_path / "out", **settings)
    assert {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def up(paths: list[str], *, which: int = 1) -> torch.Tensor:
    return whole(paths[which])[UP].clone()


@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "ties", "dare_ties", "della", "breadcrumbs", "passthrough"])
@pytest.mark.parametrize(("value", "said"), [(float("nan"), "nan"), (float("inf"), "inf"), (float("-inf"), "-inf")])
def test_one_value_that_is_not_finite(tmp_path: Path, method: str, value: float, said: str) -> None:
    paths = family(tmp_path, 2, llama().bfloat16())
    bad = up(paths)
    bad[1, 7] = value
    edit(paths[1], **{UP.replace(".", "__"): bad})
    config = weighted(paths, method)
    if method == "passthrough":
        config = {"merge_method": method, "models": [{"model": paths[1]}]}
    message = rf"tuned1/model.safetensors: tensor '{UP}' holds {said} at entry {bad.shape[1] + 7}; expected finite numbers"
    refused(tmp_path, config, message)


def test_a_base_or_a_delta_that_is_not_finite(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)
    delta = str(tmp_path / "two.delta.safetensors")
    before, bad = up(paths, which=0), up(paths, which=0)
    bad[0, 0] = float("nan")
    vector = paring.diff(paths[0], paths[2])
    change = exact_change(before.view(-1), bad.view(-1), Everywhere(bad.numel()), bad.shape)  # `paring diff` would refuse it
    paring.save_delta(replace(vector, changes={**vector.changes, UP: ready(change)}), delta)
    refused(tmp_path, weighted([*paths[:2], delta]), rf"two.delta.safetensors: tensor '{UP}' holds nan at entry 0")
    bad = up(paths, which=0)
    bad[0, 1] = float("inf")
    edit(paths[0], **{UP.replace(".", "__"): bad})
    refused(
        tmp_path,
        weighted(paths[:2], "ties") | {"scope": "global"},
        rf"base/model.safetensors: tensor '{UP}' holds inf at entry 1",
    )


def test_a_result_out_of_the_types_range(tmp_path: Path) -> None:
    paths = family(tmp_path, 1)
    edit(paths[1], **{UP.replace(".", "__"): up(paths) * 1e7})
    refused(
        tmp_path,
        weighted(paths) | {"dtype": "float16"},
        rf"'{UP}': the merged value is -?inf at entry \d+, out of the range of",
    )


def another_shape(paths: list[str]) -> None:
    edit(paths[2], **{UP.replace(".", "__"): torch.randn(41, 24)})


def one_entry(paths: list[str]) -> None:
    edit(paths[2], model__norm__weight=torch.ones(1))


def missing(paths: list[str]) -> None:
    edit(paths[2], **{UP.replace(".", "__"): None})


def missing_in_the_base(paths: list[str]) -> None:
    edit(paths[0], **{UP.replace(".", "__"): None})


def extra(paths: list[str]) -> None:
    edit(paths[2], score__weight=torch.randn(2, 24), score__bias=torch.zeros(2))


def no_head(paths: list[str]) -> None:
    edit(paths[2], lm_head__weight=None)


def more_layers(paths: list[str]) -> None:
    base = llama()
    config = type(base.config)(**(base.config.to_dict() | {"num_hidden_layers": 3, "layer_types": None}))
    type(base)(config).save_pretrained(paths[2])


def larger_vocabulary(paths: list[str]) -> None:
    base = llama()
    base.resize_token_embeddings(53)
    base.save_pretrained(paths[2])


def whole_numbers(paths: list[str]) -> None:
    edit(paths[2], **{UP.replace(".", "__"): torch.ones(40, 24, dtype=torch.int32)})


def cut_off(paths: list[str]) -> None:
    file = Path(paths[2]) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def too_long(paths: list[str]) -> None:
    file = Path(paths[2]) / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"\0" * 100)


def damaged_header(paths: list[str]) -> None:
    file = Path(paths[2]) / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[20] ^= 0xFF
    file.write_bytes(bytes(raw))


def no_safetensors(paths: list[str]) -> None:
    (Path(paths[2]) / "model.safetensors").write_bytes(b"<html>not found</html>")


def empty_file(paths: list[str]) -> None:
    (Path(paths[2]) / "model.safetensors").write_bytes(b"")


def lost_shard(paths: list[str]) -> None:
    llama().save_pretrained(paths[2], max_shard_size="10KB")
    (Path(paths[2]) / "model.safetensors").unlink(missing_ok=True)
    sorted(Path(paths[2]).glob("model-*.safetensors"))[1].unlink()


def gone(paths: list[str]) -> None:
    import shutil

    shutil.rmtree(paths[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            another_shape,
            rf"'{UP}' has shape \[41, 24\] in .*tuned2/model.safetensors and \[40, 24\] in .*base/model.safetensors",
        ),
        (one_entry, r"'model.norm.weight' has shape \[1\] in .*tuned2.* and \[24\] in .*base"),  # which would broadcast
        (missing, rf"tuned2/model.safetensors has no tensor '{UP}', which .*base.* has; take a checkpoint"),
        (missing_in_the_base, rf"tuned1/.* has 1 tensors that .*base.* does not have: '{UP}'; --allow extra"),
        (extra, r"tuned2/.* has 2 tensors that .* does not have: 'score.bias', 'score.weight'; --allow extra leaves them out"),
        (no_head, r"tuned2/.* has no tensor 'lm_head.weight', which .* has, and its configuration ties it to no other"),
        (more_layers, r"tuned2/.* has 3 layers 'model.layers.…', .*base.* has 2; whole models need as many"),
        (larger_vocabulary, r"'\S*' has shape \[53, 24\] in .*tuned2.*: vocabularies of 53 and 50 entries; tokenizer_source"),
        (whole_numbers, rf"'{UP}' is torch.int32 in .*tuned2.* and torch.float32 in .*base"),
        (cut_off, r"merge.yml, line 7: .*tuned2/model.safetensors is [\d,]+ bytes long, expected .* was cut off"),
        (too_long, r"merge.yml, line 7: .*tuned2/model.safetensors is [\d,]+ bytes long, expected"),
        (damaged_header, r"merge.yml, line 7: .*tuned2/model.safetensors"),
        (no_safetensors, r"merge.yml, line 7: .*tuned2/model.safetensors claims a header of"),
        (empty_file, r"merge.yml, line 7: .*tuned2/model.safetensors is 0 bytes"),
        (lost_shard, r"merge.yml, line 7: .*tuned2/model.safetensors.index.json names \d+ files, of which 1 are missing"),
        (gone, r"merge.yml, line 7: there is no file or folder .*tuned2"),
    ],
)
def test_models_that_do_not_agree(tmp_path: Path, change: Change, message: str) -> None:
    paths = family(tmp_path, 2)
    change(paths)
    refused(tmp_path, weighted(paths), message)


def a_torch_file(tmp_path: Path, paths: list[str]) -> tuple[str, Path]:
    file = tmp_path / "two" / "pytorch_model.bin"
    file.parent.mkdir()
    torch.save(whole(paths[2]), file)
    return str(file.parent), file


def a_delta(tmp_path: Path, paths: list[str]) -> tuple[str, Path]:
    file = tmp_path / "two.delta.safetensors"
    paring.save_delta(paring.diff(paths[0], paths[2]), file)
    return str(file), file


def an_adapter(tmp_path: Path, paths: list[str]) -> tuple[str, Path]:
    adapted(llama(), tmp_path / "two", target_modules=["q_proj"])
    return str(tmp_path / "two"), tmp_path / "two" / "adapter_model.safetensors"


@pytest.mark.filterwarnings("ignore")  # PEFT's own
@pytest.mark.parametrize("made", [a_torch_file, a_delta, an_adapter])
@pytest.mark.parametrize("share", [0.99, 0.5, 0.01, 0])
def test_a_file_that_was_cut_off(tmp_path: Path, made: Callable[[Path, list[str]], tuple[str, Path]], share: float) -> None:
    paths = family(tmp_path, 2)
    where, file = made(tmp_path, paths)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    refused(tmp_path, weighted([*paths[:2], where]), rf"merge.yml, line 7: .*{file.name}")


def test_extra_tensors_are_left_out_when_asked_to(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)
    extra(paths)
    fuse(write(tmp_path, weighted(paths)), tmp_path / "out", allow=["extra"])
    assert whole(tmp_path / "out").keys() == whole(paths[0]).keys()


def test_an_unknown_permission(tmp_path: Path) -> None:
    refused(tmp_path, weighted(family(tmp_path, 2)), "allow: 'everything'; expected 'extra'", allow=["everything"])


def test_a_missing_head_that_is_tied(tmp_path: Path) -> None:
    """The configuration decides, not the shapes: a head that is the embeddings is them."""
    paths = family(tmp_path, 2, llama(tied=True))
    for path in paths[:2]:
        edit(path, lm_head__weight=whole(path)["model.embed_tokens.weight"].clone())
    fuse(write(tmp_path, weighted(paths)), tmp_path / "out")
    out = whole(tmp_path / "out")
    torch.testing.assert_close(out["lm_head.weight"], out["model.embed_tokens.weight"])
    configure(paths[2], tie_word_embeddings=False)
    refused(tmp_path, weighted(paths), r"tuned2/.* has no tensor 'lm_head.weight', .* ties it to no other", overwrite=True)


def config(paths: list[str], **changes: Any) -> dict[str, Any]:
    return {k: v for k, v in (weighted(paths) | changes).items() if v is not None}


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("ties", {"density": 2}, r"merge.yml, line 7: density is 2; expected a number in \(0, 1\]"),
        ("ties", {"density": 0}, r"merge.yml, line 7: density is 0; expected a number in \(0, 1\]"),
        ("ties", {"density": [0.5, 2]}, r"merge.yml, line 9: density is 2; expected a number in \(0, 1\]"),
        ("dare_ties", {"density": 0}, r"line 7: density is 0"),
        ("linear", {"weight": 10**400}, r"line 6: weight is a number of 1329 bits; expected a number"),
        ("della", {"density": 1.5}, r"line 7: density is 1.5"),
        ("breadcrumbs", {"density": 0.5, "gamma": -0.1}, r"line 8: gamma is -0.1"),
        (
            "breadcrumbs",
            {"density": 0.5, "gamma": 0},
            r"line 8: gamma is 0; expected a number in \(0, 1\)",
        ),  # mergekit: the base
        ("breadcrumbs", {"density": 0.5, "gamma": 1}, r"line 8: gamma is 1"),
        (
            "task_arithmetic",
            {"wieght": 1},
            r"line 7: parameters of a model has the unknown key 'wieght'; did you mean 'weight'",
        ),
        ("task_arithmetic", {"density": 1}, r"line 7: parameters of a model has the unknown key 'density'; known are weight"),
        (
            "task_arithmetic",
            {"weight": [{"filter": "mpl", "value": 1}, {"value": 0}]},
            r"line 7: filter 'mpl' of weight is in no ten",
        ),
        (
            "task_arithmetic",
            {"weight": [{"filter": "mlp", "value": 1}]},
            r"line 4: '(?!.*mlp).*': task_arithmetic: .*tuned1: no weight",
        ),
    ],
)
def test_parameters(tmp_path: Path, method: str, parameters: dict[str, Any], message: str) -> None:
    paths = family(tmp_path, 2)
    more = {"scope": parameters["scope"]} if "scope" in parameters else {}
    own = {k: v for k, v in parameters.items() if k not in more}
    refused(tmp_path, weighted(paths, method, **own) | more, message)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_weights_that_sum_to_zero(tmp_path: Path, method: str) -> None:
    paths = family(tmp_path, 2)
    asked = weighted(paths, method) | {"parameters": {"normalize": True}}
    asked["models"][1]["parameters"]["weight"] = -0.5
    refused(tmp_path, asked, rf"line 1: '\S+': {method}: weights \[0.5, -0.5\] sum to zero, and normalize divides by their sum")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model": None}, "line 1: task_arithmetic: no base; expected the pretrained model"),
        ({"merge_method": "tasc_arithmetic"}, "line 1: merge_method is 'tasc_arithmetic'; the nearest is 'task_arithmetic'"),
        (
            {"merge_method": "emr", "models": [{"model": "a"}], "tokenizer_source": "union"},
            "emr writes a bank of tasks of the base, whose vocabulary stays; leave tokenizer_source out",
        ),
        ({"models": []}, "line 3: no model"),
        ({"base_modle": "x"}, "unknown key 'base_modle'; did you mean 'base_model'"),
        ({"merge_method": "passthrough", "models": [{"model": "a"}, {"model": "b"}]}, "there is no file or folder a"),
        ({"tokenizer_source": "base"}, r"has no tokenizer.json, by which vocabularies are aligned"),
        ({"scope": "global"}, "scope is 'global'; task_arithmetic takes tensor"),
    ],
)
def test_configurations(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    refused(tmp_path, config(family(tmp_path, 2), **changes), message)


def test_slices(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)

    def slices(*runs: Any, **more: Any) -> dict[str, Any]:
        sources = [{"model": p, "layer_range": r, "parameters": {"weight": 1.0}} for p, r in runs]
        return {"merge_method": "linear", "slices": [{"sources": sources}], **more}

    refused(tmp_path, slices((paths[1], [1, 3])), r"line 4: layer_range \[1, 3\] of .*tuned1, which has 2 layers")
    with_base = slices((paths[1], [0, 2]), merge_method="task_arithmetic", base_model=paths[0])
    refused(
        tmp_path, with_base, r"line 3: base_model .*base is not among the sources of this slice; add it with its layer_range"
    )
    bert().save_pretrained(tmp_path / "bert")
    refused(
        tmp_path,
        slices((paths[1], [0, 2]), (str(tmp_path / "bert"), [0, 2])),
        "bert.* has no tensor 'model.embed_tokens.weight'",
    )
    edit(paths[2], **{"model__layers__1__mlp__up_proj__weight": None})
    mixed = slices((paths[1], [1, 2]), (paths[2], [1, 2]))
    refused(tmp_path, mixed, r"tuned1/.* has 'model.layers.1.mlp.up_proj.weight', and .*tuned2/.* no '.*'; layers of one make")
    edit(paths[1], **{n.replace(".", "__"): None for n in whole(paths[1]) if "layers" in n})
    refused(tmp_path, slices((paths[1], [0, 2])), r"tuned1.* has no numbered layers; slices and layer_range need one")


def test_deltas_of_another_base_or_without_one(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)
    delta = str(tmp_path / "one.delta.safetensors")
    paring.save_delta(paring.diff(paths[2], paths[1]), delta)
    refused(tmp_path, weighted([paths[0], paths[1], delta]), r"line 7: .*base.* is not the base of this delta: the values of '")
    models = [{"model": m, "parameters": {"weight": 1.0}} for m in (delta, paths[1])]
    refused(tmp_path, {"merge_method": "linear", "models": models}, r"line 3: .*one.delta.* is a delta; expected its base")
    models[0]["model"] = f"{paths[2]}+{paths[1]}"
    refused(
        tmp_path,
        {"merge_method": "linear", "models": models},
        r"tuned1 after the plus sign is no delta and no folder of a PEFT",
    )
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    refused(tmp_path, weighted([*paths, str(tmp_path / "adapter")]), r"line 10: .*adapter_config.json: peft_type is None")


def test_an_output_that_is_there(tmp_path: Path) -> None:
    paths = family(tmp_path, 1)
    (tmp_path / "out").mkdir()
    refused(tmp_path, weighted(paths), "out is there already")
    (tmp_path / "out").rmdir()
    (tmp_path / "out").write_text("x")
    refused(tmp_path, weighted(paths), "out is a file, expected a folder or nothing", overwrite=True)


@pytest.mark.parametrize("dry", [False, True])
def test_an_output_onto_an_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], dry: bool) -> None:
    """Whatever may be overwritten, the models that are merged may not."""
    paths = family(tmp_path, 2)
    (tmp_path / "link").symlink_to(paths[1])
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "model.safetensors").symlink_to(Path(paths[2]) / "model.safetensors")
    delta = Path(paths[0]) / "one.delta.safetensors"
    paring.save_delta(paring.diff(paths[0], paths[1]), delta)
    more = ["--dry-run"] if dry else []
    linked = [paths[0], str(tmp_path / "link"), str(tmp_path / "far" / "model.safetensors")]
    for models, out, said in (
        (paths, paths[1], r"tuned1 holds .*tuned1/\S+, which .*tuned1 is read from; expected an output apart"),
        (paths, paths[0], r"base holds .*base/\S+, which .*base is read from"),
        (paths, str(tmp_path / "link"), r"link holds .*tuned1"),
        (linked, paths[1], r"tuned1 holds .*link/\S+"),
        (linked, paths[2], r"tuned2 holds .*far/model.safetensors"),
        (linked, str(tmp_path / "far"), r"far holds .*far/model.safetensors"),
        ([paths[2], *paths[1:]], str(Path(paths[1]) / "out"), r"out lies in .*tuned1, which is read"),
        ([paths[0], paths[2], str(delta)], paths[0], r"base holds"),
    ):
        before = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*") if p.name != "merge.yml"}
        assert main(["fuse", str(write(tmp_path, weighted(models))), out, "--overwrite", *more]) == 2
        assert re.search(said, capsys.readouterr().err)
        assert {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*") if p.name != "merge.yml"} == before


def test_an_input_that_changes_while_it_is_read(tmp_path: Path) -> None:
    paths = family(tmp_path, 1)
    configuration = write(tmp_path, weighted(paths))
    done: list[int] = []

    def meddle(num_bytes: int, total: int) -> None:
        done.append(num_bytes)
        if len(done) == 3:
            os.utime(Path(paths[1]) / "model.safetensors", ns=(1, 1))

    with pytest.raises(paring.DeltaError, match=r"tuned1.* was written to while it was read; fuse again"):
        fuse(configuration, tmp_path / "out", report=meddle)
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def from_a_delta(tmp_path: Path, paths: list[str]) -> tuple[dict[str, Any], list[Path]]:
    """A merge of a delta and of an adapter on a base that no key names, and what it is made from."""
    delta = tmp_path / "one.delta"
    paring.save_delta(paring.diff(paths[0], paths[1]), delta, shard_bytes=10_000)
    adapted(llama(), tmp_path / "adapter", target_modules=["q_proj"])
    models = [{"model": f"{paths[0]}+{m}", "parameters": {"weight": 1.0}} for m in (delta, tmp_path / "adapter")]
    shards = [p for p in delta.iterdir() if p.suffix == ".safetensors"]
    files = [shards[0], *(p for p in delta.iterdir() if p.suffix == ".json"), Path(paths[0]) / "model.safetensors"]
    files += [Path(paths[0]) / "config.json", *(tmp_path / "adapter").glob("adapter_*")]
    return {"merge_method": "linear", "models": models}, files


def touched(path: Path) -> None:
    """Changed in its content, or, of weights, in its times."""
    if path.suffix == ".json":
        path.write_bytes(path.read_bytes() + b" ")
    else:
        os.utime(path, ns=(1, 1))


@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_deltas_adapters_and_their_bases_that_change_while_they_are_read(tmp_path: Path) -> None:
    paths = family(tmp_path, 1)
    asked, files = from_a_delta(tmp_path, paths)
    configuration = write(tmp_path, asked)
    assert len(files) == 6
    for path in files:
        done: list[int] = []

        def meddle(num_bytes: int, total: int, path: Path = path, done: list[int] = done) -> None:
            done.append(num_bytes)
            if len(done) == 3:
                touched(path)

        with pytest.raises(paring.DeltaError, match=rf"{path} was written to while it was read; fuse again"):
            fuse(configuration, tmp_path / "out", report=meddle)
    torch.save(whole(paths[1]), tmp_path / "plain.bin")
    asked["models"][0]["model"] = str(tmp_path / "plain.bin")

    def meddle_again(num_bytes: int, total: int) -> None:
        os.utime(tmp_path / "plain.bin", ns=(1, 1))

    with pytest.raises(paring.DeltaError, match=r"plain.bin was written to while it was read"):
        fuse(write(tmp_path, asked), tmp_path / "out", report=meddle_again)


@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_what_a_run_is_known_by(tmp_path: Path) -> None:
    """Whatever it is made from: tensors that another run finished are not taken up."""
    paths = family(tmp_path, 1)
    asked, files = from_a_delta(tmp_path, paths)
    config = read_config(write(tmp_path, asked))
    keys = [run_key(make_plan(config), "cpu", 1, [], {})]
    for path in files:
        touched(path)
        keys.append(run_key(make_plan(config), "cpu", 1, [], {}))
    assert len(set(keys)) == len(keys)


@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_an_adapter_is_known_by_its_scale(tmp_path: Path) -> None:
    paths = family(tmp_path, 1)
    asked, _ = from_a_delta(tmp_path, paths)
    configuration, found = write(tmp_path, asked), []
    for i, alpha in enumerate((8, 16)):
        path = tmp_path / "adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": alpha}))
        fuse(configuration, tmp_path / f"out{i}")
        found.append(json.loads((tmp_path / f"out{i}" / "paring-fuse.json").read_text())["models"][1])
    assert [f["settings"]["lora_alpha"] for f in found] == [8, 16] and found[0]["fingerprint"] == found[1]["fingerprint"]


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before anything is written."""
    import shutil

    paths = family(tmp_path, 1)
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    path = write(tmp_path, weighted(paths))
    with pytest.raises(OSError, match=r"out takes [\d,]+ bytes, of which .* has 1,000 free; nothing was written") as error:
        fuse(path, tmp_path / "out")
    assert error.value.errno == errno.ENOSPC
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "merge.yml", "tuned1"]


def test_a_disk_that_fills_up_meanwhile(tmp_path: Path) -> None:
    """Where there is room by the look of it, and the system says no: nothing is left."""
    paths = family(tmp_path, 1)
    path = write(tmp_path, weighted(paths))

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    code = "import sys; from paring.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "fuse", str(path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited)
    assert done.returncode == 2 and "File too large" in done.stderr and "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "merge.yml", "tuned1"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left"),
        (MemoryError(), r"out of memory \(no more to be had\); --threads 1"),
        (torch.OutOfMemoryError("CUDA out of memory"), r"out of memory \(CUDA out of memory\)"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), r"out of memory \(\[enforce fail\]"),
        (ValueError("no number"), "no number"),
    ],
)
@pytest.mark.parametrize("finished", [0, 3])
def test_a_machine_that_gives_out(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    said: str,
    finished: int,
) -> None:
    """What was finished by then is kept, as after a kill; not after an error of the input, and not where nothing was."""
    paths = family(tmp_path, 1)
    config, out = str(write(tmp_path, weighted(paths))), tmp_path / "out"
    before = Output.write

    def failing(output: Output, name: str, tensor: torch.Tensor) -> None:
        if len(output.hashes) >= finished:
            raise error
        before(output, name, tensor)

    with monkeypatch.context() as patched:
        patched.setattr(Output, "write", failing)
        assert main(["fuse", config, str(out), "--threads", "1"]) == 2
    kept = finished and not isinstance(error, ValueError)
    told = capsys.readouterr().err
    assert re.search(said, told) and ("the same command goes on from here" in told) == bool(kept)
    assert hidden(out).is_dir() == bool(kept) and not out.exists()
    assert fuse(config, out).kept == (finished if kept else 0)


def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = family(tmp_path, 2)
    missing(paths)
    for more in ([], ["--dry-run"]):
        assert main(["fuse", str(write(tmp_path, weighted(paths))), str(tmp_path / "out"), *more]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("paring: error: ") and f"has no tensor '{UP}'" in error
    assert main(["fuse", str(tmp_path / "nothing.yml"), str(tmp_path / "out")]) == 2
    assert "nothing.yml" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_device_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    config = str(write(tmp_path, weighted(family(tmp_path, 1))))
    for device, said in (
        ("foo", "error: device is 'foo'; expected cpu, cuda"),
        ("meta", "error: device 'meta' holds no values; expected cpu"),
        ("cuda:99", "error: device 'cuda:99': nothing can be computed there: "),
    ):
        assert main(["fuse", config, str(tmp_path / "out"), "--device", device, *more]) == 2
        assert said in capsys.readouterr().err


def test_what_is_allowed_stands_anywhere(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)
    extra(paths)
    config = str(write(tmp_path, weighted(paths)))
    for i, words in enumerate((["--allow", "extra", config, "OUT"], [config, "OUT", "--allow", "extra", "--allow", "extra"])):
        assert main(["fuse", *(str(tmp_path / f"out{i}") if w == "OUT" else w for w in words)]) == 0


def test_models_of_other_architectures(tmp_path: Path) -> None:
    base: nn.Module = bert()
    base.save_pretrained(tmp_path / "base")
    tuned(base, 1).save_pretrained(tmp_path / "tuned")
    gpt2().save_pretrained(tmp_path / "gpt2")
    paths = [str(tmp_path / n) for n in ("base", "tuned", "gpt2")]
    refused(tmp_path, weighted(paths), r"gpt2/.* has no tensor 'bert\.|gpt2/.* has \d+ layers|share no")
