"""What a probe prints while it measures: a line now and then, with the time that is left."""

import time
from collections.abc import Callable

from paring.probe.kind import Cell

_SECONDS = 5.0  # between lines; the last cell is always said


class Lines:
    """Counts cells.

    Args:
        total: of the whole probe. kept: those that an earlier run has finished.
        weight: of the cells that are to be measured, summed.
        say: takes the lines.
    """

    def __init__(self, total: int, kept: int, weight: float, say: Callable[[str], None]) -> None:
        self._total, self._done, self._weight, self._say = total, kept, weight, say
        self._measured = 0.0
        self._begun = self._last = time.perf_counter()
        if kept:
            say(f"{kept} of {total} cells are there already and are kept")

    def begun(self, cell: Cell) -> None:
        """The first cell, before it is measured: it may take minutes."""
        self._say(f"{self._total - self._done} of {self._total} cells to measure, first {_words(cell)}")

    def finished(self, cell: Cell) -> None:
        """A cell has been measured."""
        self._done += 1
        self._measured += cell.weight
        now = time.perf_counter()
        if now - self._last < _SECONDS and self._done < self._total:
            return
        self._last = now
        left = (now - self._begun) / self._measured * max(self._weight - self._measured, 0.0)
        self._say(f"{self._done:>5} of {self._total} cells   {_words(cell)}   {left:.0f} s left")


def _words(cell: Cell) -> str:
    return ", ".join(f"{name} {value}" for name, value in cell.what.items())
