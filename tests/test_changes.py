"""A model changed under an open session: followed where that is possible, else refused with nothing lost."""

import copy

import pytest
import torch
from torch import nn

from conftest import assert_same_bits, bert, bits, tokens, train
from paring import SliceConfig, sliced

CONFIG = SliceConfig(rank=4, move_steps=2, bias=True)


def loss_of(model: nn.Module):
    return lambda i: model(**tokens(seed=i)).loss


@pytest.mark.parametrize("when", ["before the optimizer's step", "before the session's", "before leaving"])
def test_a_cast_inside_a_session_is_refused_and_what_was_learnt_stays(when: str) -> None:
    model = bert()
    before, flags = bits(model), [p.requires_grad for p in model.parameters()]
    refusal = r"query\.weight' was torch.float32, now it is torch.bfloat16 \(and \d+ more\): .* open a new session"
    session = sliced(model, CONFIG, verbose=False)
    with pytest.raises(RuntimeError, match=refusal), session:
        optimizer = train(session, loss_of(model), 3)
        learnt = bits(model)
        if when == "before leaving":
            model.bfloat16()
        elif when == "before the session's":
            loss_of(model)(3).backward()
            optimizer.step()
            with torch.no_grad():
                session._injection.write_back()
            learnt = bits(model)
            model.bfloat16()
            session.step()
        else:
            model.bfloat16()
            loss_of(model)(3).backward()
            optimizer.step()
    assert_same_bits(bits(model), {k: v.bfloat16() if v.is_floating_point() else v for k, v in learnt.items()})
    assert [p.requires_grad for p in model.parameters()] == flags
    for exact in (session.revert, session.delta):
        with pytest.raises(RuntimeError, match=r"'classifier.bias' is \[3, 1\] torch.bfloat16, its originals are .*float32"):
            exact()
    model.load_state_dict(learnt)
    model.float().load_state_dict(learnt)
    session.revert()
    assert_same_bits(bits(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_assigned_weights_are_refused_and_kept(dtype: torch.dtype) -> None:
    """load_state_dict(assign=True) puts Parameters into the model that no optimizer knows."""
    model = bert().to(dtype)
    flags = [p.requires_grad for p in model.parameters()]
    other = {k: v * 0.5 for k, v in bits(model).items()}
    session = sliced(model, CONFIG, verbose=False)
    with (
        pytest.raises(RuntimeError, match=r"query\.weight' is another Parameter .*changed while the session was open"),
        session,
    ):
        optimizer = train(session, loss_of(model), 3)
        model.load_state_dict({k: v.clone() for k, v in other.items()}, assign=True)
        loss_of(model)(3).backward()
        optimizer.step()
    assert_same_bits(bits(model), other)
    assert [p.requires_grad for p in model.parameters()] == flags
    with sliced(model, CONFIG, verbose=False) as session:  # a new session trains them
        train(session, loss_of(model), 1)
    assert not torch.equal(bits(model)["classifier.weight"], other["classifier.weight"])


def test_another_shape_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    session = sliced(model, SliceConfig(rank=4, modes=("row",), move_steps=2), verbose=False)
    with pytest.raises(RuntimeError, match=r"'0.weight' was \[8, 8\], now it is \[8, 6\]"), session:
        model[0].weight.data = torch.zeros(8, 6)
        session.step()
    assert model[0].weight.shape == (8, 6)


def test_moving_the_model_is_followed() -> None:
    """As model.to("cuda") does it: other storage in the same Parameters."""
    stays, moves = bert(), bert()
    for model in (stays, moves):
        with sliced(model, CONFIG, verbose=False) as session:
            optimizer = train(session, loss_of(model), 3)
            if model is moves:
                old = [p.data for p in model.parameters()]  # kept, so that no address comes again
                model._apply(torch.clone)
                assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in old}
            train(session, loss_of(model), 4, optimizer, first=3)
    assert_same_bits(bits(moves), bits(stays))
    session.revert()
    assert_same_bits(bits(moves), bits(bert()))


def test_flags_are_restored_each_on_its_own() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    model[1].bias.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    session = sliced(model, SliceConfig(rank=4, modes=("row",), move_steps=2), verbose=False)
    with pytest.raises(RuntimeError, match=r"requires_grad of '0.bias' could not be set back .* everything else is as before"):
        with session:
            model[0].bias.data = torch.zeros(8, dtype=torch.int32)
    model[0].bias.data = torch.zeros(8)
    model[0].bias.requires_grad_(True)
    assert [p.requires_grad for p in model.parameters()] == flags


def test_an_interrupted_half_precision_head_is_put_back() -> None:
    """Torch runs no closing hook after a KeyboardInterrupt."""
    model = bert().bfloat16()
    head = model.classifier.weight

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    handle = model.classifier.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), sliced(model, CONFIG, verbose=False):
        loss_of(model)(0)
    handle.remove()
    assert model.classifier.weight is head
    assert copy.deepcopy(model) is not model
