"""Coded values: exactly what was stored, quantised no worse than said, and nothing false believed."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from torch import Tensor

from paring import DeltaError
from paring.delta.codec.bits import exact_difference
from paring.delta.codec.compression import FREE_BYTES, most_bytes, pack
from paring.delta.codec.quantise import LARGEST, num_groups
from paring.delta.codec.values import KINDS, EncodedValues, decode_values, encode_values, payload_bytes

WHERE = "'layer.weight'"
EXACT = ["bits8", "bits16", "bits32", "bits64"]
FLOATS = ["fp32", "bf16", "fp16"]
SCALED = ["int8", "int4", "sign"]
SIZES = [0, 1, 2, 3, 7, 8, 9, 63, 64, 65, 1_000, 2**20, 2**20 + 3]


def decoded(e: EncodedValues, kind: str, count: int, group: int = 0) -> Tensor:
    return decode_values(kind, e.stored, e.compression, e.raw_bytes, count, group, e.scales, WHERE)


def there_and_back(values: Tensor, kind: str, group: int = 0) -> Tensor:
    e = encode_values(values, kind, group)
    assert e.raw_bytes == payload_bytes(kind, values.numel()) and (e.scales is not None) == KINDS[kind].scaled
    return decoded(e, kind, values.numel(), group)


@pytest.mark.parametrize("kind", EXACT)
def test_integers_come_back(kind: str) -> None:
    dtype = KINDS[kind].dtype
    span = torch.iinfo(dtype)
    for size in SIZES:
        values = torch.randint(span.min, span.max, (size,), dtype=dtype)
        values[: size // 2] %= 11
        values[::5] = span.min
        values[1::5] = span.max
        found = there_and_back(values, kind)
        assert found.dtype == dtype and torch.equal(found, values)


@pytest.mark.parametrize("kind", FLOATS)
def test_floats_come_back_as_stored(kind: str) -> None:
    for size in SIZES:
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float8_e4m3fn):
            values = torch.randn(size).mul(0.01).to(dtype)
            found = there_and_back(values, kind)
            assert found.dtype == torch.float32
            assert torch.equal(found, values.to(torch.float32).to(KINDS[kind].dtype).to(torch.float32))


@pytest.mark.parametrize("kind", FLOATS)
def test_signs_of_zero_denormals_and_extremes_survive(kind: str) -> None:
    info = torch.finfo(KINDS[kind].dtype)
    ends = torch.tensor([0.0, -0.0, info.tiny, info.tiny / 2, info.smallest_normal / 8, -info.tiny / 4, info.max, info.min])
    found = there_and_back(ends, kind)
    assert torch.equal(found.view(torch.int32), ends.view(torch.int32))


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("group", [0, 1, 3, 64, 200_001, 2**21])
def test_quantised_values_are_an_integer_times_their_scale(kind: str, group: int) -> None:
    for size in SIZES:
        values = torch.randn(size) * torch.logspace(-4, 0, size)
        e = encode_values(values, kind, group)
        found = decoded(e, kind, size, group)
        assert found.dtype == torch.float32 and e.scales is not None and e.scales.dtype == torch.bfloat16
        assert e.scales.shape == (num_groups(size, group),)
        scale = e.scales.float().repeat_interleave(group or size or 1)[:size]
        q = (found / scale).round()
        assert torch.equal(q * scale, found) and (q.abs() <= LARGEST[kind]).all()
        if kind == "sign":
            assert torch.equal(found < 0, values < 0)
        else:  # the integer is the best one
            best = (values / scale).round().clamp(-LARGEST[kind], LARGEST[kind])
            assert torch.equal(q, best)


def test_scales_are_as_specified() -> None:
    values = torch.randn(64 * 50 + 7) * 1e-4
    for i, group in enumerate(values.split(64)):
        scales = {k: encode_values(values, k, 64).scales for k in SCALED}
        top, mean = float(group.abs().max()), float(group.abs().double().mean())
        assert float(scales["int8"][i]) == pytest.approx(top / 127, rel=2**-8)
        assert float(scales["sign"][i]) == pytest.approx(mean, rel=2**-8)
        clip = float(scales["int4"][i]) * 7 / top
        assert min(abs(clip - c) for c in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)) < 0.01


def error(values: Tensor, kind: str, group: int) -> float:
    return float((there_and_back(values, kind, group) - values).norm() / values.norm())


def test_errors_are_as_small_as_they_should_be() -> None:
    values = torch.randn(100_000) * 1e-3
    assert error(values, "fp32", 0) == 0 and error(values, "bf16", 0) < 0.002
    assert error(values, "int8", 64) < 0.0065 and error(values, "int8", 0) < 0.02
    assert error(values, "sign", 64) == pytest.approx(math.sqrt(1 - 2 / math.pi), abs=0.01)
    assert error(values, "int4", 64) < 0.103 and error(values, "int4", 0) < 0.12
    # at least as good as without clipping, also where one value is far off
    far = values.clone()
    far[5] = 0.02
    plain = (far / (0.02 / 7)).round() * (0.02 / 7)
    assert error(far, "int4", 0) < 0.5 * float((plain - far).norm() / far.norm())


def test_int8_errs_by_half_a_step() -> None:
    values = torch.randn(10_000)
    e = encode_values(values, "int8", 16)
    step = e.scales.float().repeat_interleave(16)
    assert ((decoded(e, "int8", 10_000, 16) - values).abs() <= 0.5001 * step).all()


@pytest.mark.parametrize("kind", SCALED)
def test_scales_at_the_ends_of_their_range(kind: str) -> None:
    for top in (torch.finfo(torch.float32).max, 1e38, 1e-38, 1e-40, 1e-45, 0.0):
        for group in (0, 2):
            values = torch.tensor([top, -top, top / 2, -top / 3, 0.0])
            found = there_and_back(values, kind, group)
            assert found.isfinite().all()
            if top >= 1e-38 and group == 0 and kind != "sign":
                assert torch.allclose(found, values, rtol=0.0, atol=top / LARGEST[kind])
    assert torch.equal(there_and_back(torch.zeros(9), kind, 4).abs(), torch.zeros(9))


@pytest.mark.parametrize("kind", SCALED)
def test_groups_of_more_than_a_chunk_have_scales_of_their_own(kind: str) -> None:
    size, group = 2 * 2**20 + 40, 2**20 + 7
    values = torch.randn(size)
    values[group:] *= -100
    e = encode_values(values, kind, group)
    assert e.scales is not None and 50 < float(e.scales[1] / e.scales[0]) < 200
    parts = [there_and_back(part, kind) for part in values.split(group)]
    assert torch.equal(decoded(e, kind, size, group), torch.cat(parts))


def test_values_below_the_smallest_scale_become_zero() -> None:
    for kind in ("int8", "int4"):
        e = encode_values(torch.tensor([1e-45, -1e-45, 1.0, -1.0]), kind, 2)
        assert e.scales is not None and e.scales[0] == 0
        assert decoded(e, kind, 4, 2)[:2].tolist() == [0, 0] and not e.stored[: KINDS[kind].bits // 4].any()


def test_equal_input_gives_equal_bytes_whatever_its_layout() -> None:
    values = torch.randn(5_000)
    for kind in FLOATS + SCALED:
        a = encode_values(values, kind, 64)
        for same in (values.clone(), values.repeat_interleave(2)[::2], torch.nn.Parameter(values)):
            b = encode_values(same, kind, 64)
            assert bytes(a.stored) == bytes(b.stored)
            assert a.scales is None or torch.equal(a.scales, b.scales)


def test_differences_of_a_fine_tune_are_stored_small() -> None:
    torch.manual_seed(0)
    before = torch.randn(300_000) * 0.03
    for dtype, kind, most in ((torch.bfloat16, "bits16", 3.6), (torch.float32, "bits32", 19.7)):
        w = before.to(dtype)
        d = exact_difference(w, (w.float() + 1e-4 * torch.randn(300_000)).to(dtype))
        assert encode_values(d, kind).stored.size * 8 / d.numel() < most
    assert encode_values(torch.randn(300_000) * 1e-3, "fp32").stored.size * 8 / 300_000 < 27.1
    assert encode_values(torch.randn(300_000) * 1e-3, "bf16").stored.size * 8 / 300_000 < 11.1


GOLDEN = [
    ("bits8", torch.tensor([0, -1, 127, -128], dtype=torch.int8), "0001feff", None),
    ("bits16", torch.tensor([0, -1, 1, -2, 300], dtype=torch.int16), "0001020358" "0000000002", None),
    ("bits32", torch.tensor([-(2**31), 5], dtype=torch.int32), "ff0a" "ff00" "ff00" "ff00", None),
    ("bits64", torch.tensor([-(2**63), 5]), "ff0a" + "ff00" * 7, None),
    ("fp32", torch.tensor([1.0, -2.0, 0.5]), "000000" "000000" "800000" "3fc03f", None),
    ("bf16", torch.tensor([1.0, -2.0, 0.5]), "800000" "3fc03f", None),
    ("fp16", torch.tensor([1.0, -2.0, 0.5]), "000000" "3cc038", None),
    ("int8", torch.tensor([1.27, -0.5, 0.0, -7.0, 3.0]), "7fce00817f", [0x3C24, 0x3D62, 0x3CC2]),
    ("int4", torch.tensor([1.27, -0.5, 0.0, -7.0, 3.0]), "d79007", [0x3E3A, 0x3F80, 0x3EDB]),
    ("sign", torch.tensor([1.27, -0.5, 0.0, -7.0, 3.0]), "0a", [0x3F63, 0x4060, 0x4040]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "values", "expected", "scales"), GOLDEN, ids=[g[0] for g in GOLDEN])
def test_the_bytes_are_the_specified_ones(kind: str, values: Tensor, expected: str, scales: list[int] | None) -> None:
    e = encode_values(values, kind, 2)
    assert e.compression == "none" and bytes(e.stored).hex() == expected
    assert (None if e.scales is None else e.scales.view(torch.int16).tolist()) == scales
    found = decode_values(kind, bytes.fromhex(expected), "none", len(expected) // 2, len(values), 2, e.scales, WHERE)
    if scales is None:
        assert torch.equal(found, values)
    elif kind == "int4":
        assert torch.equal(found, torch.tensor([7, -3, 0, -7, 7]) * e.scales.float().repeat_interleave(2)[:5])


def test_what_cannot_be_coded() -> None:
    cases: list[tuple[Tensor, str, int, str]] = [
        (torch.zeros(3), "fp8", 0, "values as 'fp8'; expected one of bits8, "),
        (torch.zeros(3), "bits32", 0, r"\[3\] torch.float32 cannot be stored as bits32"),
        (torch.zeros(3, dtype=torch.int16), "bits32", 0, "cannot be stored as bits32"),
        (torch.zeros(3, dtype=torch.int32), "fp32", 0, "cannot be stored as fp32"),
        (torch.zeros(3, dtype=torch.complex64), "fp32", 0, "cannot be stored as fp32"),
        (torch.zeros(3, 1), "fp32", 0, r"\[3, 1\] torch.float32 cannot be stored"),
        (torch.zeros(3), "int8", -1, "groups of -1 values"),
        (torch.tensor([1.0, 7e4]), "fp16", 0, "7e[+]04 is out of the range of fp16"),
        (torch.tensor([3.4e38]), "bf16", 0, "out of the range of bf16"),
        *(
            (torch.tensor([1e39], dtype=torch.float64), k, 0, f"1e[+]39 is out of the range of {k}")
            for k in FLOATS + SCALED
        ),
        *(
            (torch.cat([torch.zeros(2**20), torch.tensor([bad])]), k, 0, f"'a.b': NaN or infinity cannot be stored as {k}")
            for bad in (math.nan, math.inf, -math.inf)
            for k in FLOATS + SCALED
        ),
    ]  # fmt: skip
    for values, kind, group, message in cases:
        with pytest.raises(DeltaError, match=message):
            encode_values(values, kind, group, where="'a.b'")


def test_groups_are_of_no_use_to_kinds_without_scales() -> None:
    values = torch.randn(100)
    assert bytes(encode_values(values, "bf16", 64).stored) == bytes(encode_values(values, "bf16").stored)


S = torch.tensor([0.5], dtype=torch.bfloat16)
HOSTILE = {
    "unknown kind": ("fp8", "00", 1, 1, 0, None, "values as 'fp8'"),
    "wrong size": ("fp32", "00000000", 4, 2, 0, None, "2 values as fp32 in groups of 0 cannot have 4 bytes"),
    "huge count": ("int4", "00", 1, 2**60, 0, S, "cannot have 1 bytes"),
    "negative count": ("sign", "", 0, -1, 0, S, "-1 values as sign"),
    "negative group": ("int8", "00", 1, 1, -1, S, "groups of -1"),
    "fewer bytes than said": ("fp32", "0000", 4, 1, 0, None, "2 bytes are stored; expected 4"),
    "no scales": ("int8", "00", 1, 1, 0, None, "int8 has no scales; expected otherwise"),
    "scales of floats": ("fp32", "00000000", 4, 1, 0, S, "fp32 has scales; expected otherwise"),
    "too few scales": ("int8", "0000", 2, 2, 1, S, r"its scales are [1] torch.bfloat16; expected [2]"),
    "scales of nothing": ("int8", "", 0, 0, 0, S, r"expected [0] torch.bfloat16"),
    "scales in rows": ("int8", "00", 1, 1, 0, S[None], r"its scales are [1, 1] torch.bfloat16"),
    "scales of another type": ("int8", "00", 1, 1, 0, S.float(), "its scales are [1] torch.float32"),
    "a negative scale": ("int8", "00", 1, 1, 0, -S, "a scale is negative, NaN or too large"),
    "a scale of NaN": ("int8", "00", 1, 1, 0, S * math.nan, "a scale is negative, NaN or too large"),
    "an infinite scale": ("sign", "00", 1, 1, 0, S * math.inf, "a scale is negative, NaN or too large"),
    "a scale that overflows": ("int8", "00", 1, 1, 0, S * 1e37, "expected 0 to 2.68e+36"),
    "-128 in int8": ("int8", "80", 1, 1, 0, S, "it holds -128; int8 values are within ±127"),
    "-8 in int4": ("int4", "08", 1, 1, 0, S, "it holds -8; int4 values are within ±7"),
    "half a byte left over": ("int4", "10", 1, 1, 0, S, "bits beyond the last of its 1 values"),
    "bits left over": ("sign", "08", 1, 3, 0, S, "bits beyond the last of its 3 values"),
    "NaN in fp32": ("fp32", "0000c07f", 4, 1, 0, None, "it holds NaN or infinity"),
    "infinity in bf16": ("bf16", "80ff", 2, 1, 0, None, "it holds NaN or infinity"),
    "infinity in fp16": ("fp16", "007c", 2, 1, 0, None, "it holds NaN or infinity"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_refused(name: str) -> None:
    kind, stored, raw_bytes, count, group, scales, message = HOSTILE[name]
    with pytest.raises(DeltaError) as caught:
        decode_values(kind, bytes.fromhex(stored), "none", raw_bytes, count, group, scales, WHERE)
    assert message in str(caught.value) and str(caught.value).startswith(WHERE)


def test_a_frame_that_claims_too_much_is_refused_before_memory_is_taken() -> None:
    frame = encode_values(torch.zeros(10_000, dtype=torch.int64), "bits64")
    assert frame.compression == "zstd"
    count = (frame.stored.size * 256 + FREE_BYTES) // 8 + 1
    with pytest.raises(DeltaError, match="claim to hold"):
        decode_values("bits64", frame.stored, "zstd", 8 * count, count, 0, None, WHERE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_byte_is_few_values(kind: str) -> None:
    """However much alike they are; a frame that unfolds further is refused, though the format's other limits would allow it."""
    count = 3_000_000
    values = torch.zeros(count, dtype=KINDS[kind].dtype if kind in EXACT else torch.float32)
    e = encode_values(values, kind)
    assert e.compression == "zstd" and count <= 64 * e.stored.size + 8 * FREE_BYTES and e.stored.size < 0.25 * count
    assert torch.equal(decoded(e, kind, count).to(values.dtype), values)
    raw = np.zeros(payload_bytes(kind, count), np.uint8)
    stored, compression = pack(raw, range(0, raw.size, 2048), expansion=1_024)
    assert most_bytes(stored.size, KINDS[kind].expansion) < raw.size <= most_bytes(stored.size, 1_024)
    with pytest.raises(DeltaError, match=r"'layer\.weight': [\d,]+ compressed bytes claim to hold"):
        decode_values(kind, stored, compression, raw.size, count, 0, e.scales, WHERE)


