"""torch.compile inside a session: the same numbers, and a move compiles nothing anew."""

import pytest
import torch
from torch import Tensor, nn

from conftest import bert, convnet, tokens
from paring import SliceConfig, sliced


def losses(model: nn.Module, run, config: SliceConfig, compiled: bool) -> list[float]:
    with sliced(model, config, verbose=False) as session:
        optimizer = torch.optim.AdamW(session.parameters(), lr=1e-2)
        forward = torch.compile(model, backend="aot_eager") if compiled else model
        out = []
        for i in range(9):
            loss: Tensor = run(forward, i)
            loss.backward()
            optimizer.step()
            session.step()
            optimizer.zero_grad()
            out.append(loss.item())
    session.revert()
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("modes", "graphs"), [(("column",), 1), (("row", "column"), 2)])
def test_compiled_training_is_the_same_and_moves_compile_nothing(modes: tuple, graphs: int, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = bert().to(dtype)
    config = SliceConfig(rank=5, modes=modes, move_steps=2, bias="row" in modes)

    def run(forward: nn.Module, i: int) -> Tensor:
        return forward(**tokens(seed=i)).loss

    plain, compiled = losses(model, run, config, False), losses(model, run, config, True)
    assert compiled == pytest.approx(plain, rel=1e-4 if dtype == torch.float32 else 0.05)
    assert plain[-1] != plain[0]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_a_window_compiles_once_for_each_of_its_places() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = bert()
    config = SliceConfig(rank=5, modes=("column",), move_steps=1, layer_window=1)

    def run(forward: nn.Module, i: int) -> Tensor:
        return forward(**tokens(seed=i)).loss

    plain, compiled = losses(model, run, config, False), losses(model, run, config, True)  # 9 steps: three times round
    assert compiled == pytest.approx(plain, rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks at it
def test_convolutions_run_uncompiled_inside_a_compiled_model() -> None:
    torch._dynamo.reset()
    model, x = convnet(), torch.randn(4, 4, 9, 9)
    model(x)

    def run(forward: nn.Module, i: int) -> Tensor:
        return forward(x).square().mean()

    config = SliceConfig(rank=3, modes=("row", "column"), move_steps=3)
    assert losses(model, run, config, True) == pytest.approx(losses(model, run, config, False), rel=1e-4)
