"""Slices of a lower rank in an open session (rank decay): what is trained, what is kept, and the way back."""

import pytest
import torch
from torch import nn

from conftest import assert_same_bits, bert, bits, tokens
from paring import SliceConfig, SliceSession, sliced

BOTH = {"rank": 5, "move_steps": 3, "bias": True}


def train(session: SliceSession, model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for i in steps:
        model(**tokens(seed=i)).loss.backward()
        optimizer.step()
        session.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("modes", [("row",), ("column",), ("row", "column")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_narrower_slice_changes(modes: tuple, dtype: torch.dtype) -> None:
    model = bert().to(dtype)
    before = bits(model)
    config = SliceConfig(**(BOTH | {"modes": modes, "bias": "row" in modes, "move_steps": 50}))
    with sliced(model, config, verbose=False) as session:
        copies = [(id(p), p.shape) for p in session.parameters()]
        optimizer = torch.optim.SGD(session.parameters(), lr=10.0)
        session.narrow(2)
        assert session.rank == 2 and {s.width for s in session.active.values()} == {2}
        train(session, model, optimizer, range(2))
        assert [(id(p), p.shape) for p in session.parameters()] == copies
        query = model.bert.encoder.layer[0].attention.self.query
        changed = query.weight.detach() != before["bert.encoder.layer.0.attention.self.query.weight"]
        if modes[0] == "row":
            assert changed[:2].any() and not changed[2:].any()
            moved = query.bias.detach() != before["bert.encoder.layer.0.attention.self.query.bias"]
            assert moved[:2].any() and not moved[2:].any()
        else:
            assert changed[:, :2].any() and not changed[:, 2:].any()
    session.revert()
    assert_same_bits(bits(model), before)


def test_it_learns_what_a_session_of_that_rank_learns() -> None:
    narrow, wide = bert(), bert()
    with sliced(narrow, SliceConfig(rank=2, move_steps=3, bias=True), verbose=False) as session:
        train(session, narrow, torch.optim.AdamW(session.parameters(), lr=1e-2), range(8))
    with sliced(wide, SliceConfig(**BOTH), verbose=False) as session:
        session.narrow(2)
        train(session, wide, torch.optim.AdamW(session.parameters(), lr=1e-2), range(8))
    assert_same_bits(bits(narrow), bits(wide))


def test_a_narrowed_run_resumes_bit_for_bit() -> None:
    def run(model: nn.Module, stop: int) -> tuple[dict, dict]:
        with sliced(model, SliceConfig(**BOTH), verbose=False) as session:
            optimizer = torch.optim.AdamW(session.parameters(), lr=1e-2)
            train(session, model, optimizer, range(4))
            session.narrow(3)
            train(session, model, optimizer, range(4, stop))
            return session.state_dict(), optimizer.state_dict()

    whole, first, second = bert(), bert(), bert()
    run(whole, 10)
    state, moments = run(first, 5)
    with sliced(second, SliceConfig(**BOTH), verbose=False) as session:
        session.load_state_dict(state)
        assert session.rank == 3
        optimizer = torch.optim.AdamW(session.parameters(), lr=1e-2)
        optimizer.load_state_dict(moments)
        train(session, second, optimizer, range(5, 10))
        assert_same_bits(bits(second), bits(whole))
        session.revert()
        assert session.rank == 5 and {s.width for s in session.active.values()} == {5}
    assert_same_bits(bits(second), bits(bert()))


def test_a_rank_that_cannot_be() -> None:
    model = bert()
    with sliced(model, SliceConfig(**BOTH), verbose=False) as session:
        for rank in (0, 6, 2.0, True):
            with pytest.raises(ValueError, match=r"narrow: rank is .*; expected a whole number from 1 to 5, the present rank"):
                session.narrow(rank)  # type: ignore[arg-type]
        session.narrow(5)
        assert session.rank == 5
        optimizer = torch.optim.SGD(session.parameters(), lr=0.1)
        model(**tokens()).loss.backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match=r"session\.step\(\) was not called"):
            session.narrow(2)
        session.step()
    with pytest.raises(RuntimeError, match="the session is not open"):
        session.narrow(2)


def test_a_compiled_model_follows() -> None:
    plain, compiled = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))
    compiled.load_state_dict(plain.state_dict())
    x = torch.randn(4, 6)
    config = SliceConfig(rank=3, move_steps=2, bias=True, targets=("0",), train_also=("1",))
    for model, compiler in ((plain, lambda m: m), (compiled, lambda m: torch.compile(m, backend="aot_eager"))):
        with sliced(model, config, verbose=False) as session:
            run = compiler(model)
            optimizer = torch.optim.SGD(session.parameters(), lr=0.1)
            for i in range(6):
                if i == 3:
                    session.narrow(2)
                run(x).square().sum().backward()
                optimizer.step()
                session.step()
                optimizer.zero_grad()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value)
