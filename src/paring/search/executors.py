"""Where candidates are scored: in this process here, by several workers in ``paring.search.ray_executor``."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from paring.search.settings import Vector

Objective = Callable[[Vector], float]


@dataclass(frozen=True)
class Outcome:
    """A candidate's score, the seconds that it took, and which process it was."""

    score: float
    seconds: float
    worker: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Executor(Protocol):
    """Scores batches of candidates. A candidate's score must depend on nothing but its coefficients."""

    def evaluate(self, batch: Sequence[Vector]) -> Iterator[tuple[int, Outcome]]:
        """Each candidate's place in ``batch`` with its outcome, as soon as it is known, in any order."""
        ...


class InProcess:
    """One after the other, in this process."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def evaluate(self, batch: Sequence[Vector]) -> Iterator[tuple[int, Outcome]]:
        """See ``Executor``. What the objective raises comes through."""
        for i, vector in enumerate(batch):
            yield i, timed(self._objective, vector)


def timed(objective: Objective, vector: Vector) -> Outcome:
    """What the objective says of ``vector``."""
    begin = time.perf_counter()
    score = float(objective(vector))
    return Outcome(score, time.perf_counter() - begin, {"host": socket.gethostname(), "pid": os.getpid()})
