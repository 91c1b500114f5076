"""Weights that are not stored as [out, in]: whole runs against a dense reference."""

import copy

import pytest
import torch
from torch import Tensor, nn

from conftest import bits, train
from paring import SliceConfig, sliced
from paring.tune.schedules import plan


def kernels() -> nn.Module:
    """Convolutions whose weights and activations lie channels-last."""
    layers = (
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 6, (3, 2), stride=2, groups=2),
        nn.Flatten(),
        nn.Linear(96, 3),
    )
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def transposed() -> nn.Module:
    """GPT-2's layers, whose weights are stored [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return nn.Sequential(Conv1D(12, 9), nn.Tanh(), Conv1D(7, 12), nn.Tanh(), nn.Linear(7, 3))


@pytest.mark.parametrize("modes", [("row",), ("column",), ("column", "row")])
@pytest.mark.parametrize("build", [kernels, transposed])
def test_other_storage_trains_as_its_matrix_does(build, modes: tuple) -> None:
    """Against the dense reference: every step, the full gradient as a matrix, all but the slice set to zero, plain SGD."""
    model = build()
    reference, start = copy.deepcopy(model), bits(model)
    shape = (4, 4, 9, 8) if build is kernels else (4, 5, 9)
    config = SliceConfig(rank=3, modes=modes, move_steps=2)

    def loss(module: nn.Module, i: int) -> Tensor:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(i))
        return module(x.contiguous(memory_format=torch.channels_last) if build is kernels else x).square().mean()

    with sliced(model, config, verbose=False) as session:
        train(session, lambda i: loss(model, i), 9, torch.optim.SGD(session.parameters(), lr=0.3))
        matrices = session.matrices
    assert list(matrices) == ["0", "2"]
    for i in range(9):
        reference.zero_grad()
        loss(reference, i).backward()
        for name, s in plan(config, matrices, i).items():
            weight = reference.get_submodule(name).weight
            full = weight.grad.t() if build is transposed else weight.grad.reshape(weight.shape[0], -1)
            kept = torch.zeros_like(full)
            window = (slice(s.start, s.stop), slice(None)) if s.axis == "row" else (slice(None), slice(s.start, s.stop))
            kept[window] = full[window]
            with torch.no_grad():
                weight.sub_(0.3 * (kept.t() if build is transposed else kept.reshape(weight.shape)))
    for name in ("0.weight", "2.weight"):
        ours, theirs = model.get_parameter(name), reference.get_parameter(name)
        assert build is transposed or ours.is_contiguous(memory_format=torch.channels_last)
        assert not torch.equal(ours, start[name])
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
