"""The score of a candidate: its entries in place, the objective asked, the entries out again."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from paring.slim.placing import Placing
from paring.slim.pool import Pool

Objective = Callable[[nn.Module], float]


def scorer(placing: Placing, pool: Pool, scale: float, objective: Objective) -> Callable[[Sequence[float]], float]:
    """Coefficients x = w / scale to a number; asked without gradients. The model is bitwise as before after each call."""

    def score(x: Sequence[float]) -> float:
        with torch.no_grad(), placing.candidate(pool.split(pool.select([v * scale for v in x]))):
            return float(objective(placing.model))

    return score
