"""The open session: what is active and held, what is loaded, saved and copied while it lasts."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import assert_same_bits, bert, bits, tokens, train
from paring import SliceConfig, sliced


def loss_of(model: nn.Module):
    return lambda i: model(**tokens(seed=i)).loss


def test_window_limits_memory_state_and_backward() -> None:
    model = bert()
    config = SliceConfig(rank=4, modes=("column",), move_steps=2, layer_window=1)
    reached: list[str] = []
    for i, block in enumerate(model.bert.encoder.layer):
        block.register_forward_hook(lambda m, a, out, i=i: reached.append(str(i)) if _first(out).requires_grad else None)
    with sliced(model, config, verbose=False) as session:
        assert all(".layer.2." in n or "pooler" in n for n in session.active)
        optimizer = train(session, loss_of(model), 2)
        assert set(reached) == {"2"}  # backward stopped above the lower blocks
        held = {id(p) for p in optimizer.state}
        assert all(".layer.1." in n for n in session.active)
        active = {id(s.copy) for s in session._slots if s.slice is not None}
        assert not held & active  # fresh
        assert len(held) == 2  # the head's alone: what left the window left nothing behind
        train(session, loss_of(model), 2, optimizer)
        assert set(reached) == {"1", "2"}


def _first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


def test_layers_restrict_for_good() -> None:
    for layers, expected in (("upper:1", {2}), ("lower:2", {0, 1}), ((0, -1), {0, 2})):
        config = SliceConfig(rank=4, move_steps=2, layers=layers)
        session = sliced(bert(), config, verbose=False)
        assert {m.block for m in session.matrices.values()} == expected


def test_only_entries_with_a_layer_to_slice_are_blocks() -> None:
    layers = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2), nn.Flatten()
    model = nn.Sequential(*layers)
    for setting, expected in (("upper:2", ["4"]), ("upper:3", ["2", "4"]), ((0,), ["0"]), ((1, 2), ["2", "4"])):
        session = sliced(model, SliceConfig(rank=4, move_steps=2, layers=setting), verbose=False)
        assert list(session.matrices) == expected
    with pytest.raises(ValueError, match=r"layers is 'upper:5'; the model has 4 block"):
        sliced(model, SliceConfig(rank=4, move_steps=2, layers="upper:5"))


def test_eval_mode_and_no_grad_run_the_plain_layer() -> None:
    model = bert().eval()
    with torch.no_grad():
        expected = model(**tokens()).logits
    with sliced(model, SliceConfig(rank=4, move_steps=2), verbose=False) as session:
        with torch.no_grad():
            assert torch.equal(model(**tokens()).logits, expected)
        train(session, loss_of(model), 2)  # eval mode trains too
        with torch.inference_mode():
            assert not torch.equal(model(**tokens()).logits, expected)


def test_weights_loaded_in_a_session_reach_the_working_copies() -> None:
    model, other = bert(), bert()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    with sliced(model, SliceConfig(rank=4, move_steps=2), verbose=False) as session:
        result = model.load_state_dict(other.state_dict())
        assert not result.missing_keys
        assert not result.unexpected_keys
        session.step()
        assert_same_bits(bits(model), bits(other))


def test_saving_while_tuning_writes_the_models_own_keys(tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    model = bert()
    with sliced(model, SliceConfig(rank=4, move_steps=2), verbose=False) as session:
        train(session, loss_of(model), 3)
        model.save_pretrained(tmp_path)
        again, info = BertForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert_same_bits(bits(again), bits(model))


def test_resident_memory_is_the_slices() -> None:
    model = bert()
    frozen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with sliced(model, SliceConfig(rank=4, modes=("column",), move_steps=1), verbose=False) as session:
        optimizer = train(session, loss_of(model), 10)
        trained = sum(p.numel() for p in session.parameters())
        assert trained == session.num_trainable
        with pytest.raises(RuntimeError, match="never entered"):
            assert sliced(bert(), session.config).num_trainable
        ours = [*session.parameters(), *(t for s in optimizer.state.values() for t in s.values())]
        extra = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in ours}
        held = sum(n for at, n in extra.items() if at not in frozen)
        assert held <= 4 * trained * 4 + 4 * len(optimizer.state)  # AdamW's step counters
    assert session.num_trainable == trained


def test_summary_names_what_is_trained(capsys: pytest.CaptureFixture) -> None:
    with sliced(bert(), SliceConfig(rank=4, modes=("row",), move_steps=2)):
        pass
    printed = capsys.readouterr().err
    assert "19 layers sliced (row, rank 4)" in printed
    assert "trained whole: classifier (found: task head)" in printed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_deep_copy_made_in_a_session_is_no_part_of_it(dtype: torch.dtype) -> None:
    model = bert().to(dtype)
    with sliced(model, SliceConfig(rank=4, move_steps=2), verbose=False) as session:
        clone = copy.deepcopy(model)
        loss = clone(**tokens()).loss
        if loss.requires_grad:  # of a half-precision head only the working copy is trained, which the clone does not use
            loss.backward()
        assert all(p.grad is None for p in session.parameters())
        assert clone.classifier.weight is not model.classifier.weight
        train(session, loss_of(model), 1)


def test_a_flat_working_copy_has_nothing_left_from_the_other_mode() -> None:
    model = bert()
    with sliced(model, SliceConfig(rank=4, move_steps=1), verbose=False) as session:
        train(session, loss_of(model), 1)
        slot = next(s for s in session._slots if s.layer.matrix.out > s.layer.matrix.inp)
        train(session, loss_of(model), 1)
        assert slot.slice.axis == "row"
        assert slot.copy.ndim == 1
        assert not slot.copy[4 * slot.layer.matrix.inp :].any()


def test_optimizer_state_loaded_for_a_slice_left_since_is_dropped() -> None:
    model = bert()
    with sliced(model, SliceConfig(rank=4, modes=("row",), move_steps=2), verbose=False) as session:
        optimizer = train(session, loss_of(model), 1)
        state, moments = session.state_dict(), optimizer.state_dict()
    session.revert()
    with sliced(model, SliceConfig(rank=4, modes=("row",), move_steps=2), verbose=False) as session:
        optimizer = torch.optim.AdamW(session.parameters(), lr=1e-2)
        session.load_state_dict(state)
        optimizer.load_state_dict(moments)
        session.step()  # a scaler skipped the optimizer's step; the slices move
        train(session, loss_of(model), 1, optimizer)
        sliced_copy, head = session.parameters()[0], session.parameters()[-1]
        assert optimizer.state[sliced_copy]["step"] == 1
        assert optimizer.state[head]["step"] == 2
