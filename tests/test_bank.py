"""The bank: swaps are exact however often they happen, and never in the middle of a forward."""

import random
import threading
import time
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from torch import Tensor, nn

import paring
from conftest import assert_same_bits, bert, bits, tokens
from paring import Bank, DeltaError, SliceConfig, sliced
from paring.bank.lock import BankBusy
from paring.cli.main import main
from paring.delta.change import Change
from paring.delta.places import Scattered
from paring.delta.taskvector import TaskVector, ready


def tuned(seed: int, dtype: torch.dtype) -> nn.Module:
    """The base with a random change of every float tensor."""
    model, generator = bert().to(dtype), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor += (torch.randn(tensor.shape, generator=generator) * 0.02).to(tensor.dtype)
    return model


def pruned(vector: TaskVector, keep: float) -> TaskVector:
    changes = {}
    for name in vector:
        flat = vector[name].flatten()
        positions = flat.abs().topk(max(1, int(flat.numel() * keep))).indices.sort().values
        change = vector.change(name)
        changes[name] = ready(Change(change.shape, change.dtype, "real", Scattered(positions), flat[positions]))
    return TaskVector(changes, vector.base)


def slices(dtype: torch.dtype) -> TaskVector:
    model = bert().to(dtype)
    with sliced(model, SliceConfig(rank=3, modes=("column",), move_steps=2), verbose=False) as session:
        optimizer = torch.optim.AdamW(session.parameters(), lr=1e-2)
        for i in range(4):
            model(**tokens(seed=i)).loss.backward()
            optimizer.step()
            session.step()
            optimizer.zero_grad()
    return session.delta()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four deltas of bf16 models: exact and dense, exact blocks, scattered, quantised, and one in shards."""
    before = bits(bert().bfloat16())
    exact = paring.diff(before, bits(tuned(1, torch.bfloat16)))
    paring.save_delta(exact, tmp_path / "dense.delta.safetensors")
    paring.save_delta(slices(torch.bfloat16), tmp_path / "slices.delta.safetensors")
    paring.save_delta(pruned(exact, 0.05), tmp_path / "pruned.delta.safetensors", values="int8", group=64)
    paring.save_delta(paring.diff(before, bits(tuned(2, torch.bfloat16))), tmp_path / "shards.delta", shard_bytes=4000)
    return tmp_path


def test_a_folder_of_deltas(folder: Path) -> None:
    model = bert().bfloat16()
    before = bits(model)
    with Bank(model, folder) as bank:
        assert bank.list() == ["dense", "pruned", "shards", "slices"] and bank.active is None
        for name in bank.list():
            bank.activate(name)
            expected = bert().bfloat16()
            path = folder / (f"{name}.delta" if name == "shards" else f"{name}.delta.safetensors")
            paring.load_delta(path).apply(expected)
            assert_same_bits(bits(model), bits(expected))
            assert bank.active == name
        bank.deactivate()
        assert_same_bits(bits(model), before)
        bank.activate("dense")
    assert_same_bits(bits(model), before)
    assert not model._forward_hooks and not model._forward_pre_hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_thousand_swaps_are_exact(dtype: torch.dtype) -> None:
    model = bert().to(dtype)
    before = bits(model)
    exact = paring.diff(before, bits(tuned(1, dtype)))
    vectors = {
        "dense": exact,
        "half": 0.5 * paring.diff(before, bits(tuned(2, dtype))),
        "pruned": pruned(paring.diff(before, bits(tuned(3, dtype))), 0.1),
        "slices": slices(dtype),
    }
    expected: dict[str | None, dict[str, Tensor]] = {None: before}
    for name, vector in vectors.items():
        with vector.apply(model):
            expected[name] = bits(model)
    bank = Bank(model)
    for name, vector in vectors.items():
        bank.add(name, vector)
    choices = random.Random(0)
    for i in range(1000):
        name = choices.choice([*vectors, None])
        bank.deactivate() if name is None else bank.activate(name)
        if i % 50 == 0 or i == 999:
            assert_same_bits(bits(model), expected[name])
    bank.close()
    assert_same_bits(bits(model), before)


def test_a_swap_touches_the_entries_of_both_deltas_alone() -> None:
    base = {"a": torch.zeros(10), "b": torch.zeros(10)}
    module = nn.Module()
    module.a, module.b = (nn.Parameter(t.clone()) for t in base.values())
    bank = Bank(module)
    bank.add("a", paring.diff(base, {"a": torch.tensor([0.0] * 9 + [1.0]), "b": base["b"]}))
    bank.add("b", paring.diff(base, {"a": base["a"], "b": torch.ones(10)}))
    bank.activate("a")
    with torch.no_grad():
        module.a[0] = 7.0  # what no delta covers is nobody's to change
    bank.activate("b")
    assert module.a.tolist() == [7.0] + [0.0] * 9 and module.b.tolist() == [1.0] * 10


def test_one_tensor_here_and_two_where_the_delta_was_made() -> None:
    base = {"a": torch.randn(4, 4)}
    base["b"] = base["a"].clone()
    tuned = {n: t + 0.1 for n, t in base.items()}
    module = nn.Module()
    module.a = module.b = nn.Parameter(base["a"].clone())
    bank = Bank(module)
    bank.add("alike", paring.diff(base, tuned))
    bank.add("apart", paring.diff(base, tuned | {"b": tuned["b"] + 1}))
    bank.add("elsewhere", paring.diff(base, tuned | {"b": base["b"].index_fill(0, torch.tensor(1), 7)}))
    bank.activate("alike")
    assert torch.equal(module.a, tuned["a"])
    for name in ("apart", "elsewhere"):
        with pytest.raises(
            DeltaError,
            match=f"delta '{name}': 'a' and 'b' are one tensor in this model, and the delta changes them differently",
        ):
            bank.activate(name)
        assert bank.active == "alike" and torch.equal(module.a, tuned["a"])
    bank.deactivate()
    assert_same_bits({"a": module.a.detach()}, {"a": base["a"]})


def test_a_delta_stored_plainly_is_swapped_where_it_changes_something(tmp_path: Path) -> None:
    base = {"a": torch.zeros(100, 100)}
    tuned = {"a": torch.zeros(100, 100).index_fill(0, torch.arange(8), 1.0)}
    paring.save_delta(paring.diff(base, tuned), tmp_path / "rows.delta.safetensors", compression="none")
    module = nn.Module()
    module.a = nn.Parameter(base["a"].clone())
    bank = Bank(module, tmp_path)
    bank.activate("rows")
    assert torch.equal(module.a, tuned["a"])
    with torch.no_grad():
        module.a[50] = 7.0  # what no delta covers is nobody's to change
    bank.deactivate()
    assert module.a[50].eq(7.0).all() and not module.a[:8].any()


def test_a_swap_waits_for_running_forwards(folder: Path) -> None:
    model = bert().bfloat16().eval()
    bank = Bank(model, folder)
    bank.activate("dense")
    inside, leave = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        inside.set()
        assert leave.wait(20)

    handle = model.bert.register_forward_hook(hold)
    before = bits(model)
    results: list[Tensor] = []
    runner = threading.Thread(target=lambda: results.append(model(**tokens()).logits))
    runner.start()
    assert inside.wait(20)
    with pytest.raises(BankBusy, match=r"still running after 0\.05 s"):
        bank.activate("slices", timeout=0.05)
    assert bank.active == "dense"
    assert_same_bits(bits(model), before)
    swapper = threading.Thread(target=bank.activate, args=("slices",))
    swapper.start()
    time.sleep(0.05)
    assert bank.active == "dense"
    leave.set()
    runner.join(20)
    swapper.join(20)
    handle.remove()
    assert bank.active == "slices" and len(results) == 1


def test_no_swap_from_inside_a_forward_and_none_is_left_locked(folder: Path) -> None:
    model = bert().bfloat16()
    bank = Bank(model, folder)
    handle = model.bert.register_forward_hook(lambda *_: bank.activate("dense"))
    with pytest.raises(BankBusy, match="this thread is in"):
        model(**tokens())
    handle.remove()
    handle = model.bert.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**tokens())
    handle.remove()
    bank.activate("dense", timeout=1)  # a forward that raised holds nothing
    assert bank.active == "dense"


def test_use_keeps_others_out_and_leaves_what_was_active(folder: Path) -> None:
    model = bert().bfloat16().eval()
    bank = Bank(model, folder)
    bank.activate("slices")
    with bank.use("dense") as same:
        assert same is model and bank.active == "dense"
        with pytest.raises(BankBusy):
            bank.activate("slices")
        with bank.use("dense"):
            pass
        assert bank.active == "dense"
        refused: list[BaseException] = []

        def other() -> None:
            try:
                bank.activate("pruned", timeout=0.05)
            except BankBusy as error:
                refused.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(20)
        assert len(refused) == 1
        model(**tokens())
    assert bank.active == "slices"
    with pytest.raises(ZeroDivisionError), bank.use("dense"):
        raise ZeroDivisionError
    assert bank.active == "slices"


def test_many_threads_see_whole_models_only(folder: Path) -> None:
    model = bert().bfloat16().eval()
    bank = Bank(model, folder)
    expected = {}
    batch = {k: v for k, v in tokens().items() if k != "labels"}
    for name in bank.list():
        with bank.use(name), torch.no_grad():
            expected[name] = model(**batch).logits
    wrong: list[str] = []

    def work(seed: int) -> None:
        choices = random.Random(seed)
        for _ in range(25):
            name = choices.choice(bank.list())
            with bank.use(name), torch.no_grad():
                if not torch.equal(model(**batch).logits, expected[name]):
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and not any(t.is_alive() for t in threads) and bank.active is None
    assert_same_bits(bits(model), bits(bert().bfloat16()))


def test_what_the_bank_refuses(folder: Path) -> None:
    model = bert().bfloat16()
    bank = Bank(model, folder)
    with pytest.raises(KeyError, match="no delta 'latin'; it has 'dense', 'pruned', 'shards', 'slices'"):
        bank.activate("latin")
    with pytest.raises(ValueError, match="has a delta 'dense' already"):
        bank.add("dense", folder / "dense.delta.safetensors")
    with pytest.raises(DeltaError, match=r"delta 'other': the BertFor.* is not the base of this delta"):
        bank.add("other", paring.diff(bits(bert()), bits(tuned(1, torch.float32))))
    bank.activate("dense")
    bank.remove("dense")
    assert bank.active is None and "dense" not in bank.list()
    assert_same_bits(bits(model), bits(bert().bfloat16()))
    bank.activate("slices")
    before = bits(model)
    path = folder / "dense.delta.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    bank.add("dense", path)
    with pytest.raises(DeltaError, match="are damaged"):
        bank.activate("dense")
    assert bank.active == "slices"  # as it was
    assert_same_bits(bits(model), before)
    with (
        sliced(model, SliceConfig(rank=2, move_steps=None, modes=("row",)), verbose=False),
        pytest.raises(RuntimeError, match="the bank cannot swap"),
    ):
        bank.activate("pruned")
    with pytest.raises(FileNotFoundError, match="no folder of deltas"):
        Bank(bert(), folder / "nothing")


def test_a_model_moved_to_another_type_is_noticed(folder: Path) -> None:
    model = bert().bfloat16()
    bank = Bank(model, folder)
    model.float()
    with pytest.raises(DeltaError, match="has become"):
        bank.activate("dense")


def test_inside_a_pipeline(folder: Path) -> None:
    model = bert().bfloat16().eval()
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "[PAD]": 1, "thin": 2, "slice": 3}, "[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    bank = Bank(pipe.model, folder)
    before = pipe("a thin slice", top_k=None)
    with bank.use("dense"):
        assert pipe("a thin slice", top_k=None) != before
    assert pipe("a thin slice", top_k=None) == before


def test_on_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base"
    bert().bfloat16().save_pretrained(base)
    assert main(["bank", "ls", str(folder)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("dense", "pruned", "shards", "slices")) and "4 deltas" in out
    assert main(["bank", "verify", str(folder), "--base", str(base)]) == 0
    assert "every hash as stated" in capsys.readouterr().out
    assert main(["bank", "activate", str(folder), "dense", "--base", str(base), "--out", str(tmp_path / "made")]) == 0
    made = type(bert()).from_pretrained(tmp_path / "made", dtype=torch.bfloat16)
    assert_same_bits(bits(made), bits(tuned(1, torch.bfloat16)))
    capsys.readouterr()
    assert main(["bank", "activate", str(folder), "latin", "--base", str(base), "--out", str(tmp_path / "no")]) == 2
    assert "it has dense, pruned, shards, slices" in capsys.readouterr().err
    path = folder / "dense.delta.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert main(["bank", "verify", str(folder)]) == 2
    assert "dense.delta.safetensors" in capsys.readouterr().err


def test_a_compiled_model(folder: Path) -> None:
    """Its graph breaks at the bank's hooks, which hold the lock as they do in any forward."""
    model, given = bert().bfloat16(), tokens()
    with Bank(model, folder) as bank:
        compiled, held = torch.compile(model, backend="eager"), []
        model.register_forward_pre_hook(lambda *_: held.append(sum(bank._lock._readers.values())))
        for name in ("slices", "pruned", "slices"):
            bank.activate(name)
            torch.testing.assert_close(compiled(**given).logits, model(**given).logits)
        assert len(held) == 6 and all(held)
    torch._dynamo.reset()
