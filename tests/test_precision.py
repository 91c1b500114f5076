"""Mixed precision and half-precision weights: fp32 working copies, written back exactly."""

import pytest
import torch

from conftest import assert_same_bits, bert, bits, tokens, train
from paring import SliceConfig, sliced

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("modes", [("row",), ("column",), ("row", "column")])
def test_half_weights_train_by_fp32_copies_and_revert_bitwise(dtype: torch.dtype, modes: tuple) -> None:
    model = bert().to(dtype)
    before = bits(model)
    batch = tokens()
    with sliced(model, SliceConfig(rank=4, modes=modes, move_steps=3, bias="row" in modes), verbose=False) as session:
        assert {p.dtype for p in session.parameters()} == {torch.float32}
        optimizer = torch.optim.AdamW(session.parameters(), lr=5e-3, fused=True)
        first = model(**batch).loss.item()
        train(session, lambda i: model(**batch).loss, 12, optimizer)
        assert model(**batch).loss.item() < first - 0.1
        for slot in session._slots:  # the weight is the working copy, rounded
            for stored, copy in slot.pairs():
                assert torch.equal(stored, copy.to(dtype))
        session.state_dict()
        delta = session.delta()
    after = bits(model)
    assert list(after) == list(before)
    delta.revert(model)
    assert_same_bits(bits(model), before)
    delta.apply(model)
    assert_same_bits(bits(model), after)
    session.revert()
    assert_same_bits(bits(model), before)


@pytest.mark.parametrize("where", ["bert.pooler.dense.weight", "classifier.weight"])
def test_steps_too_small_for_half_precision_add_up(where: str) -> None:
    """1e-5 a step is below bf16's resolution at 1.0: lost every time without a wide copy, there after 2,000 steps."""
    model = bert().bfloat16()
    with torch.no_grad():
        model.get_parameter(where).fill_(1.0)
    config = SliceConfig(rank=24, modes=("row",), move_steps=None, targets=("pooler.dense",))
    with sliced(model, config, verbose=False) as session:
        optimizer = torch.optim.SGD(session.parameters(), lr=1e-5)
        for _ in range(2000):
            for copy in session.parameters():
                copy.grad = torch.ones_like(copy)
            optimizer.step()
            session.step()
    value = model.get_parameter(where).detach().float().mean().item()
    assert value == pytest.approx(0.98, abs=0.004)


def test_bf16_autocast_saves_in_bf16_and_learns() -> None:
    model, batch = bert(), tokens()
    with sliced(model, SliceConfig(rank=4, modes=("row",), move_steps=4), verbose=False) as session:

        def run(i: int) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return model(**batch).loss

        first = run(0).item()
        train(session, run, 12)
        assert run(0).item() < first - 0.1
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        kept: list[torch.dtype] = []

        def pack(t: torch.Tensor) -> torch.Tensor:
            kept.append(t.dtype)
            return t

        query = model.bert.encoder.layer[0].attention.self.query
        x = torch.randn(5, 24)
        with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            query(x)
        assert kept == [torch.bfloat16]


@pytest.mark.parametrize("weights", ["fp32", "fp16"])
def test_gradient_scaler_skips_overflow_and_learns(weights: str) -> None:
    model, batch = bert(), tokens()
    if weights == "fp16":
        model.half()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # overflows at first
    with sliced(model, SliceConfig(rank=4, modes=("column", "row"), move_steps=4), verbose=False) as session:
        optimizer = torch.optim.AdamW(session.parameters(), lr=1e-2)
        start, losses, skipped = bits(model), [], 0
        for _ in range(40):
            with torch.autocast("cpu", torch.float16, enabled=weights == "fp32"):
                loss = model(**batch).loss
            scale = scaler.get_scale()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(session.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            session.step()
            optimizer.zero_grad()
            if scaler.get_scale() < scale:
                skipped += 1
                assert_same_bits(bits(model), start)
            losses.append(loss.item())
    assert skipped > 2
    assert losses[-1] < losses[0] - 0.2
