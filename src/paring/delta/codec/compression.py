"""Bytes, compressed where that pays.

A payload is stored in one of two ways, which stands beside it (``compression``) with its own number of bytes (``raw_bytes``):

    "none"   the payload as it is
    "zstd"   one Zstandard frame (RFC 8878) and nothing else: the content size stands in its header and is ``raw_bytes``; a
             window of at most 128 MiB; no dictionary. A checksum is not needed (the file has its own), and verified if there.

The content is at most 256 times the stored bytes (of some values less, see ``values``), plus 65,536: a frame may unfold
32,768-fold, so that a small file could claim much memory. A writer whose frame would unfold further (long runs of one byte)
ends blocks earlier, at the most every 512 bytes; a block takes 4 bytes at least. What claims to unfold further is refused
before memory is taken.

What the codecs beside this one make of differences are bytes with few repeats but a skewed distribution, in which repeats are
mostly chance, and cost more than the plain Huffman code saves them. So the writer looks for them in a table of 64 entries only,
the least there is: runs and short periods are found all the same, and against level 1 the low bytes of exact differences of
bf16 fine-tunes take 3 to 8 % less, in 0.4 to 1.0 of the time: the fewer of them are zero, the faster.
"""

import itertools
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import zstandard

from paring.delta.errors import DeltaError

Bytes = npt.NDArray[np.uint8]
Buffer = npt.NDArray[np.generic] | bytes | bytearray | memoryview

MOST_EXPANSION, FREE_BYTES = 256, 1 << 16
_WORTH = 0.98  # of the raw size: less gain than this is not worth a reader's time
_MOST_WINDOW = 1 << 27
_MAGIC = b"\x28\xb5\x2f\xfd"  # of a frame; a skippable frame, or one of an older Zstandard, begins otherwise
_MOST_HEADER = 18
_PIECE = 1 << 23
_FEW_REPEATS = {"strategy": zstandard.STRATEGY_FAST, "min_match": 7, "hash_log": 6, "chain_log": 6, "search_log": 1}
_WINDOW_LOG = 17


def most_bytes(stored_bytes: int, expansion: int = MOST_EXPANSION) -> int:
    """The most bytes that a payload of so many stored bytes may have."""
    return stored_bytes * expansion + FREE_BYTES


def as_bytes(buffer: Buffer) -> Bytes:
    """The bytes of a contiguous buffer, without a copy."""
    if isinstance(buffer, np.ndarray):
        return buffer.reshape(-1).view(np.uint8)
    return np.frombuffer(buffer, np.uint8)


def pack(
    raw: Buffer, cuts: Iterable[int] = (), compression: str = "zstd", expansion: int = MOST_EXPANSION
) -> tuple[Bytes, str]:
    """What to store of ``raw``, and its compression: "zstd" where that is at least 2 % smaller, else "none".

    Args:
        cuts: offsets where bytes of another distribution begin. A block of the frame ends there, so that each part gets a code
            of its own: in payloads of less than a few blocks (128 KiB), one code for all costs 15 %.
        compression: "none": it is stored as it is.
        expansion: bytes that a stored one stands for at most.
    """
    plain = as_bytes(raw)
    if compression == "none":
        return plain, "none"
    frame = _frame(plain, cuts)
    for factor in (32, 8, 2):  # the shorter the blocks, the fewer repeats are found
        if plain.size > most_bytes(len(frame), expansion):
            frame = _frame(plain, range(0, plain.size, factor * expansion))
    if len(frame) > plain.size * _WORTH:
        return plain, "none"
    return np.frombuffer(frame, np.uint8), "zstd"


def unpack(stored: Buffer, compression: str, raw_bytes: int, where: str, expansion: int = MOST_EXPANSION) -> Bytes:
    """The payload, to be read only; memory is taken when its size is known to be ``raw_bytes`` and in proportion.

    Raises:
        DeltaError: it is not what is described above.
    """
    held = as_bytes(stored)
    if compression == "none":
        if held.size != raw_bytes:
            raise DeltaError(f"{where}: {held.size:,} bytes are stored; expected {raw_bytes:,}")
        return held
    if compression != "zstd":
        raise DeltaError(f"{where}: compression {compression!r:.50}; expected 'none' or 'zstd'")
    if not 0 < raw_bytes <= most_bytes(held.size, expansion):
        raise DeltaError(f"{where}: {held.size:,} compressed bytes claim to hold {raw_bytes:,}; no delta is written so")
    _check_header(held, raw_bytes, where)
    try:
        # The header's content size bounds the output; the whole input has to be this one frame.
        content = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW).decompress(held.data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DeltaError(f"{where} is damaged: its compressed bytes cannot be read ({error})") from None
    if len(content) != raw_bytes:
        raise DeltaError(f"{where} is damaged: it holds {len(content):,} bytes; expected {raw_bytes:,}")
    return np.frombuffer(content, np.uint8)


def _frame(plain: Bytes, cuts: Iterable[int]) -> bytearray:
    parameters = zstandard.ZstdCompressionParameters(
        window_log=_WINDOW_LOG, write_content_size=True, write_checksum=False, **_FEW_REPEATS
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=plain.size)
    frame = bytearray()  # unlike bytes, an array over it can be written, as torch wants
    for start, stop in itertools.pairwise([0, *cuts, plain.size]):
        for piece in range(start, stop, _PIECE):
            frame += compressor.compress(plain[piece : min(piece + _PIECE, stop)].data)
        if start < stop:
            frame += compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    frame += compressor.flush()
    return frame


def _check_header(held: Bytes, raw_bytes: int, where: str) -> None:
    header = held[:_MOST_HEADER].tobytes()
    if header[:4] != _MAGIC:
        raise DeltaError(f"{where} is damaged: its compressed bytes do not begin with a Zstandard frame")
    try:
        frame = zstandard.get_frame_parameters(header)
    except zstandard.ZstdError as error:
        raise DeltaError(f"{where} is damaged: the header of its compressed bytes cannot be read ({error})") from None
    if frame.content_size != raw_bytes:  # an absent content size reads as 2**64 - 1
        raise DeltaError(f"{where} is damaged: its frame declares {frame.content_size:,} bytes; expected {raw_bytes:,}")
    if frame.window_size > _MOST_WINDOW or frame.dict_id:
        raise DeltaError(
            f"{where}: its frame needs a window of {frame.window_size:,} bytes and dictionary {frame.dict_id}; "
            f"expected at most {_MOST_WINDOW:,} bytes and none"
        )
