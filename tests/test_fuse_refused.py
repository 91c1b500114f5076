"""What a merge refuses: every case names the file and the tensor or line, and leaves nothing behind."""

import errno
import os
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
from adapters import gpt2, llama
from conftest import bert
from merges import configure, edit, family, tuned, weighted, whole, write
from paring.cli.main import main
from paring.delta.change import exact_change
from paring.delta.places import Everywhere
from paring.delta.taskvector import ready
from paring.fuse.engine import fuse

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
            r"line 1: '(?!.*mlp).*': task_arithmetic: model 1: no weight",
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


def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = family(tmp_path, 2)
    missing(paths)
    for more in ([], ["--dry-run"]):
        assert main(["fuse", str(write(tmp_path, weighted(paths))), str(tmp_path / "out"), *more]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("paring: error: ") and f"has no tensor '{UP}'" in error
    assert main(["fuse", str(tmp_path / "nothing.yml"), str(tmp_path / "out")]) == 2
    assert "nothing.yml" in capsys.readouterr().err


def test_models_of_other_architectures(tmp_path: Path) -> None:
    base: nn.Module = bert()
    base.save_pretrained(tmp_path / "base")
    tuned(base, 1).save_pretrained(tmp_path / "tuned")
    gpt2().save_pretrained(tmp_path / "gpt2")
    paths = [str(tmp_path / n) for n in ("base", "tuned", "gpt2")]
    refused(tmp_path, weighted(paths), r"gpt2/.* has no tensor 'bert\.|gpt2/.* has \d+ layers|share no")
