"""Memory that threads share: none begins what there is no room for."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Room:
    """So many bytes, of which each takes what it needs when that is free."""

    def __init__(self, num_bytes: int) -> None:
        self._free, self._changed = num_bytes, Condition()

    @contextmanager
    def of(self, num_bytes: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._free >= num_bytes)
            self._free -= num_bytes
        try:
            yield
        finally:
            with self._changed:
                self._free += num_bytes
                self._changed.notify_all()
