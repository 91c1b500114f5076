"""What leaving, revert and the delta give back: the model from before, bit for bit."""

import pytest
import torch
from torch import Tensor, nn

from conftest import assert_same_bits, bert, bits, convnet, tokens, train
from paring import SliceConfig, sliced
from paring.delta.blocks import overlap
from paring.delta.places import Blocks


def loss_of(model: nn.Module):
    return lambda i: model(**tokens(seed=i)).loss


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
    delta.revert(model)
    assert_same_bits(bits(model), before)
    delta.apply(model)
    assert_same_bits(bits(model), after)
    session.revert()
    assert_same_bits(bits(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_left_as_they_were(dtype: torch.dtype) -> None:
    model = bert().to(dtype)
    loss_of(model)(0).backward()
    model.classifier.bias.grad = None
    before = {n: (p.grad, None if p.grad is None else p.grad.clone()) for n, p in model.named_parameters()}
    with sliced(model, SliceConfig(rank=4, move_steps=2), verbose=False) as session:
        train(session, loss_of(model), 3)
        loss_of(model)(3).backward()
    for name, p in model.named_parameters():
        held, value = before[name]
        assert p.grad is held, name
        assert held is None or torch.equal(held, value), name


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
            learnt = [slot.copy.detach().clone() for slot in session._slots]
        raise ZeroDivisionError
    assert [p.requires_grad for p in model.parameters()] == flags
    assert list(model.state_dict()) == list(before)
    if where == "step":  # the last step's result, though session.step() never came
        for (name, slice_), copy_ in zip(session.active.items(), learnt, strict=True):
            weight = model.get_submodule(name).weight.detach()
            part = weight[slice_.start : slice_.stop] if slice_.axis == "row" else weight[:, slice_.start : slice_.stop].t()
            assert torch.equal(copy_.flatten()[: part.numel()].view(part.shape), part), name
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
        if name in delta.new:
            continue
        difference = delta[name] if name in delta else torch.zeros_like(old)
        assert torch.equal(difference, after[name] - old), name
        if name in delta:
            places = delta.change(name).places
            assert isinstance(places, Blocks) and not overlap(places.rects), name
    assert delta.nbytes == 4 * sum(delta.change(name).places.count for name in delta.changes)
    assert set(delta.new) == {"classifier.weight", "classifier.bias"}


def test_delta_is_refused_on_another_base() -> None:
    model, other = bert(), bert()
    with torch.no_grad():
        other.bert.encoder.layer[1].output.dense.weight[0, 0] += 1
    with sliced(model, SliceConfig(rank=5, modes=("row",), move_steps=None), verbose=False) as session:
        train(session, loss_of(model), 2)
    untouched = bits(other)
    with pytest.raises(ValueError, match=r"values of 'bert\.encoder\.layer\.1\.output\.dense\.weight' differ; use the base"):
        session.delta().apply(other)
    assert_same_bits(bits(other), untouched)
    with pytest.raises(ValueError, match="it has no tensor"):
        session.delta().apply(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"is \[50, 16\] float32 there; the delta was made on \[50, 24\] float32"):
        session.delta().apply(bert(hidden_size=16, intermediate_size=16, num_attention_heads=2))


def test_originals_are_kept_on_disk_once() -> None:
    """A full alternating sweep, twice over: the log ends at one copy of each matrix, no more."""
    model = bert()
    with sliced(model, SliceConfig(rank=4, move_steps=1), verbose=False) as session:
        train(session, loss_of(model), 40)
        log = session._log()
        for layer in session.selection.layers:
            area = sum(r.shape[0] * r.shape[1] for r in log.rects(f"{layer.name}.weight"))
            assert area == layer.matrix.out * layer.matrix.inp


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
    delta.revert(model)
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


@pytest.mark.parametrize("opened", [lambda m: m, lambda m: m.bert, lambda m: nn.Sequential(m)])
def test_a_model_in_another_session_is_not_written_to(opened) -> None:
    """The open session's working copies would overwrite what revert or a delta put back."""
    model = bert()
    before = bits(model)
    with sliced(model, SliceConfig(rank=4, move_steps=2), verbose=False) as first:
        train(first, loss_of(model), 3)
    delta, tuned = first.delta(), bits(model)
    config = SliceConfig(rank=4, move_steps=2, targets=("query",), train_also=())
    with sliced(opened(model), config, verbose=False) as second:
        for write, what in (
            (first.revert, "the session cannot be reverted"),
            (lambda: delta.apply(model), "the delta cannot be applied"),
            (lambda: delta.revert(model), "the delta cannot be taken back"),
        ):
            with pytest.raises(RuntimeError, match=f"{what}: BertFor.* is in an open session, .*leave that session"):
                write()
        assert_same_bits(bits(model), tuned)
        train(second, loss_of(model), 1)
        second.revert()  # its own it may revert
    first.revert()
    assert_same_bits(bits(model), before)


@pytest.mark.parametrize("shape", [(5,), (5, 4), (3, 5, 4), (2, 1, 5, 4)])
def test_an_expanded_buffer_is_put_back(shape: tuple) -> None:
    """It holds each entry once, and torch refuses to write it as a whole."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    narrow = torch.randn((*shape[:-2], 1, *shape[-1:]) if len(shape) > 1 else (1,))
    model.register_buffer("scale", narrow.expand(shape))
    before = bits(model)
    with sliced(model, SliceConfig(rank=2, modes=("row",), move_steps=2), verbose=False) as session:
        train(session, lambda i: model(torch.ones(8)).sum() * model.scale.sum(), 2)
        narrow.mul_(3.0)
        state, tuned = session.state_dict(), bits(model)
    delta = session.delta()
    session.revert()
    assert model.scale.stride()[-2 if len(shape) > 1 else 0] == 0
    assert_same_bits(bits(model), before)
    delta.apply(model)
    assert_same_bits(bits(model), tuned)
    delta.revert(model)
    with sliced(model, SliceConfig(rank=2, modes=("row",), move_steps=2), verbose=False) as session:
        session.load_state_dict(state)
    assert_same_bits(bits(model), tuned)
