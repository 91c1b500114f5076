"""A slice's gradient against the slow, obvious reference: the full weight gradient, cut."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint

from paring import SliceConfig, sliced
from paring.tune.kinds import kind_of
from paring.tune.ops import attach, thin_product
from paring.tune.slices import Slice


def reference(wrapped: nn.Sequential, x: Tensor, slice_: Slice) -> tuple[Tensor, Tensor]:
    """Full gradients of a fixed scalar of the output; the weight's read as [out, in] and cut to [r, n]."""
    module = wrapped[0]
    y = wrapped(x)
    (y * weighting(y)).sum().backward()
    kind = kind_of(module)
    grad = module.weight.grad.t() if kind.transposed else module.weight.grad.flatten(1)
    cut = grad[slice_.start : slice_.stop] if slice_.axis == "row" else grad[:, slice_.start : slice_.stop].t()
    return cut, module.bias.grad[slice_.start : slice_.stop]


def weighting(y: Tensor) -> Tensor:
    return torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).sin()


def layers() -> dict[str, tuple[nn.Module, Tensor]]:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    return {
        "linear": (nn.Linear(10, 12), torch.randn(3, 5, 10)),
        "linear 2d": (nn.Linear(10, 12), torch.randn(6, 10)),
        "linear 1d": (nn.Linear(10, 12), torch.randn(10)),
        "linear long": (nn.Linear(10, 12), torch.randn(8, 256, 10)),
        "Conv1D": (Conv1D(12, 10), torch.randn(3, 5, 10)),
        "conv1d": (nn.Conv1d(4, 12, 3, padding=1), torch.randn(2, 4, 9)),
        "conv2d": (nn.Conv2d(4, 12, (3, 2), stride=(2, 1), padding=(1, 0)), torch.randn(2, 4, 9, 8)),
        "conv2d unbatched": (nn.Conv2d(4, 12, 3), torch.randn(4, 9, 8)),
        "conv2d patches": (nn.Conv2d(3, 12, 4, stride=4), torch.randn(2, 3, 8, 8)),
        "conv2d same": (nn.Conv2d(4, 12, 4, padding="same", dilation=2), torch.randn(2, 4, 9, 8)),
        "conv2d circular": (nn.Conv2d(4, 12, 3, padding=1, padding_mode="circular"), torch.randn(2, 4, 9, 8)),
        "conv2d grouped": (nn.Conv2d(6, 12, 3, groups=3, dilation=2), torch.randn(2, 6, 9, 8)),
        "conv2d depthwise": (nn.Conv2d(12, 12, 3, groups=12), torch.randn(2, 12, 9, 8)),
        "conv3d": (nn.Conv3d(2, 12, 2, stride=2), torch.randn(2, 2, 4, 6, 5)),
    }


def cases() -> list[tuple[str, torch.memory_format]]:
    """Every layer; batches of images in channels-last order too."""
    images = [name for name, (_, x) in layers().items() if "conv2d" in name and x.ndim == 4]
    return [(name, torch.contiguous_format) for name in layers()] + [(name, torch.channels_last) for name in images]


@pytest.mark.parametrize(("name", "memory"), cases())
@pytest.mark.parametrize(("axis", "start", "width"), [("row", 0, 1), ("row", 3, 5), ("column", 2, 6), ("column", 0, 1)])
def test_gradient_is_the_full_one_cut(name: str, axis: str, start: int, width: int, memory: torch.memory_format) -> None:
    module, x = layers()[name]
    if memory == torch.channels_last:
        module, x = module.to(memory_format=memory), x.contiguous(memory_format=memory)
    module, x = module.double(), x.double()
    slice_ = Slice(axis, start, width)
    wrapped = nn.Sequential(module, nn.ReLU(inplace=True))
    expected, expected_bias = reference(wrapped, x, slice_)
    config = SliceConfig(
        rank=width, modes=(axis,), move_steps=None, position=start, bias=axis == "row", targets=("0",), train_also=()
    )
    with sliced(wrapped, config, verbose=False) as session:
        full = module.weight.grad.clone()
        y = wrapped(x)
        (y * weighting(y)).sum().backward()
        grads = [p.grad for p in session.parameters()]
        assert torch.equal(module.weight.grad, full)  # no full gradient was formed
    torch.testing.assert_close(grads[0], expected, rtol=1e-10, atol=1e-10)
    if axis == "row":
        torch.testing.assert_close(grads[1], expected_bias, rtol=1e-10, atol=1e-10)


