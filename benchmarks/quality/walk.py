"""The learning rate of every method, by one rule: walk along a grid that all share until both neighbours are worse.

A rate's score is the validation accuracy, averaged over the tasks that are screened, with seed 0. Test rows play no part.
"""

from collections.abc import Callable, Sequence


def start(rates: Sequence[float], guess: float) -> int:
    """Where to begin: the grid's rate nearest to ``guess`` times its middle one, by ratio; not at either end."""
    wanted = rates[len(rates) // 2] * guess
    nearest = min(range(len(rates)), key=lambda i: max(rates[i] / wanted, wanted / rates[i]))
    return min(max(nearest, 1), len(rates) - 2)


def best_rate(num_rates: int, begin: int, score: Callable[[int], float | None]) -> tuple[int | None, list[int]]:
    """The walk as far as scores are known.

    Args:
        num_rates: length of the grid.
        begin: index to begin at.
        score: index -> score, or None when it is not known yet.

    Returns:
        (index of the best rate, []) when the walk is over; (None, indices whose scores are wanted next) before. Of equal
        scores the lower rate wins.
    """
    at = begin
    while True:
        around = [i for i in (at - 1, at, at + 1) if 0 <= i < num_rates]
        unknown = [i for i in around if score(i) is None]
        if unknown:
            return None, unknown
        best = max(around, key=lambda i: (score(i) or 0.0, -i))
        if best == at:
            return at, []
        at = best
