"""Buffers in a session: those that a model saves are taken back, those it does not save are the forward's own."""

import pytest
import torch
from torch import Tensor, nn

from conftest import assert_same_bits, bits, train
from paring import SliceConfig, sliced


class Counting(nn.Module):
    """Batch statistics, and two counts of forwards: one that is saved, one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("uses", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.uses += 1
        return self.layers(x)


@pytest.mark.parametrize("inside", [True, False])
def test_revert_leaves_buffers_that_are_not_saved(inside: bool) -> None:
    model = Counting()
    before = bits(model)
    with sliced(model, SliceConfig(rank=2, modes=("column",), move_steps=2), verbose=False) as session:
        train(session, lambda i: model(torch.randn(4, 6)).square().mean(), 3)
        if inside:
            session.revert()
    assert (model.seen == 0) == inside and model.uses == 3
    session.revert()
    assert_same_bits(bits(model), before)
    assert model.seen == 0 and model.layers[1].num_batches_tracked == 0
    assert model.uses == 3


def test_session_state_holds_the_buffers_that_are_saved() -> None:
    model, other = Counting(), Counting()
    other.load_state_dict(model.state_dict())
    config = SliceConfig(rank=2, modes=("column",), move_steps=2)
    with sliced(model, config, verbose=False) as session, sliced(other, config, verbose=False) as resumed:
        train(session, lambda i: model(torch.randn(4, 6)).square().mean(), 3)
        state = session.state_dict()
        assert not any("uses" in name for name in state["touched"])
        resumed.load_state_dict(state)
    assert_same_bits(bits(other), bits(model))
    assert (other.seen, other.uses) == (3, 0)
