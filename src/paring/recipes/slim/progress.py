"""What ``paring slim`` prints while it searches."""

import time
from collections.abc import Callable

from paring.search.run import Progress

_SECONDS = 5.0  # between lines; the last of a search is always said


class Lines:
    """A line now and then: the best score so far, and the time that all searches still take.

    Args:
        goal: what the score is: "loss" or "accuracy".
        num_searches: of the whole run, each of ``budget`` evaluations.
        say: takes the lines.
    """

    def __init__(self, goal: str, num_searches: int, budget: int, say: Callable[[str], None]) -> None:
        self._goal, self._say = goal, say
        self._left, self._budget = num_searches * budget, budget
        self._begun: float | None = None
        self._made = 0

    def of(self, label: str) -> Callable[[Progress], None]:
        """What a search of this name reports to."""
        self._left -= self._budget
        last = [time.perf_counter()]

        def report(progress: Progress) -> None:
            now = time.perf_counter()
            self._begun = self._begun if self._begun is not None else now - progress.latest.seconds
            self._made += 1
            done = progress.num_evaluations
            if now - last[0] < _SECONDS and done < progress.budget:
                return
            last[0] = now
            seconds = (now - self._begun) / self._made * (progress.budget - done + self._left)
            self._say(f"{label}   {done:>4} of {progress.budget}   best {self._best(progress)}   {seconds:.0f} s left")

        return report

    def of_steps(self, label: str, total: int) -> Callable[[int, float], None]:
        """What a refit of this name, of ``total`` steps, reports to; one that begins anew, slower, says so by its count."""
        begun = last = time.perf_counter()

        def report(step: int, distance: float) -> None:
            nonlocal begun, last
            now = time.perf_counter()
            begun = now if step == 1 else begun
            if now - last < _SECONDS and step < total:
                return
            last = now
            seconds = (now - begun) / max(step - 1, 1) * (total - step)
            self._say(f"{label}   step {step:>4} of {total}   distance {distance:.4f}   {seconds:.0f} s left")

        return report

    def _best(self, progress: Progress) -> str:
        best = progress.best
        if best is None or best.score is None:
            return f"{self._goal}: none is a number yet"
        score = best.score if self._goal == "loss" else 1 - best.score
        return f"{self._goal} {score:.4f} ({best.start or f'evaluation {best.index}'})"
