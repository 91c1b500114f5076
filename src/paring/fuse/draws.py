"""Random numbers of one model's tensor: a stream of its own, whatever else is merged and in whichever order."""

from hashlib import blake2b

import numpy as np
import numpy.typing as npt


class Draws:
    """32 random bits an entry, in the entries' order (SFC64, keyed by seed, tensor name and model).

    numpy promises that a bit generator's stream stays the same across versions and platforms, and it is several times faster
    than torch's. 32 bits are 2^-32 of a probability.
    """

    def __init__(self, seed: int, name: str, key: str) -> None:
        digest = blake2b(f"{seed}\0{name}\0{key}".encode(), digest_size=16).digest()
        self._bits = np.random.SFC64(int.from_bytes(digest, "little"))
        self._left = np.empty(0, np.uint32)

    def take(self, count: int) -> npt.NDArray[np.uint32]:
        """The next ``count``; the same numbers however many are taken at a time."""
        missing = count - self._left.size
        words = np.asarray(self._bits.random_raw((missing + 1) // 2), dtype="<u8").view("<u4")
        taken = np.concatenate([self._left, words]) if self._left.size else words
        self._left = taken[count:].copy()
        return taken[:count]


def below(probability: float) -> int:
    """The number below which a draw is with that probability (at most 2^32)."""
    return round(probability * 2.0**32)
