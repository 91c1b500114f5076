"""The raw floor of a command: its inputs read into one buffer, an output as large as its own written and synced."""

import os
import time
from collections.abc import Iterable
from pathlib import Path

_PIECE_BYTES = 1 << 20


def floor_s(inputs: Iterable[Path], output: Path, num_bytes: int) -> tuple[float, float]:
    """Seconds of reading and of writing, by one thread; ``output`` is removed again."""
    buffer = memoryview(bytearray(_PIECE_BYTES))
    start_s = time.perf_counter()
    for path in inputs:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    read_s = time.perf_counter() - start_s
    start_s = time.perf_counter()
    if num_bytes:
        with output.open("wb", buffering=0) as file:
            left = num_bytes
            while left:
                left -= file.write(buffer[: min(left, _PIECE_BYTES)]) or 0
            os.fsync(file.fileno())
    write_s = time.perf_counter() - start_s
    output.unlink(missing_ok=True)
    return read_s, write_s
