"""What a place on the path is worth: scores of the tuned task and of the original tasks, and the two as one number.

    H = 2 t o / (t + o)      t: score of the tuned task; o: mean score of the original tasks; all of them 0 to 1

H is their harmonic mean (the H-score of NPS-Pruning; Du et al. 2025, arXiv 2505.18713): high where both are high, 0 where one
is 0. A task without an accuracy is scored by its likelihood exp(-loss), the geometric mean of the probabilities of what was
right (the inverse of the perplexity, so that H is the inverse of the mean of the two perplexities).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """A place on the path.

    Attributes:
        lam: lambda.
        tuned: score of the tuned task, 0 to 1; NaN: its outputs are not finite.
        originals: scores of the original tasks, at least one.
        likelihood: what says which of two places with the same H is better, the higher the better.
    """

    lam: float
    tuned: float
    originals: tuple[float, ...]
    likelihood: float = 0.0

    @property
    def original(self) -> float:
        """The mean over the original tasks."""
        return mean(self.originals)

    @property
    def h(self) -> float:
        """See above; NaN where a score is."""
        return h_score(self.tuned, self.original)


def mean(scores: Sequence[float]) -> float:
    """Of at least one score; NaN where one is."""
    if not scores:
        raise ValueError("no scores of original tasks; expected at least one")
    return sum(scores) / len(scores)


def h_score(tuned: float, original: float) -> float:
    """The harmonic mean of two scores; 0 where both are 0, NaN where one is.

    Raises:
        ValueError: a score below 0 or above 1.
    """
    for name, score in (("tuned", tuned), ("original", original)):
        if not (math.isnan(score) or 0 <= score <= 1):
            raise ValueError(f"the score of the {name} task is {score}; expected 0 to 1")
    total = tuned + original
    return total if math.isnan(total) else 2 * tuned * original / total if total else 0.0


def best(points: Sequence[Point]) -> Point:
    """The place of highest H; of equal ones that of the higher likelihood, then that nearest to the base.

    Raises:
        ValueError: no place has a number for H.
    """
    numbers = [point for point in points if not math.isnan(point.h)]
    if not numbers:
        at = f" at lambda {points[0].lam:g} to {points[-1].lam:g}" if points else ""
        raise ValueError(f"none of {len(points)} places on the path has scores that are numbers{at}; does the model overflow?")
    return min(numbers, key=lambda p: (-p.h, math.inf if math.isnan(p.likelihood) else -p.likelihood, abs(p.lam)))


def pareto(points: Sequence[Point]) -> list[int]:
    """Which places no other beats: none has one score higher and the other at least as high. By falling original score.

    Returns:
        Positions in ``points``; equal places are all there, those without numbers are not.
    """
    there = [i for i, p in enumerate(points) if not math.isnan(p.h)]
    order = sorted(there, key=lambda i: (-points[i].original, -points[i].tuned))
    front: list[int] = []
    for i in order:  # whoever comes before has an original score at least as high
        last = points[front[-1]] if front else None
        if last is None or points[i].tuned > last.tuned or (points[i].tuned, points[i].original) == (last.tuned, last.original):
            front.append(i)
    return front