def test_attach_passes_gradcheck() -> None:
    """Through input and slice together, the working copy really standing in the weight."""
    module = nn.Linear(5, 6, bias=False).double().requires_grad_(False)
    kind, slice_ = kind_of(module), Slice("column", 1, 2)

    def run(x: Tensor, copy: Tensor) -> Tensor:
        weight = module.weight.detach().clone()
        weight[:, 1:3] = copy.detach().t()
        y = nn.functional.linear(x, weight)
        return attach(y, copy, None, kind.keep(module, x, y, slice_), kind.product(module, slice_, False))

    x = torch.randn(4, 5, dtype=torch.double, requires_grad=True)
    copy = torch.randn(2, 6, dtype=torch.double, requires_grad=True)
    assert gradcheck(run, (x, copy))


@pytest.mark.parametrize("length", [1, 7, 1024, 1025, 4096])
def test_thin_product_in_pieces_is_the_product(length: int) -> None:
    thin, wide = torch.randn(length, 3), torch.randn(length, 11)
    torch.testing.assert_close(thin_product(thin, wide), thin.t() @ wide, rtol=1e-4, atol=1e-4)
    part = torch.randn(length, 9)[:, 2:5]  # a slice of the output's gradient is not contiguous
    torch.testing.assert_close(thin_product(part, wide), part.t() @ wide, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axis", ["row", "column"])
def test_tied_weights_get_the_gradient_of_every_use(axis: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 6, padding_idx=9)
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight
            self.out = nn.Linear(6, 11, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.b(self.a(self.embed(ids)).tanh()))

    model, ids = Tied().double(), torch.tensor([[1, 2, 3, 9], [3, 4, 4, 0]])
    model(ids).pow(2).sum().backward()
    full = {"a": model.a.weight.grad, "out": model.out.weight.grad}
    config = SliceConfig(rank=3, modes=(axis,), move_steps=None, position=2, targets=("a", "out"), train_also=())
    with sliced(model, config, verbose=False) as session:
        model(ids).pow(2).sum().backward()
        grads = dict(zip(("a", "out"), (p.grad for p in session.parameters()), strict=True))
    for name, grad in grads.items():
        cut = full[name][2:5] if axis == "row" else full[name][:, 2:5].t()
        torch.testing.assert_close(grad, cut, rtol=1e-10, atol=1e-10)


def test_column_slice_keeps_only_its_columns() -> None:
    kept: dict[str, int] = {}
    for axis in ("column", "row"):
        model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(4)))
        config = SliceConfig(rank=4, modes=(axis,), move_steps=None, targets=("*",), train_also=())
        weights = {p.data_ptr() for p in model.parameters()}
        storages: dict[int, int] = {}

        def pack(t: Tensor, weights: set[int] = weights, storages: dict[int, int] = storages) -> Tensor:
            if t.data_ptr() not in weights:
                storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with sliced(model, config, verbose=False), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = model(torch.randn(100, 64))
        kept[axis] = sum(storages.values())
        del y
    assert kept == {"column": 4 * 100 * 4 * 4, "row": 4 * 100 * 64 * 4}


@pytest.mark.parametrize("settings", [{}, {"layer_window": 1}])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_backward_from_before_a_move_is_refused(settings: dict, checkpointed: bool) -> None:
    """Its gradient belongs to the slice that was left; autograd alone does not notice where no weight above changes."""
    model, x = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]), torch.randn(4, 8)
    config = SliceConfig(rank=2, modes=("row",), move_steps=1, targets=("*",), train_also=(), **settings)
    top = model[1]

    def forward() -> Tensor:
        return checkpoint(top, x, use_reentrant=False) if checkpointed else top(x)

    with sliced(model, config, verbose=False) as session:
        early = forward().sum()
        session.step()
        with pytest.raises(RuntimeError, match=r"backward of a forward from before the slice of '1' moved.*forward again"):
            early.backward()
        assert all(p.grad is None for p in session.parameters())
        if not settings:
            late = forward().sum()
            late.backward(retain_graph=True)
            late.backward()  # the same placement still
            assert session._slots[1].copy.grad is not None


@pytest.mark.parametrize("modes", [("row",), ("row", "column")])
def test_a_tied_bias_of_tied_weights_has_one_copy_with_the_gradient_of_both_uses(modes: tuple) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight, self.b.bias = self.a.weight, self.a.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).tanh())

    model, x = Tied().double(), torch.randn(4, 6, dtype=torch.double)
    model(x).pow(2).sum().backward()
    full = model.a.bias.grad.clone()
    config = SliceConfig(rank=3, modes=modes, move_steps=1, position=2, bias=True, targets=("a",), train_also=())
    with sliced(model, config, verbose=False) as session:
        assert len(session.parameters()) == 2
        model(x).pow(2).sum().backward()
        torch.testing.assert_close(session.parameters()[1].grad, full[2:5], rtol=1e-10, atol=1e-10)
        before = model.a.bias.detach().clone()
        torch.optim.SGD(session.parameters(), lr=0.1).step()
        session.step()
    torch.testing.assert_close(model.b.bias[2:5], before[2:5] - 0.1 * full[2:5], rtol=1e-10, atol=1e-10)
