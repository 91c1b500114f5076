"""Many forwards or one swap: a lock that many readers may hold, or one writer.

Taken again by a thread that reads already, it lets that thread through at once. A writer that waits keeps new readers out, so
that a busy model cannot put a swap off for ever.
"""

import time
from collections import Counter
from threading import Condition, get_ident


class BankBusy(RuntimeError):  # noqa: N818 - what it says is a state, as in queue.Empty
    """A swap waited for running forwards longer than it was given, or would wait for its own thread."""


class SwapLock:
    """See above."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._readers: Counter[int] = Counter()
        self._writer: int | None = None
        self._waiting = 0

    def read(self) -> None:
        """Waits for a writer, then counts this thread as reading once more."""
        me = get_ident()
        with self._changed:
            if not self._readers[me] and self._writer != me:
                self._changed.wait_for(lambda: self._writer is None and not self._waiting)
            self._readers[me] += 1

    def try_read(self) -> bool:
        """``read``, if nobody writes; it does not wait, nor for writers that do."""
        with self._changed:
            if self._writer is not None:
                return False
            self._readers[get_ident()] += 1
            return True

    def done(self) -> None:
        """One reading less."""
        me = get_ident()
        with self._changed:
            self._readers[me] -= 1
            if self._readers[me] <= 0:
                del self._readers[me]
            self._changed.notify_all()

    def write(self, timeout: float | None) -> None:
        """Waits until nobody reads or writes.

        Raises:
            BankBusy: ``timeout`` seconds went by, or this thread is reading itself.
        """
        me = get_ident()
        until = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            if self._readers[me] or self._writer == me:
                raise BankBusy(
                    "this thread is inside a forward of the model, or inside `with bank.use(...)`: swap after leaving it"
                )
            self._waiting += 1
            try:
                left = None if until is None else max(0.0, until - time.monotonic())
                if not self._changed.wait_for(lambda: self._writer is None and not +self._readers, left):
                    raise BankBusy(f"forwards of the model were still running after {timeout} s; swap later, or give more time")
                self._writer = me
            finally:
                self._waiting -= 1
                self._changed.notify_all()

    def written(self, *, then_read: bool = False) -> None:
        """The writer is done; with ``then_read`` it goes on as a reader, and no other writer comes in between."""
        with self._changed:
            self._writer = None
            if then_read:
                self._readers[get_ident()] += 1
            self._changed.notify_all()
