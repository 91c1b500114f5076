"""``emr``: a merge that is written as a bank, by the paper's formulas, from the configuration to the swap."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import paring
from adapters import gpt2, llama
from conftest import assert_same_bits, bert, bits
from merges import content, edit, family, whole, write
from paring import Bank, DeltaError
from paring.bank.masked import KEY, load_task, open_masked
from paring.cli.main import main
from paring.delta.change import Change
from paring.delta.places import Scattered
from paring.delta.taskvector import TaskVector, ready
from paring.fuse.config import ConfigError
from paring.fuse.engine import fuse
from paring.fuse.estimate import estimate
from paring.fuse.inputs import FuseError


def config(paths: list[str], **more: Any) -> dict[str, Any]:
    return {"merge_method": "emr", "base_model": paths[0], "models": [{"model": p} for p in paths[1:]]} | more


def by_hand(base: Mapping[str, Tensor], models: list[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Each task's weights by the paper: elect, mask, rescale. All tensors in one vector, fp64."""

    def flat(state: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([state[n].double().view(-1) for n in base])

    taus = torch.stack([flat(m) - flat(base) for m in models])
    sign = torch.where(taus.sum(0) >= 0, 1.0, -1.0).double()
    unified = sign * torch.where(taus * sign > 0, taus.abs(), 0.0).max(0).values
    out = []
    for tau in taus:
        mask = tau * unified > 0
        scale = tau.abs().sum() / (unified * mask).abs().sum()
        served, tensors = flat(base) + scale * mask * unified, {}
        for name, tensor in base.items():
            tensors[name], served = served[: tensor.numel()].view(tensor.shape), served[tensor.numel() :]
        out.append(tensors)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_task_is_served(tmp_path: Path, dtype: torch.dtype) -> None:
    paths = family(tmp_path, 3, llama().to(dtype))
    fused = fuse(write(tmp_path, config(paths)), tmp_path / "bank")
    assert {p.name for p in fused.files if p.parent.name == "bank"} == {
        *(f"tuned{i}.mask.safetensors" for i in (1, 2, 3)),
        "README.md",
        "paring-fuse.json",
        "paring-fuse.yml",
    }
    model = type(llama()).from_pretrained(paths[0])
    before = bits(model)
    expected = by_hand(whole(paths[0]), [whole(p) for p in paths[1:]])
    with Bank(model, tmp_path / "bank") as bank:
        assert bank.list() == ["tuned1", "tuned2", "tuned3"]
        for name, served in zip(bank.list(), expected, strict=True):
            bank.activate(name)
            state = model.state_dict()
            for tensor, right in served.items():
                eps = torch.finfo(dtype).eps  # a difference, of 0.1 at most, and its sum are rounded to the type
                torch.testing.assert_close(state[tensor].double(), right, rtol=eps, atol=max(0.1 * eps, 1e-7))
            out = tmp_path / f"{name}-whole"
            arguments = ["bank", "activate", str(tmp_path / "bank"), name, "--base", paths[0], "--out", str(out)]
            assert main(arguments) == 0
            written = whole(out)
            assert_same_bits(written, {n: state[n] for n in written})  # on disk as in memory
    assert_same_bits(bits(model), before)


def test_a_thousand_swaps_are_exact(tmp_path: Path) -> None:
    paths = family(tmp_path, 3, llama().bfloat16())
    edit(paths[0], model__norm__weight=-torch.zeros(24, dtype=torch.bfloat16))  # a zero keeps its sign where a mask is 0:
    edit(paths[1], model__norm__weight=-torch.ones(24, dtype=torch.bfloat16))  # the others have 1
    fuse(write(tmp_path, config(paths)), tmp_path / "bank")
    model = type(llama()).from_pretrained(paths[0])
    expected: dict[str | None, dict[str, Tensor]] = {None: bits(model)}
    bank = Bank(model, tmp_path / "bank")
    for name in bank.list():
        with load_task(tmp_path / "bank" / f"{name}.mask.safetensors").apply(model):
            expected[name] = bits(model)
    bank.add("other", paring.diff(expected[None], expected["tuned1"]))  # a bank may hold deltas, too
    choices = random.Random(0)
    for i in range(1000):
        name = choices.choice([*bank.list(), None])
        bank.deactivate() if name is None else bank.activate(name)
        if i % 50 == 0 or i == 999:
            assert_same_bits(bits(model), expected["tuned1" if name == "other" else name])
    bank.close()
    assert_same_bits(bits(model), expected[None])


def test_tasks_have_the_vector_in_common(tmp_path: Path) -> None:
    """In memory each adds a bit an entry; on disk, too."""
    paths = family(tmp_path, 3)
    fuse(write(tmp_path, config(paths)), tmp_path / "bank")
    model = type(llama()).from_pretrained(paths[0])
    bank = Bank(model, tmp_path / "bank")
    for name in bank.list():
        bank.activate(name)
    first, *others = (bank._prepared[name] for name in bank.list())
    entries = sum(t.numel() for t in whole(paths[0]).values())
    for prepared in others:
        assert all(a.before is b.before and a.change is b.change for a, b in zip(first, prepared, strict=True))
        assert sum(e.bits.numel() for e in prepared) <= entries / 8 + len(prepared)
    assert main(["bank", "ls", str(tmp_path / "bank")]) == 0
    for i in (1, 2, 3):
        with safe_open(tmp_path / "bank" / f"tuned{i}.mask.safetensors", "pt") as file:
            assert sum(t.numel() for t in tensors_of(file)) <= entries / 8 + len(first)
    alive = bank._common
    assert len(alive) == 1
    bank.deactivate()
    for name in bank.list():
        bank.unload(name)
    del first, others, prepared
    bank._on = ()
    assert not alive


def test_deltas_with_heads_of_their_own(tmp_path: Path) -> None:
    """A new head travels with its task; ``own`` says so of one that the base has."""
    base = bert()
    base.bert.save_pretrained(tmp_path / "base")
    states, paths = [], [str(tmp_path / "base")]
    for i in (1, 2):
        torch.manual_seed(i)
        tuned = bert()
        state = {n: base.state_dict()[n] + 0.02 * torch.randn(t.shape) for n, t in tuned.state_dict().items()}
        tuned.load_state_dict(state)
        tuned.save_pretrained(tmp_path / f"whole{i}")
        if i == 1:
            paths.append(str(tmp_path / "task1.delta.safetensors"))
            paring.save_delta(paring.diff(tmp_path / "base", tmp_path / "whole1"), paths[-1])
        else:  # as ``paring tune`` leaves it
            (tmp_path / "task2").mkdir()
            paths.append(str(tmp_path / "task2"))
            paring.save_delta(paring.diff(tmp_path / "base", tmp_path / "whole2"), tmp_path / "task2/model.delta.safetensors")
        states.append(state)
    own = {"own": [{"filter": "pooler", "value": True}, {"value": False}]}
    fuse(write(tmp_path, config(paths, parameters=own)), tmp_path / "bank")
    model = bert()
    model.bert.load_state_dict(base.bert.state_dict())
    bank = Bank(model, tmp_path / "bank")
    assert bank.list() == ["task1", "task2"]
    for name, state in zip(bank.list(), states, strict=True):
        bank.activate(name)
        theirs = [n for n in state if "classifier" in n or "pooler" in n]
        assert len(theirs) == 4
        assert_same_bits({n: model.state_dict()[n] for n in theirs}, {n: state[n] for n in theirs})
        task = load_task(tmp_path / "bank" / f"{name}.mask.safetensors")
        assert {n.removeprefix("bert.") for n in task.new} == {n.removeprefix("bert.") for n in theirs}
        assert task.facts["config"]["architectures"] == ["BertForSequenceClassification"]
    record = json.loads((tmp_path / "bank" / "paring-fuse.json").read_text())
    assert [m["kind"] for m in record["models"]] == ["checkpoint", "delta", "delta"]
    assert record["output"]["tasks"]["task2"]["own"] == sorted(task.new)


def test_few_entries(tmp_path: Path) -> None:
    """Of slim deltas the shared vector holds the entries that any has, and a mask has a bit for each of those."""
    paths = family(tmp_path, 1)[:1]
    base, vectors = whole(paths[0]), []
    for i in range(3):
        generator = torch.Generator().manual_seed(i)
        changes = {}
        for name, tensor in base.items():
            positions = torch.randperm(tensor.numel(), generator=generator)[: tensor.numel() // 50].sort().values
            values = torch.randn(len(positions), generator=generator)
            changes[name] = ready(Change(tensor.shape, tensor.dtype, "real", Scattered(positions), values))
        vectors.append(TaskVector(changes, paring.diff(base, base).base))
        paths.append(str(tmp_path / f"slim{i}.delta.safetensors"))
        paring.save_delta(vectors[-1], paths[-1])
    fuse(write(tmp_path, config(paths)), tmp_path / "bank")
    models = [v.applied_to(base) for v in vectors]
    kept = sum(int(sum((v[n] != 0).int() for v in vectors).bool().sum()) for n in base)
    for i, served in enumerate(by_hand(base, models)):
        task = open_masked(tmp_path / "bank" / f"slim{i}.mask.safetensors")
        assert sum(task.bits(n).numel() for n in task.masked) <= kept / 8 + len(base)
        for name, tensor in task.vector.applied_to(base).items():
            torch.testing.assert_close(tensor.double(), served[name], rtol=1e-5, atol=1e-6)
    model = type(llama()).from_pretrained(paths[0])
    with Bank(model, tmp_path / "bank").use("slim1"):
        assert_same_bits(
            {n: model.state_dict()[n] for n in base}, load_task(task.path.with_name("slim1.mask.safetensors")).applied_to(base)
        )


def test_one_model_is_itself(tmp_path: Path) -> None:
    paths = family(tmp_path, 1)
    fuse(write(tmp_path, config(paths)), tmp_path / "bank")
    task = open_masked(tmp_path / "bank" / "tuned1.mask.safetensors")
    assert task.scale == 1.0
    base, tuned = whole(paths[0]), whole(paths[1])
    for name, tensor in task.vector.applied_to(base).items():
        torch.testing.assert_close(tensor, tuned[name], rtol=1e-6, atol=1e-8)


def test_tied_weights(tmp_path: Path) -> None:
    paths = family(tmp_path, 2, gpt2())
    fuse(write(tmp_path, config(paths)), tmp_path / "bank")
    model = type(gpt2()).from_pretrained(paths[0])
    before = bits(model)
    with Bank(model, tmp_path / "bank") as bank:
        bank.activate("tuned1")
        assert not torch.equal(model.lm_head.weight, before["lm_head.weight"])
        assert model.lm_head.weight is model.transformer.wte.weight
    assert_same_bits(bits(model), before)


def test_integer_buffers_stay(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)
    for path in paths:
        edit(path, model__position_ids=torch.arange(7))
    fuse(write(tmp_path, config(paths)), tmp_path / "bank")
    assert "model.position_ids" not in load_task(tmp_path / "bank" / "tuned1.mask.safetensors").changes
    edit(paths[2], model__position_ids=torch.arange(7) + 1)
    with pytest.raises(FuseError, match="'model.position_ids': torch.int64 values that differ between"):
        fuse(write(tmp_path, config(paths)), tmp_path / "again")


def test_same_inputs_same_bytes(tmp_path: Path) -> None:
    """Whatever the number of threads; and the models' order makes no difference to a task."""
    paths = family(tmp_path, 3)

    def files(out: Path) -> dict[str, bytes]:
        return content(out / "shared") | content_of_files(out)

    path = write(tmp_path, config(paths))
    for threads in (1, 3):
        fuse(path, tmp_path / f"out{threads}", threads=threads, shard_bytes=20_000)
    assert files(tmp_path / "out1") == files(tmp_path / "out3")
    assert len(list((tmp_path / "out1" / "shared").iterdir())) > 3  # shards, and their index
    fuse(write(tmp_path, config([paths[0], *paths[:0:-1]])), tmp_path / "other", shard_bytes=20_000)
    turned, plain = files(tmp_path / "other"), files(tmp_path / "out1")
    assert {n: b for n, b in turned.items() if n.endswith(".safetensors")} == {
        n: b for n, b in plain.items() if n.endswith(".safetensors")
    }


def content_of_files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def test_a_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = family(tmp_path, 3)
    path = write(tmp_path, config(paths))
    said = estimate(path, tmp_path / "bank")
    assert not (tmp_path / "bank").exists()
    assert said.files == ("shared", "tuned1.mask.safetensors", "tuned2.mask.safetensors", "tuned3.mask.safetensors")
    fused = fuse(path, tmp_path / "bank")
    headers = sum(int.from_bytes(p.read_bytes()[:8], "little") + 8 for p in fused.files if p.suffix == ".safetensors")
    assert 0.85 * said.write_bytes <= fused.num_bytes - headers <= said.write_bytes
    assert main(["fuse", str(path), str(tmp_path / "other"), "--dry-run"]) == 0
    assert "files shared, tuned1.mask.safetensors" in capsys.readouterr().out


def test_overwriting(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)
    path = write(tmp_path, config(paths))
    fuse(path, tmp_path / "bank")
    with pytest.raises(FileExistsError, match="is there already"):
        fuse(path, tmp_path / "bank")
    assert main(["report", str(tmp_path / "bank")]) == 0  # its page is in nobody's way
    fuse(write(tmp_path, config(paths[:2])), tmp_path / "bank", overwrite=True)
    assert Bank(type(llama()).from_pretrained(paths[0]), tmp_path / "bank").list() == ["tuned1"]
    (tmp_path / "bank" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds folders \\(shared\\)"):
        fuse(path, tmp_path / "bank", overwrite=True)
    assert (tmp_path / "bank" / "thesis.txt").exists()


def refused(tmp_path: Path, error: type[Exception], match: str, changes: Mapping[str, Any]) -> None:
    there = set(tmp_path.iterdir())
    with pytest.raises(error, match=match):
        fuse(write(tmp_path, changes), tmp_path / "bank")
    assert set(tmp_path.iterdir()) - there <= {tmp_path / "merge.yml"}


def test_what_cannot_be_a_bank(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)
    runs = [{"sources": [{"model": p, "layer_range": [0, 2]} for p in paths]}]
    refused(tmp_path, ConfigError, "line 4: emr writes a bank of tasks of the base; expected whole models", {
        "merge_method": "emr", "base_model": paths[0], "slices": runs
    })  # fmt: skip
    refused(tmp_path, ConfigError, "emr: no base", {"merge_method": "emr", "models": [{"model": paths[1]}]})
    delta = tmp_path / "one.delta.safetensors"
    paring.save_delta(paring.diff(paths[0], paths[1]), delta)
    plus = config([f"{paths[0]}+{delta}", paths[2]])
    refused(tmp_path, ConfigError, "line 2: .* is no checkpoint; expected one, since the bank is put on it", plus)
    (tmp_path / "more").mkdir()
    twice = family(tmp_path / "more", 1)[1]
    refused(tmp_path, ConfigError, "would both be the task 'tuned1' of the bank; rename one", config([*paths, twice]))
    edit(paths[2], model__norm__weight=torch.full((24,), torch.nan))
    refused(tmp_path, DeltaError, r"tuned2.*: tensor 'model.norm.weight' holds nan at entry 0", config(paths))
    own = config(paths, parameters={"own": [{"filter": "model.norm", "value": True}, {"value": False}]})
    refused(tmp_path, DeltaError, r"tuned2.*: tensor 'model.norm.weight' holds nan", own)


def test_a_small_type_overflows(tmp_path: Path) -> None:
    paths = family(tmp_path, 1)
    edit(paths[1], model__norm__weight=torch.full((24,), 1e6))
    refused(
        tmp_path, FuseError, "'model.norm.weight': the shared vector is inf in torch.float16", config(paths, dtype="float16")
    )


def test_stopped_it_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from paring.fuse import as_bank

    paths = family(tmp_path, 2)
    path, there = write(tmp_path, config(paths)), set(tmp_path.iterdir())

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(as_bank, "write_masked", stop)
        assert main(["fuse", str(path), str(tmp_path / "bank")]) == 130
    assert set(tmp_path.iterdir()) == there
    assert "stopped; the same command begins anew" in capsys.readouterr().err
    assert main(["fuse", str(path), str(tmp_path / "bank")]) == 0


# Files that are not what they say.


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    paths = family(tmp_path, 2)
    fuse(write(tmp_path, config(paths)), tmp_path / "bank")
    return tmp_path / "bank"


def tensors_of(file: Any) -> list[Tensor]:
    return [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - it is no mapping


def rewritten(path: Path, change: Any) -> None:
    """A mask file with another manifest, or other tensors."""
    with safe_open(path, "pt") as file:
        tensors = dict(zip(file.keys(), tensors_of(file), strict=True))
        manifest = json.loads(file.metadata()[KEY])
    change(manifest, tensors)
    save_file(tensors, path, {KEY: json.dumps(manifest)})


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m, t: m.update(format=2), "has mask format 2; this version reads 1"),
        (lambda m, t: m.update(format=True), "has mask format True"),
        (lambda m, t: m.update(more=1), "in its manifest, 'more' is not as the format has it"),
        (lambda m, t: m.pop("facts"), "in its manifest, 'facts'"),
        (lambda m, t: m.update(scale="1"), "in its manifest, 'scale'"),
        (lambda m, t: m.update(scale=1e300), "in its manifest, 'scale'"),
        (lambda m, t: m.update(scale=10**400), "in its manifest, 'scale'"),
        (lambda m, t: m.update(shared="0" * 32), "is a mask of another vector than"),
        (lambda m, t: m.update(shared="x"), "in its manifest, 'shared'"),
        (lambda m, t: m["masks"].update({NORM: ["lzma", "0" * 32]}), "in its manifest, 'masks'"),
        (lambda m, t: m["own"].update({NORM: "0" * 32}), "has a mask and is the task's own"),
        (lambda m, t: m["masks"].pop(NORM), "is only in its manifest, or only in the file"),
        (lambda m, t: (m["masks"].update(x=["none", "0" * 32]), t.update({"x:mask": torch.ones(1)})), "a mask of 'x'"),
        (lambda m, t: t.update({f"{NORM}:mask": torch.zeros(3, 1, dtype=torch.uint8)}), "expected bytes in a row"),
    ],
)  # fmt: skip
def test_a_file_that_lies(bank: Path, change: Any, match: str) -> None:
    path = bank / "tuned1.mask.safetensors"
    rewritten(path, change)
    with pytest.raises(DeltaError, match=match):
        Bank(llama(), bank)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (torch.tensor([1, 2, 4], dtype=torch.uint8), "is damaged \\(its hash differs\\)"),
        (None, "cannot have|bytes"),
    ],
)
def test_a_mask_that_is_none(bank: Path, content: Tensor | None, match: str) -> None:
    from paring.delta.checkpoint.fingerprint import tensor_hash

    def change(manifest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors[f"{NORM}:mask"] = torch.full((9,), 255, dtype=torch.uint8) if content is None else content
        if content is None:
            manifest["masks"][NORM] = ["none", tensor_hash([tensors[f"{NORM}:mask"]])]

    rewritten(bank / "tuned1.mask.safetensors", change)
    model = type(llama()).from_pretrained(bank.parent / "base")
    before = bits(model)
    held = Bank(model, bank)
    held.activate("tuned2")
    served = bits(model)
    with pytest.raises(DeltaError, match=match):
        held.activate("tuned1")
    assert held.active == "tuned2"
    assert_same_bits(bits(model), served)
    held.close()
    assert_same_bits(bits(model), before)


def test_bits_beyond_the_last_entry(tmp_path: Path) -> None:
    from paring.delta.checkpoint.fingerprint import tensor_hash

    base = {"w": torch.zeros(3)}
    for i in range(2):
        save_file({n: t + i for n, t in base.items()}, tmp_path / f"{i}.safetensors")
    paths = [str(tmp_path / f"{i}.safetensors") for i in range(2)]
    fuse(write(tmp_path, config(paths)), tmp_path / "bank")
    path = tmp_path / "bank" / "1.mask.safetensors"
    assert load_task(path).change("w").places.positions.tolist() == [0, 1, 2]

    def change(manifest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors["w:mask"] = torch.tensor([0b1111], dtype=torch.uint8)
        manifest["masks"]["w"] = ["none", tensor_hash([tensors["w:mask"]])]

    rewritten(path, change)
    with pytest.raises(DeltaError, match="its mask has entries beyond the last of its 3"):
        load_task(path).change("w")


def test_pieces_of_a_bank(bank: Path, tmp_path: Path) -> None:
    mask = bank / "tuned1.mask.safetensors"
    with pytest.raises(DeltaError, match="is a task of a bank with a shared vector, no delta by itself"):
        paring.load_delta(mask)
    with pytest.raises(DeltaError, match="is no mask of a shared vector"):
        open_masked(next((bank / "shared").glob("*.safetensors")))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        open_masked(bank / "tuned9.mask.safetensors")
    (tmp_path / "alone").mkdir()
    alone = tmp_path / "alone" / mask.name
    alone.write_bytes(mask.read_bytes())
    with pytest.raises(DeltaError, match=r"lacks .*shared, the vector that it is a mask of; fetch the whole folder"):
        open_masked(alone)
    (bank / "tuned1.delta.safetensors").write_bytes(b"")
    with pytest.raises(DeltaError, match="holds two deltas named 'tuned1'"):
        Bank(llama(), bank)


def test_the_command_line(bank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bank", "ls", str(bank)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[1:4]] == ["tuned1", "tuned2", "(shared)"]
    assert "mask of shared, scale" in said[1] and said[-1].startswith("2 deltas")
    bits_per_parameter = float(said[1].split()[3])
    entries = sum(t.numel() for t in whole(bank.parent / "base").values())
    assert bits_per_parameter == pytest.approx(8 * (bank / "tuned1.mask.safetensors").stat().st_size / entries, abs=1e-3)
    assert main(["bank", "verify", str(bank), "--base", str(bank.parent / "base")]) == 0
    assert "tuned1: 21 tensors, every hash as stated, made on" in capsys.readouterr().out
    shard = next((bank / "shared").glob("*.safetensors"))
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    assert main(["bank", "verify", str(bank)]) == 2
    assert "are damaged (their hash differs)" in capsys.readouterr().err


def test_another_base(bank: Path) -> None:
    with pytest.raises(DeltaError, match="delta 'tuned1'.* is not the base of this delta"):
        Bank(type(llama()).from_pretrained(bank.parent / "tuned1"), bank)
