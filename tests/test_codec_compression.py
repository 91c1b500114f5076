"""Compressed payloads: what is stored, and that nothing false or hostile is believed."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
import zstandard

from paring import DeltaError
from paring.delta.codec.compression import FREE_BYTES, MOST_EXPANSION, most_bytes, pack, unpack

FRAME = bytes.fromhex("28b52ffd2080bc000080000102030405060708090a0b0c0d0e0f0100daa47309010000")  # 0, 1 .. 15, eight times
CONTENT = bytes(range(16)) * 8
WHERE = "'layer.weight'"


def noise(size: int, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, size, dtype=np.uint8)


@pytest.mark.parametrize("size", [0, 1, 2, 100, 2047, 2048, 2049, 131_072, 131_073, 1_000_000])
@pytest.mark.parametrize("high", [1, 3, 256])
def test_payloads_come_back(size: int, high: int) -> None:
    raw = noise(size, high)
    for cuts in ((), (0, size // 3, size // 3, size)):
        stored, compression = pack(raw, cuts)
        assert compression in ("none", "zstd") and stored.dtype == np.uint8 and stored.flags.writeable
        assert bytes(unpack(stored, compression, size, WHERE)) == raw.tobytes()
        assert bytes(unpack(bytes(stored), compression, size, WHERE)) == raw.tobytes()


def test_compressed_only_where_it_pays() -> None:
    raw = noise(100_000)
    assert pack(raw)[1] == "none" and pack(raw)[0].size == raw.size
    stored, compression = pack(noise(100_000, 128))  # 7 bits of 8
    assert compression == "zstd" and stored.size < 0.88 * 100_000


def test_a_gain_of_less_than_two_percent_is_none() -> None:
    raw = noise(64 << 17)
    raw[: 1 << 17] = 0  # one block of 64
    assert pack(raw)[1] == "none"
    raw[: 1 << 18] = 0
    assert pack(raw)[1] == "zstd"


def test_parts_have_codes_of_their_own() -> None:
    raw = np.concatenate([noise(30_000), noise(30_000, 16)])
    assert pack(raw, [30_000])[0].size < 1.02 * (30_000 + 30_000 / 2) < 0.95 * pack(raw)[0].size


def test_long_runs_stay_below_the_largest_expansion() -> None:
    for raw in (np.zeros(20_000_000, np.uint8), np.tile(noise(768), 20_000)):
        stored, compression = pack(raw)
        assert compression == "zstd" and raw.size <= most_bytes(stored.size) and raw.size > 64 * stored.size
        assert np.array_equal(unpack(stored, compression, raw.size, WHERE), raw)


def test_one_frame_with_its_content_size_and_no_checksum() -> None:
    stored, _ = pack(noise(300_000, 8), [1_000])
    header = zstandard.get_frame_parameters(bytes(stored[:18]))
    assert header.content_size == 300_000 and not header.has_checksum and header.dict_id == 0


def test_a_frame_that_was_written_once() -> None:
    assert bytes(unpack(FRAME, "zstd", 128, WHERE)) == CONTENT


def test_checksums_are_verified_where_there_are_any() -> None:
    frame = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(CONTENT))
    assert bytes(unpack(frame, "zstd", 128, WHERE)) == CONTENT
    frame[-1] ^= 1
    with pytest.raises(DeltaError, match=r"'layer\.weight' is damaged: its compressed bytes cannot be read"):
        unpack(frame, "zstd", 128, WHERE)


def header(declared: int, window: int = 0x50, descriptor: int = 0xC0) -> bytes:
    """Of a frame with 8 bytes of content size and a window of 1 MiB."""
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor, window]) + declared.to_bytes(8, "little")


def zeros(declared: int, blocks: int, block_bytes: int = 1 << 17, window: int = 0x50) -> bytes:
    """A frame that unfolds into so many blocks."""
    block = block_bytes << 3 | 2  # one byte, repeated
    ends = [block.to_bytes(3, "little") + b"\0", (block | 1).to_bytes(3, "little") + b"\0"]
    return header(declared, window) + ends[0] * (blocks - 1) + ends[1]


def test_handmade_frames_are_valid() -> None:
    for window in (0x50, 0x88):  # 1 MiB, and the largest there may be
        assert bytes(unpack(zeros(4_096, 2, 2_048, window), "zstd", 4_096, WHERE)) == bytes(4_096)


HOSTILE = {
    "of an unknown compression": (FRAME, "lz4", 128, "compression 'lz4'; expected 'none' or 'zstd'"),
    "shorter than said": (CONTENT, "none", 129, "128 bytes are stored; expected 129"),
    "longer than said": (CONTENT, "none", 127, "128 bytes are stored; expected 127"),
    "of negative size": (CONTENT, "none", -1, "expected -1"),
    "compressed, of negative size": (FRAME, "zstd", -1, "claim to hold -1"),
    "empty": (b"", "zstd", 0, "claim to hold 0"),
    "an empty frame": (zstandard.compress(b""), "zstd", 0, "claim to hold 0"),
    "of another size": (FRAME, "zstd", 127, "its frame declares 128 bytes; expected 127"),
    "no frame": (CONTENT, "zstd", 128, "do not begin with a Zstandard frame"),
    "a header cut": (FRAME[:5], "zstd", 128, "the header of its compressed bytes cannot be read"),
    "cut": (FRAME[:-1], "zstd", 128, "cannot be read"),
    "followed by more": (FRAME + b"\0", "zstd", 128, "cannot be read"),
    "followed by another frame": (FRAME + FRAME, "zstd", 128, "cannot be read"),
    "skippable": (b"\x50\x2a\x4d\x18\x80\0\0\0" + bytes(128), "zstd", 128, "do not begin with a Zstandard frame"),
    "without content size": (
        zstandard.ZstdCompressor(write_content_size=False).compress(CONTENT), "zstd", 128, "expected 128",
    ),
    "with a dictionary": (header(128, descriptor=0xC1)[:6] + b"\x07" + header(128)[6:], "zstd", 128, "dictionary 7"),
    "with a large window": (zeros(4_096, 2, 2_048, 0x90), "zstd", 4_096, "a window of 268,435,456 bytes"),
    "unfolding further than written": (zeros(1 << 33, 1 << 16), "zstd", 1 << 33, "claim to hold 8,589,934,592"),
    "unfolding further than declared": (zeros(1_000, 1 << 16), "zstd", 1_000, "cannot be read"),
    "unfolding less than declared": (zeros(5_000, 2, 2_048), "zstd", 5_000, "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_refused(name: str) -> None:
    stored, compression, raw_bytes, message = HOSTILE[name]
    with pytest.raises(DeltaError) as caught:
        unpack(stored, compression, raw_bytes, WHERE)
    assert message in str(caught.value) and str(caught.value).startswith(WHERE)


BOMBS = """
import resource
from paring import DeltaError
from paring.delta.codec.compression import unpack
assert unpack(zeros(1 << 20, 2048, 1 << 9), "zstd", 1 << 20, "").size == 1 << 20
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for declared, blocks, raw_bytes in [
    (1 << 33, 1 << 16, 1 << 33),  # true, and too much
    (1 << 20, 1 << 16, 1 << 20),  # 8 GiB where 1 MiB is declared
    (1 << 33, 1 << 16, 1 << 20),
    (1 << 28, 1 << 16, 1 << 33),
    (200_000_000, 1, 200_000_000),
]:
    for frame in (zeros(declared, blocks), zeros(declared, blocks) + bytes(200_000)):
        try:
            unpack(frame, "zstd", raw_bytes, "")
        except DeltaError:
            continue
        raise SystemExit(f"accepted {declared} {blocks}")
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
if grown > 32 << 20:
    raise SystemExit(f"grew by {grown:,} bytes")
"""


def test_a_bomb_takes_no_memory() -> None:
    script = inspect.getsource(header) + inspect.getsource(zeros) + BOMBS
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_mutated_frames_give_an_error_or_as_many_bytes() -> None:
    rng = np.random.default_rng(0)
    raw = noise(3_000, 5)
    whole = bytes(pack(raw)[0])
    refused = 0
    for _ in range(2_000):
        frame = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            frame[rng.integers(len(frame))] ^= 1 << rng.integers(8)
        frame = frame[: rng.integers(len(frame))] if rng.random() < 0.2 else frame
        try:
            assert unpack(frame, "zstd", raw.size, WHERE).size == raw.size
        except DeltaError:
            refused += 1
    assert refused > 300


def test_limits_are_the_specified_ones() -> None:
    assert (MOST_EXPANSION, FREE_BYTES) == (256, 65_536) and most_bytes(10) == 68_096 and most_bytes(10, 8) == 65_616
