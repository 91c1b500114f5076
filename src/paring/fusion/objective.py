"""Scores of several tasks as one number: each over the fine-tune's own, and of these the mean or the worst.

    v_t = s_t / s_t*        s_t: score of the merge on task t, s_t*: of its fine-tune, both above 0
    mean   sum_t v_t / T    worst   min_t v_t

A score is an accuracy, or a likelihood exp(-loss): the geometric mean of the probabilities of what was right. Divided by the
fine-tune's own, a task that is hard for everyone counts as much as one that is easy.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

from torch import nn

Score = Callable[[nn.Module], float]  # of a task: the higher the better
Goal = Literal["mean", "worst"]
GOALS: tuple[Goal, ...] = ("mean", "worst")


def shares(scores: Mapping[str, float], own: Mapping[str, float]) -> dict[str, float]:
    """v_t by task.

    Args:
        scores: of the merge, at least 0; NaN where its outputs are not finite.
        own: of the fine-tunes.

    Raises:
        ValueError: a fine-tune's score is not above 0, or there is no task.
    """
    if not scores:
        raise ValueError("no scores; expected at least one task's")
    for task, score in own.items():
        if not score > 0:
            raise ValueError(
                f"the fine-tune of {task!r} has the score {score} on these rows, of which no share can be taken; expected rows "
                "that it gets right in part"
            )
    return {task: score / own[task] for task, score in scores.items()}


def together(values: Mapping[str, float], goal: Goal) -> float:
    """The mean or the least of v_t; NaN where one is."""
    if any(map(math.isnan, values.values())):
        return math.nan
    return min(values.values()) if goal == "worst" else sum(values.values()) / len(values)
