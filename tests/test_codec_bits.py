"""Exact differences: bitwise both ways, in the order of the numbers, for every type."""

import pytest
import torch
from torch import Tensor

from paring import DeltaError
from paring.delta.codec.bits import exact_back, exact_difference, exact_sum, from_ordered, integer_of, to_ordered

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
SMALL_FLOATS = [
    torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]  # fmt: skip
FLOATS = [torch.float64, torch.float32, *SMALL_FLOATS]
OTHERS = [
    torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64,
    torch.complex64, torch.complex32,
]  # fmt: skip


def patterns(dtype: torch.dtype, count: int = 5_000, seed: int = 0) -> Tensor:
    """All bit patterns of a narrow type, random ones and the extremes of a wide one."""
    integer = INTEGERS[dtype.itemsize]
    span = torch.iinfo(integer)
    if dtype.itemsize <= 2:
        return torch.arange(span.min, span.max + 1).to(integer).view(dtype)
    drawn = torch.randint(span.min, span.max, (count,), generator=torch.Generator().manual_seed(seed), dtype=integer)
    return torch.cat([drawn, torch.tensor([0, 1, -1, span.min, span.min + 1, span.max], dtype=integer)]).view(dtype)


def assert_same(a: Tensor, b: Tensor) -> None:
    assert a.dtype == b.dtype and a.shape == b.shape
    assert torch.equal(a.view(INTEGERS[a.itemsize]), b.view(INTEGERS[b.itemsize]))


@pytest.mark.parametrize("dtype", FLOATS + OTHERS, ids=str)
def test_every_pattern_comes_back(dtype: torch.dtype) -> None:
    t = patterns(dtype)
    i = to_ordered(t)
    assert i.dtype == integer_of(dtype) == INTEGERS[dtype.itemsize]
    assert_same(from_ordered(i, dtype), t)
    assert i.unique().numel() == t.view(i.dtype).unique().numel()


@pytest.mark.parametrize("dtype", FLOATS + OTHERS, ids=str)
def test_sum_and_back_are_bitwise(dtype: torch.dtype) -> None:
    i = patterns(dtype).view(INTEGERS[dtype.itemsize])
    before = i.view(dtype)
    for after in (i.roll(1).view(dtype), i.flip(0).view(dtype), i[torch.randperm(i.numel())].view(dtype)):
        d = exact_difference(before, after)
        assert d.dtype == INTEGERS[dtype.itemsize] and d.shape == before.shape
        assert_same(exact_sum(before, d), after)
        assert_same(exact_back(after, d), before)
        assert_same(exact_difference(after, before), -d)
    assert not exact_difference(before, before).any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_integers_are_in_the_order_of_the_numbers(dtype: torch.dtype) -> None:
    t = patterns(dtype)
    t = t[~t.to(torch.float64).isnan()]
    i = to_ordered(t)
    order = i.argsort()
    assert bool(
        (t.to(torch.float64)[order].diff() >= 0).all() if dtype != torch.float64 else t[order].sort()[0].equal(t[order])
    )


def test_a_step_of_one_is_the_next_number() -> None:
    t = torch.randn(1_000)
    assert torch.equal(exact_difference(t, t.nextafter(torch.tensor(torch.inf))), torch.ones(1_000, dtype=torch.int32))
    ends = torch.tensor([-0.0, 0.0, 1e-45, -1e-45, torch.inf, -torch.inf])
    assert to_ordered(ends).tolist() == [-1, 0, 1, -2, 0x7F800000, -0x7F800001]
    assert to_ordered(torch.tensor([1.0, -1.0], dtype=torch.bfloat16)).tolist() == [0x3F80, -0x3F81]


def test_payloads_of_nan_and_signs_of_zero_survive() -> None:
    before = torch.tensor([0x7FC00001, -1, 0, -(2**31), 0x7F800000, 5], dtype=torch.int32).view(torch.float32)
    after = torch.tensor([0x7FC00002, 0, -(2**31), 0, -0x800000, 0x7F800001], dtype=torch.int32).view(torch.float32)
    d = exact_difference(before, after)
    assert_same(exact_sum(before, d), after)
    assert_same(exact_back(after, d), before)


def test_a_fine_tune_has_small_differences() -> None:
    for dtype, most in ((torch.bfloat16, 7), (torch.float32, 23)):
        before = (torch.randn(10_000) * 0.03).to(dtype)
        after = (before.float() + 1e-4 * torch.randn(10_000)).to(dtype)
        d = exact_difference(before, after)
        assert float(d.abs().double().log2().clamp(min=0).mean()) < most
        assert_same(exact_sum(before, d), after)


def test_bools_and_shapes_and_views() -> None:
    a, b = torch.tensor([True, False, True]), torch.tensor([False, False, True])
    assert exact_difference(a, b).tolist() == [-1, 0, 0]
    assert_same(exact_sum(a, exact_difference(a, b)), b)
    for shape in ((), (0,), (3, 0), (2, 3, 4)):
        x, y = torch.randn(shape), torch.randn(shape)
        assert_same(exact_sum(x, exact_difference(x, y)), y)
    wide, other = torch.randn(4, 6).t(), torch.randn(6, 4)
    assert_same(exact_sum(wide, exact_difference(wide, other)).contiguous(), other)
    conjugate = torch.randn(3, dtype=torch.complex64).conj()
    d = exact_difference(torch.zeros(3, dtype=torch.complex64), conjugate)
    assert torch.equal(exact_sum(torch.zeros(3, dtype=torch.complex64), d), conjugate)


def test_the_tensors_given_stay_as_they_are() -> None:
    for dtype in (torch.float32, torch.int32, torch.float8_e8m0fnu):
        before, after = patterns(dtype, seed=1), patterns(dtype, seed=2)
        kept = before.clone(), after.clone()
        d = exact_difference(before, after)
        exact_sum(before, d)
        exact_back(after, d)
        assert_same(before, kept[0])
        assert_same(after, kept[1])


def test_parameters_are_read_without_a_graph() -> None:
    parameter = torch.nn.Parameter(torch.randn(3))
    assert not exact_sum(parameter, exact_difference(parameter, torch.zeros(3))).requires_grad


def test_what_is_refused() -> None:
    x = torch.zeros(3)
    with pytest.raises(DeltaError, match=r"complex128 has no exact differences; convert"):
        to_ordered(torch.zeros(3, dtype=torch.complex128))
    with pytest.raises(DeltaError, match=r"torch\.qint8 has no exact differences"):
        integer_of(torch.qint8)
    with pytest.raises(DeltaError, match=r"one type and shape; got torch\.float32 \[3\] and torch\.float16 \[3\]"):
        exact_difference(x, x.half())
    with pytest.raises(DeltaError, match=r"one type and shape; got torch\.float32 \[3\] and torch\.float32 \[1, 3\]"):
        exact_difference(x, x[None])
    for function in (exact_sum, exact_back):
        with pytest.raises(DeltaError, match=r"for torch\.float32 \[3\] are torch\.int32 of the same shape; got torch\.int16"):
            function(x, torch.zeros(3, dtype=torch.int16))
        with pytest.raises(DeltaError, match=r"got torch\.int32 \[1\]"):
            function(x, torch.zeros(1, dtype=torch.int32))
    with pytest.raises(DeltaError, match=r"differences of torch\.float32 are torch\.int32; got torch\.int64"):
        from_ordered(torch.zeros(3, dtype=torch.int64), torch.float32)
    with pytest.raises(DeltaError, match="neither true nor false"):
        exact_sum(torch.tensor([True]), torch.tensor([1], dtype=torch.int8))
