"""Coded positions: bit for bit the same again, near the entropy, and nothing false believed."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from torch import Tensor

from paring import DeltaError
from paring.delta.codec import positions as module
from paring.delta.codec.gaps import decode_gaps, encode_gaps, size_bounds
from paring.delta.codec.mask import encode_mask
from paring.delta.codec.planes import CHUNK
from paring.delta.codec.positions import CODINGS, MOST_ENTRIES, EncodedPositions, decode_positions, encode_positions

WHERE = "'layer.weight'"


def drawn(numel: int, count: int, seed: int = 0) -> Tensor:
    chosen = np.random.default_rng(seed).choice(numel, count, replace=False)
    return torch.from_numpy(np.sort(chosen).astype(np.int64))


def scattered(numel: int, keep: float, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.flatnonzero(np.random.default_rng(seed).random(numel) < keep))


def decoded(e: EncodedPositions, count: int, numel: int) -> Tensor:
    return decode_positions(e.coding, e.stored, e.compression, e.raw_bytes, count, numel, WHERE)


def coded(coding: str, positions: Tensor, numel: int) -> EncodedPositions:
    return module._encoded(coding, positions, numel)


def assert_comes_back(positions: Tensor, numel: int, codings: tuple[str, ...] = ("mask", "gaps")) -> None:
    for e in [encode_positions(positions, numel), *(coded(c, positions, numel) for c in codings)]:
        found = decoded(e, positions.numel(), numel)
        assert found.dtype == torch.int64 and torch.equal(found, positions)


@pytest.mark.parametrize("numel", [0, 1, 2, 7, 8, 9, 255, 256, 257, 1_000, 70_000])
def test_positions_come_back(numel: int) -> None:
    for count in {0, 1, 2, numel // 100, numel // 10, numel // 2, numel - 1, numel}:
        if 0 <= count <= numel:
            for seed in range(4):
                assert_comes_back(drawn(numel, count, seed), numel)
    if numel:
        assert_comes_back(torch.tensor([0]), numel)
        assert_comes_back(torch.tensor([numel - 1]), numel)


@pytest.mark.parametrize("keep", [0.9, 0.3, 0.1, 0.01, 0.0003])
def test_positions_of_several_chunks_come_back(keep: float) -> None:
    positions = scattered(9_000_001, keep)
    assert_comes_back(positions, 9_000_001)
    assert_comes_back(positions, int(positions[-1]) + 1)


def test_runs_clusters_and_far_ends_come_back() -> None:
    assert_comes_back(torch.arange(3_000_000), 3_000_000)
    assert_comes_back(torch.arange(3_000_000) + 12_345, 40_000_000)
    far = torch.cat([torch.arange(2_100_000), torch.tensor([2**27])])  # more escapes than a chunk holds
    assert_comes_back(far, 2**27 + 1)
    assert_comes_back(torch.cat([torch.tensor([0]), far[-1:] + far]), 2**28 + 1)
    every = torch.arange(0, 256 * 5_000, 256)  # each gap an escape and a 0
    assert_comes_back(every, 256 * 5_000)


def test_positions_beyond_32_bits_come_back() -> None:
    for positions, numel in [
        (torch.tensor([0, 5, 2**32, 2**40 - 1]), 2**40),
        (torch.tensor([MOST_ENTRIES - 1]), MOST_ENTRIES),
        (torch.arange(1_000) + 2**33, 2**34),
        (torch.empty(0, dtype=torch.int64), MOST_ENTRIES),
        (scattered(1_000_000, 0.3) * 2**20, 2**40),
    ]:
        assert_comes_back(positions, numel, ("gaps",))


def test_other_integers_and_strides_are_the_same_positions() -> None:
    positions = drawn(250, 20)
    expected = bytes(encode_positions(positions, 250).stored)
    for same in (positions.int(), positions.to(torch.uint8), positions.repeat_interleave(2)[::2]):
        assert bytes(encode_positions(same, 250).stored) == expected


def entropy_bytes(count: int, numel: int) -> float:
    k = count / numel
    return -numel * (k * math.log2(k) + (1 - k) * math.log2(1 - k)) / 8


BOUNDS = {0.5: 1.01, 0.3: 1.01, 0.2: 1.03, 0.1: 1.02, 0.03: 1.02, 0.01: 1.02, 0.003: 1.03, 0.001: 1.05, 0.0003: 1.09}


@pytest.mark.parametrize("keep", BOUNDS)
def test_size_is_near_the_entropy(keep: float) -> None:
    numel = 2_000_000
    positions = scattered(numel, keep)
    e = encode_positions(positions, numel)
    assert 0.99 < e.stored.size / entropy_bytes(positions.numel(), numel) < BOUNDS[keep]


@pytest.mark.parametrize("keep", [0.6, 0.3, 0.21, 0.19, 0.1, 0.041, 0.039, 0.01])
def test_the_smaller_coding_is_stored(keep: float) -> None:
    positions = scattered(500_000, keep)
    sizes = {c: coded(c, positions, 500_000).stored.size for c in CODINGS}
    assert encode_positions(positions, 500_000).stored.size <= 1.005 * min(sizes.values())


def test_crowded_positions_are_a_mask_at_any_keep() -> None:
    mask = np.zeros((3_000, 768), bool)
    mask[np.random.default_rng(0).random(3_000) < 0.01] = True
    mask &= np.random.default_rng(1).random(mask.shape) < 0.7
    positions = torch.from_numpy(np.flatnonzero(mask))
    e = encode_positions(positions, mask.size)
    assert e.coding == "mask" and e.stored.size < 0.8 * coded("gaps", positions, mask.size).stored.size
    assert encode_positions(positions, 2**40).coding == "gaps"


def test_escapes_across_chunks() -> None:
    """Runs of 255 that end just before, at and after the end of a piece, and fill one."""
    for before in (0, 1, CHUNK - 2, CHUNK - 1, CHUNK, CHUNK + 1):
        for escapes in (1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 1):
            raw = np.zeros(1 + before + escapes + 1 + 5 + CHUNK, np.uint8)
            raw[1 + before : 1 + before + escapes] = 255
            raw[1 + before + escapes] = 7
            count = before + 1 + 5 + CHUNK
            p = decode_gaps(raw, count, MOST_ENTRIES, WHERE)
            gaps = p.diff(prepend=torch.tensor([-1])) - 1
            assert int(gaps[before]) == 255 * escapes + 7 and int(gaps.sum()) == 255 * escapes + 7


def test_whole_rows_and_columns_cost_next_to_nothing() -> None:
    mask = np.zeros((3_000, 768), bool)
    mask[np.random.default_rng(0).random(3_000) < 0.01] = True
    rows = torch.from_numpy(np.flatnonzero(mask))
    columns = torch.arange(768 * 3_000).view(3_000, 768)[:, :8].reshape(-1)
    for positions in (rows, columns, torch.arange(768 * 3_000)):
        assert encode_positions(positions, 768 * 3_000).stored.size * 8 < 0.2 * positions.numel()


GOLDEN = [
    ("mask", [0, 3, 8, 9], 10, "0903"),
    ("mask", [], 0, ""),
    ("mask", [0], 1, "01"),
    ("gaps", [], 7, "00"),
    ("gaps", [2, 5, 70], 100, "00020240"),
    ("gaps", [256, 857], 20_000, "0200004096"),  # two planes
    ("gaps", [2, 5, 70, 1_000, 5_000], 100_000, "04181310100000043af9"),  # four planes
]


@pytest.mark.parametrize(("coding", "positions", "numel", "expected"), GOLDEN)
def test_the_bytes_are_the_specified_ones(coding: str, positions: list[int], numel: int, expected: str) -> None:
    assert CODINGS[coding][0](torch.tensor(positions, dtype=torch.int64), numel).tobytes().hex() == expected
    stored = bytes.fromhex(expected)
    assert decode_positions(coding, stored, "none", len(stored), len(positions), numel, WHERE).tolist() == positions


def test_bytes_that_another_writer_may_choose() -> None:
    """The same three gaps, 254, 255 and 600, with 0, 1 and 4 low bits."""
    for stored in ("00feff00ffff5a", "01027f7fff2d", "04020303070f0f25"):
        found = decode_positions("gaps", bytes.fromhex(stored), "none", len(stored) // 2, 3, 1_112, WHERE)
        assert found.tolist() == [254, 510, 1_111]


def test_reading_agrees_with_a_slow_reference() -> None:
    for keep in (0.2, 0.02, 0.001):
        positions = scattered(100_000, keep)
        raw = encode_gaps(positions, 100_000)
        count, shift = positions.numel(), raw[0]
        row = -(-count // 8)
        stream, h, pending = raw[1 + int(shift) * row :].tolist(), [], 0
        for byte in stream:
            pending += byte
            if byte < 255:
                h.append(pending)
                pending = 0
        last, found = -1, []
        for i, high in enumerate(h):
            low = sum((int(raw[1 + b * row + i // 8]) >> i % 8 & 1) << b for b in range(shift))
            last += (high << int(shift)) + low + 1
            found.append(last)
        assert found == positions.tolist()
        mask = encode_mask(positions, 100_000)
        assert [i for i in range(100_000) if mask[i // 8] >> i % 8 & 1] == positions.tolist()


@pytest.mark.parametrize(
    ("positions", "numel"),
    [
        (torch.tensor([3, 3]), 9),
        (torch.tensor([3, 2]), 9),
        (torch.tensor([-1, 2]), 9),
        (torch.tensor([0, 9]), 9),
        (torch.tensor([0]), 0),
        (torch.tensor([0]), MOST_ENTRIES + 1),
        (torch.arange(2_100_000).roll(1), 3_000_000),
        (torch.cat([torch.arange(2**20), torch.tensor([2**20 - 1])]), 3_000_000),  # between two chunks
        (torch.tensor([[1]]), 9),
        (torch.tensor([1.0]), 9),
        (torch.tensor([True]), 9),
    ],
)
def test_only_increasing_positions_are_coded(positions: Tensor, numel: int) -> None:
    with pytest.raises(DeltaError, match="positions"):
        encode_positions(positions, numel)


HOSTILE = {
    "unknown coding": ("runs", "0903", 2, 4, 10, "positions coded as 'runs'; expected 'mask' or 'gaps'"),
    "count below 0": ("mask", "0903", 2, -1, 10, "-1 positions in 10 entries"),
    "count above numel": ("mask", "0903", 2, 11, 10, "11 positions in 10 entries"),
    "numel beyond all": ("gaps", "00", 1, 0, MOST_ENTRIES + 1, "entries"),
    "mask of another size": ("mask", "090300", 3, 4, 10, "4 positions of 10 as mask cannot have 3 bytes"),
    "mask of another count": ("mask", "0903", 2, 3, 10, "its mask keeps 4 entries; expected 3"),
    "mask with a bit too many": ("mask", "0907", 2, 5, 10, "entries beyond the last of its 10"),
    "gaps too short": ("gaps", "000202", 3, 3, 100, "cannot have 3 bytes"),
    "gaps too long": ("gaps", "00" * 4_200, 4_200, 3, 100, "cannot have 4,200 bytes"),
    "gaps with 49 low bits": ("gaps", "31" + "00" * 60, 61, 3, 100, "with 49 low bits"),
    "planes without gaps": ("gaps", "03000000", 4, 3, 100, "are no 3 positions"),
    "gaps that end in an escape": ("gaps", "000202ff", 4, 3, 1_000, "are no 3 positions"),
    "one gap too many": ("gaps", "0002024000", 5, 3, 100, "it holds 4 positions up to 71; expected 3 below 100"),
    "one gap too few": ("gaps", "000202ff40", 5, 4, 1_000, "it holds 3 positions"),
    "beyond numel": ("gaps", "00020240", 4, 3, 70, "expected 3 below 70"),
    "beyond numel by the low bits": ("gaps", "0200004096", 5, 2, 857, "expected 2 below 857"),
    "beyond numel by the low bits alone": ("gaps", "02010100", 4, 1, 3, "it holds 1 positions up to 3; expected 1 below 3"),
    "beyond 64 bits": ("gaps", "30" + "01" * 48 + "ff" * 300 + "00", 350, 1, MOST_ENTRIES, "expected 1 below"),
    "bits left over in a plane": ("gaps", "0200044096", 5, 2, 20_000, "is damaged"),
    "escapes where nothing is kept": ("gaps", "00ff", 2, 0, 100, "is damaged"),
    "more where nothing is kept": ("gaps", "0000", 2, 0, 100, "it holds 1 positions"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_refused(name: str) -> None:
    coding, stored, raw_bytes, count, numel, message = HOSTILE[name]
    with pytest.raises(DeltaError) as caught:
        decode_positions(coding, bytes.fromhex(stored), "none", raw_bytes, count, numel, WHERE)
    assert message in str(caught.value) and str(caught.value).startswith(WHERE)


def test_lies_about_size_are_found_before_anything_is_unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "unpack", lambda *args: pytest.fail("unfolded"))
    for coding, raw_bytes, count, numel in [
        ("gaps", size_bounds(10)[1] + 1, 10, MOST_ENTRIES),
        ("gaps", 10, 10, 1_000),
        ("gaps", 1 << 40, 10, MOST_ENTRIES),
        ("mask", 1 << 40, 10, 1_000),
        ("mask", -1, 0, 0),
    ]:
        with pytest.raises(DeltaError, match="cannot have"):
            decode_positions(coding, b"", "zstd", raw_bytes, count, numel, WHERE)


def test_honest_payloads_are_within_their_bounds() -> None:
    for keep in (0.2, 0.01, 0.0001):
        positions = scattered(1_000_000, keep)
        for numel in (1_000_000, 10**9, MOST_ENTRIES):
            least, most = size_bounds(positions.numel())
            assert least <= encode_gaps(positions, numel).size <= most
    end = torch.tensor([MOST_ENTRIES - 1])
    assert encode_gaps(end, MOST_ENTRIES).size <= size_bounds(1)[1]


@pytest.mark.parametrize("keep", [0.5, 0.15, 0.02])
def test_mutated_payloads_give_an_error_or_true_positions(keep: float) -> None:
    rng = np.random.default_rng(0)
    positions = scattered(3_000, keep)
    numel, count = 3_000, positions.numel()
    originals = [coded(c, positions, numel) for c in CODINGS]
    # as they are, and not compressed, where a flipped bit gets further
    originals += [
        EncodedPositions(c, CODINGS[c][0](positions, numel), "none", e.raw_bytes)
        for c, e in zip(CODINGS, originals, strict=True)
    ]
    refused = 0
    for _ in range(1_500):
        e = originals[rng.integers(len(originals))]
        stored, claims = bytearray(e.stored), [e.raw_bytes, count, numel]
        if rng.random() < 0.8:
            for _ in range(rng.integers(1, 4)):
                stored[rng.integers(len(stored))] ^= 1 << rng.integers(8)
        if rng.random() < 0.2:
            stored = stored[: rng.integers(len(stored) + 1)]
            if rng.random() < 0.5:
                claims[0] = len(stored)
        if rng.random() < 0.3:
            claims[rng.integers(3)] += int(rng.choice([-1, 1, 7, 1_000, -1_000, 2**31, 2**40, 2**62, -(2**62)]))
        try:
            found = decode_positions(e.coding, stored, e.compression, *claims, WHERE)
        except DeltaError:
            refused += 1
            continue
        p = found.tolist()
        assert len(p) == claims[1] and p == sorted(set(p)) and all(0 <= i < claims[2] for i in p)
        if bytes(stored) == bytes(e.stored) and e.coding == "gaps":
            assert torch.equal(found, positions)
    assert 700 < refused < 1_500


def test_temporaries_stay_small() -> None:
    numel = 30_000_000
    for keep, most in ((0.3, 40), (0.15, 60), (0.02, 60)):
        positions = scattered(numel, keep)
        tracemalloc.start()  # knows of arrays and bytes, and not of torch's result
        e = encode_positions(positions, numel)
        decoded(e, positions.numel(), numel)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most << 20, keep


def test_decoding_needs_no_increasing_input_order() -> None:
    """Whatever the bytes, gaps only ever lead forwards."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = int(rng.integers(1, 50))
        raw = rng.integers(0, 255, 1 + count, dtype=np.uint8)
        raw[0] = 0
        p = decode_gaps(raw, count, MOST_ENTRIES, WHERE)
        assert int(p[0]) >= 0 and bool((p[1:] > p[:-1]).all())