@pytest.mark.parametrize("kind", KINDS)
def test_mutations_give_an_error_or_finite_values(kind: str) -> None:
    rng = np.random.default_rng(0)
    dtype, count, group = KINDS[kind].dtype, 999, 50
    values = torch.randn(count) * 9
    if kind in EXACT:
        values = values.round().to(dtype)
    e = encode_values(values, kind, group)
    refused = 0
    for _ in range(400):
        stored, claims = bytearray(e.stored), [e.raw_bytes, count, group]
        scales = None if e.scales is None else e.scales.clone()
        choice = rng.random()
        if choice < 0.5:
            for _ in range(rng.integers(1, 4)):
                stored[rng.integers(len(stored))] ^= 1 << rng.integers(8)
        elif choice < 0.65:
            stored = stored[: rng.integers(len(stored))]
            claims[0] = len(stored) if rng.random() < 0.5 else claims[0]
        elif choice < 0.8 or scales is None:
            claims[rng.integers(3)] += int(rng.choice([-1, 1, 50, -1_000, 2**31, 2**62]))
        else:
            scales.view(torch.int16)[rng.integers(scales.numel())] ^= int(1 << rng.integers(15)) * int(rng.choice([1, -1]))
        try:
            found = decode_values(kind, stored, e.compression, *claims, scales, WHERE)
        except DeltaError:
            refused += 1
            continue
        assert found.shape == (claims[1],) and (found.isfinite().all() if kind not in EXACT else found.dtype == dtype)
        if bytes(stored) == bytes(e.stored) and claims == [e.raw_bytes, count, group] and scales is None:
            assert torch.equal(found, decoded(e, kind, count, group))
    assert refused > 90


def test_temporaries_stay_small() -> None:
    values = torch.randn(6_000_000)
    for kind in FLOATS + SCALED:
        e = encode_values(values, kind, 64)
        tracemalloc.start()  # knows of arrays and bytes, and not of torch's tensors
        encode_values(values, kind, 64)
        decoded(e, kind, values.numel(), 64)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2.2 * e.raw_bytes + (20 << 20), kind
