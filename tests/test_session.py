"""The session: what a step changes, what leaving restores, and that the arithmetic is the obvious one's."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import assert_same_bits, bert, bits, convnet, tokens, train
from paring import SliceConfig, sliced
from paring.tune.schedules import plan

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
}


def loss_of(model: nn.Module):
    return lambda i: model(**tokens(seed=i)).loss


@pytest.mark.parametrize("modes", [("row",), ("column",), ("row", "column")])
@pytest.mark.parametrize("optimizer", ["adamw fused", "sgd momentum", "adagrad"])
def test_training_equals_masked_full_training(modes: tuple, optimizer: str) -> None:
    """The slow obvious reference: full gradients, cut to the slices, an optimizer on the cut, fresh at every move."""
    model = bert()
    reference = copy.deepcopy(model)
    config = SliceConfig(rank=5, modes=modes, move_steps=2, bias="row" in modes)
    with sliced(model, config, verbose=False) as session:
        train(session, loss_of(model), 7, OPTIMIZERS[optimizer](session.parameters()))
        matrices, head = session.matrices, list(session.selection.whole)
    assert head == ["classifier"]

    make = OPTIMIZERS[optimizer]
    modules = dict(reference.named_modules())
    head_optimizer = make(list(reference.classifier.parameters()))
    for i in range(7):
        active = plan(config, matrices, i)
        if i % 2 == 0:
            cuts: dict[str, list[nn.Parameter]] = {}
            for name, s in active.items():
                w, b = modules[name].weight.detach(), modules[name].bias.detach()
                part = w[s.start : s.stop] if s.axis == "row" else w[:, s.start : s.stop]
                cuts[name] = [nn.Parameter(part.clone().contiguous())]
                if config.bias and s.axis == "row":
                    cuts[name].append(nn.Parameter(b[s.start : s.stop].clone()))
            slice_optimizer = make([p for cut in cuts.values() for p in cut])
        reference.zero_grad()
        reference(**tokens(seed=i)).loss.backward()
        for name, s in active.items():
            gw = modules[name].weight.grad
            cuts[name][0].grad = (gw[s.start : s.stop] if s.axis == "row" else gw[:, s.start : s.stop]).clone()
            if len(cuts[name]) > 1:
                cuts[name][1].grad = modules[name].bias.grad[s.start : s.stop].clone()
        slice_optimizer.step()
        head_optimizer.step()
        with torch.no_grad():
            for name, s in active.items():
                w = modules[name].weight
                (w[s.start : s.stop] if s.axis == "row" else w[:, s.start : s.stop]).copy_(cuts[name][0])
                if len(cuts[name]) > 1:
                    modules[name].bias[s.start : s.stop] = cuts[name][1].detach()
    ours, theirs = bits(model), bits(reference)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["row", "column"])
def test_only_active_slices_and_the_head_change(name: str, mode: str) -> None:
    model = bert()
    before = bits(model)
    config = SliceConfig(rank=4, modes=(mode,), move_steps=None, position=3)
    with sliced(model, config, verbose=False) as session:
        train(session, loss_of(model), 3, OPTIMIZERS[name](session.parameters()))
    after = bits(model)
    layers = {layer.name for layer in session.selection.layers}
    for key, old in before.items():
        changed = old != after[key]
        owner, _, kind = key.rpartition(".")
        if owner.startswith("classifier"):
            assert changed.any()
        elif owner in layers and kind == "weight":
            outside = changed.clone()
            (outside[3:7] if mode == "row" else outside[:, 3:7]).fill_(False)
            assert not outside.any(), key
            # Keys have no bearing on attention through their bias alone, but their weights do: every slice moves.
            assert changed.any(), key
        else:
            assert not changed.any(), key


@pytest.mark.parametrize("build", [bert, convnet])
def test_leaving_gives_a_plain_model_and_revert_the_old_bits(build) -> None:
    model = build()
    if build is convnet:
        model(torch.randn(2, 4, 9, 9))  # settles the lazy layer
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    before, flags = bits(model), [(n, p.requires_grad) for n, p in model.named_parameters()]
    classes = [type(m) for m in model.modules()]

    def run(i: int) -> Tensor:
        if build is bert:
            return loss_of(model)(i)
        torch.manual_seed(i)
        return model(torch.randn(4, 4, 9, 9)).square().sum()

    config = SliceConfig(rank=3, move_steps=2, bias=True, order="random", train_also=None if build is bert else ("9", "3"))
    model.train()
    with sliced(model, config, verbose=False) as session:
        assert list(model.state_dict()) == list(before)
        train(session, run, 9)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert [type(m) for m in model.modules()] == classes
    assert [(n, p.requires_grad) for n, p in model.named_parameters()] == flags
    assert not any("slice_" in n for n, _ in (*model.named_parameters(), *model.named_buffers()))
    after = bits(model)
    assert any(not torch.equal(before[k], after[k]) for k in before)

    delta = session.delta()
    delta.remove(model)
    assert_same_bits(bits(model), before)
    delta.apply(model)
    assert_same_bits(bits(model), after)
    session.revert()
    assert_same_bits(bits(model), before)


@pytest.mark.parametrize("where", ["forward", "step"])
def test_an_exception_leaves_a_plain_model_that_can_be_reverted(where: str) -> None:
    model = bert()
    before, flags = bits(model), [p.requires_grad for p in model.parameters()]
    session = sliced(model, SliceConfig(rank=4, move_steps=2), verbose=False)
    with pytest.raises(ZeroDivisionError), session:
        optimizer = train(session, loss_of(model), 3)
        if where == "step":
            loss_of(model)(4).backward()
            optimizer.step()
        raise ZeroDivisionError
    assert [p.requires_grad for p in model.parameters()] == flags
    assert list(model.state_dict()) == list(before)
    session.revert()
    assert_same_bits(bits(model), before)
    with sliced(model, SliceConfig(rank=4, move_steps=2), verbose=False):
        pass  # and the next session can be opened


def test_revert_inside_starts_over() -> None:
    model = bert()
    before = bits(model)
    with sliced(model, SliceConfig(rank=4, move_steps=2), verbose=False) as session:
        optimizer = train(session, loss_of(model), 5)
        first = bits(model)
        session.revert()
        assert_same_bits(bits(model), before)
        assert session.num_steps == 0
        train(session, loss_of(model), 5, optimizer)
        assert_same_bits(bits(model), first)  # the optimizer's state was fresh too


def test_delta_is_disjoint_blocks_that_sum_to_the_difference() -> None:
    model = bert()
    before = bits(model)
    with sliced(model, SliceConfig(rank=5, move_steps=1, bias=True), verbose=False) as session:
        train(session, loss_of(model), 6)
        delta = session.delta()
    after = bits(model)
    for name, old in before.items():
        total = torch.zeros(old.shape[0], old[0].numel())
        count = torch.zeros_like(total)
        for block in delta.blocks.get(name, ()):
            r = block.rect
            total[r.row : r.row_stop, r.column : r.column_stop] += block.difference
            count[r.row : r.row_stop, r.column : r.column_stop] += 1
        assert count.max() <= 1, name
        assert torch.equal(total.view(old.shape), after[name] - old), name
    assert delta.nbytes == sum(b.after.numel() * 4 for _, b in delta)
    assert delta.fresh == {"classifier.weight", "classifier.bias"}


def test_delta_is_refused_on_another_base() -> None:
    model, other = bert(), bert()
    with torch.no_grad():
        other.bert.encoder.layer[1].output.dense.weight[0, 0] += 1
    with sliced(model, SliceConfig(rank=5, modes=("row",), move_steps=None), verbose=False) as session:
        train(session, loss_of(model), 2)
    untouched = bits(other)
    with pytest.raises(ValueError, match=r"values of 'bert\.encoder\.layer\.1\.output\.dense\.weight' differ from the base's"):
        session.delta().apply(other)
    assert_same_bits(bits(other), untouched)
    with pytest.raises(ValueError, match="it has no tensor"):
        session.delta().apply(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"is \[3, 16\] torch.float32, it was made on \[3, 24\] torch.float32"):
        session.delta().apply(bert(hidden_size=16, intermediate_size=16, num_attention_heads=2))


def test_gradient_accumulation_equals_one_batch() -> None:
    one, two = bert(), bert()
    batch = tokens(batch=8)
    config = SliceConfig(rank=4, move_steps=2)
    with sliced(one, config, verbose=False) as session:
        train(session, lambda i: one(**batch).loss, 5)
    with sliced(two, config, verbose=False) as session:
        optimizer = torch.optim.AdamW(session.parameters(), lr=1e-2)
        for _ in range(5):
            for half in (slice(0, 4), slice(4, 8)):
                (two(**{k: v[half] for k, v in batch.items()}).loss / 2).backward()
            optimizer.step()
            session.step()
            optimizer.zero_grad()
    for name, value in bits(one).items():
        torch.testing.assert_close(value, bits(two)[name], rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_changes_nothing() -> None:
    plain, checkpointed = bert(), bert()
    checkpointed.activation_checkpointing_enable({"use_reentrant": False})
    config = SliceConfig(rank=4, move_steps=2)
    forwards: dict[int, int] = {}
    for model in (plain, checkpointed):
        model.train()
        query = model.bert.encoder.layer[0].attention.self.query
        query.register_forward_hook(lambda m, a, y: forwards.__setitem__(id(m), forwards.get(id(m), 0) + 1))
        with sliced(model, config, verbose=False) as session:
            train(session, loss_of(model), 5)
    assert list(forwards.values()) == [5, 10]
    for name, value in bits(plain).items():
        torch.testing.assert_close(value, bits(checkpointed)[name], rtol=1e-5, atol=1e-6)


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


def test_originals_are_kept_on_disk_once() -> None:
    """A full alternating sweep, twice over: the log ends at one copy of each matrix, no more."""
    model = bert()
    with sliced(model, SliceConfig(rank=4, move_steps=1), verbose=False) as session:
        train(session, loss_of(model), 40)
        log = session._log()
        for layer in session.selection.layers:
            area = sum(r.shape[0] * r.shape[1] for r in log.rects(f"{layer.name}.weight"))
            assert area == layer.matrix.out * layer.matrix.inp


def test_resident_memory_is_the_slices() -> None:
    model = bert()
    frozen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with sliced(model, SliceConfig(rank=4, modes=("column",), move_steps=1), verbose=False) as session:
        optimizer = train(session, loss_of(model), 10)
        trained = sum(p.numel() for p in session.parameters())
        assert trained == session.num_trainable
        ours = [*session.parameters(), *(t for s in optimizer.state.values() for t in s.values())]
        extra = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in ours}
        held = sum(n for at, n in extra.items() if at not in frozen)
        assert held <= 4 * trained * 4 + 4 * len(optimizer.state)  # AdamW's step counters


def test_summary_names_what_is_trained(capsys: pytest.CaptureFixture) -> None:
    with sliced(bert(), SliceConfig(rank=4, modes=("row",), move_steps=2)):
        pass
    printed = capsys.readouterr().err
    assert "19 layers sliced (row, rank 4)" in printed
    assert "trained whole: classifier (found: task head)" in printed


def test_a_closure_sees_the_weights_inside_a_step() -> None:
    """LBFGS looks at the loss many times in one step; it must get far below what one look gives."""
    model, batch = bert(), tokens()
    config = SliceConfig(rank=4, modes=("row",), move_steps=None)
    with sliced(model, config, verbose=False) as session:
        optimizer = torch.optim.LBFGS(session.parameters(), lr=0.5, max_iter=12)
        seen = []

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            seen.append(loss.item())
            return loss

        optimizer.step(closure)
        session.step()
    assert len(set(seen)) == len(seen) > 5
    assert seen[-1] < seen[0] / 2


def test_a_hook_of_the_users_that_changes_the_output_counts() -> None:
    layer, head, x = nn.Linear(4, 6), nn.Linear(6, 2), torch.randn(3, 4)
    layer.register_forward_hook(lambda m, a, y: y * 0.5)
    model = nn.Sequential(layer, head)
    model(x).sum().backward()
    full = layer.weight.grad
    with sliced(model, SliceConfig(rank=2, modes=("row",), move_steps=None), verbose=False) as session:
        model(x).sum().backward()
        torch.testing.assert_close(session.parameters()[0].grad, full[:2])


def test_a_deep_copy_made_in_a_session_is_no_part_of_it() -> None:
    model = bert()
    with sliced(model, SliceConfig(rank=4, move_steps=2), verbose=False) as session:
        clone = copy.deepcopy(model)
        clone(**tokens()).loss.backward()
        assert all(p.grad is None for p in session.parameters())
        train(session, loss_of(model), 1)


def test_tied_weights_and_shared_buffers_round_trip() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
            self.out.weight = self.embed.weight
            self.norm, self.again = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
            self.again.running_mean = self.norm.running_mean

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.again(self.norm(self.embed(ids))))

    model = Tied()
    before = bits(model)
    config = SliceConfig(rank=2, move_steps=2, targets=("out",), train_also=())
    with sliced(model, config, verbose=False) as session:
        train(session, lambda i: model(torch.arange(8)).square().mean(), 5)
    after, delta = bits(model), session.delta()
    assert not torch.equal(after["out.weight"], before["out.weight"])
    delta.remove(model)
    assert_same_bits(bits(model), before)
    delta.apply(model)
    assert_same_bits(bits(model), after)
    session.revert()
    assert_same_bits(bits(model), before)


def test_modules_named_to_be_trained_whole_are_compared_with_the_base() -> None:
    model, other = bert(), bert()
    with torch.no_grad():
        other.bert.pooler.dense.bias.add_(1)
    with sliced(model, SliceConfig(rank=4, move_steps=2, train_also=("pooler", "classifier")), verbose=False) as session:
        train(session, loss_of(model), 2)
    with pytest.raises(ValueError, match=r"values of 'bert\.pooler\.dense\.bias' differ"):
        session.delta().apply(other)


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
