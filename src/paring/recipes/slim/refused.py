"""What cannot be made small, and what came of it that is of no use."""

import math

from paring.delta.errors import DeltaError
from paring.delta.taskvector import TaskVector
from paring.recipes.slim.methods import Attempt


def refuse_empty(vector: TaskVector, name: str = "") -> None:
    """DeltaError: it changes nothing that could be pruned."""
    if not vector.names:
        new = ", ".join(sorted(vector.changes)[:3]) or "none"
        raise DeltaError(
            f"{name}nothing but new tensors ({new}) differs from the base: there is nothing to prune, the delta is as small "
            "as it gets"
        )


def refuse_nan(best: Attempt, keep: float) -> None:
    """DeltaError: the best of all gives no number on rows that were given."""
    wrong = next((split for split, s in best.scores.items() if not math.isfinite(s.loss)), None)
    if wrong is not None:
        raise DeltaError(
            f"{best.label}, keep {keep:g}: the loss on {wrong} rows is not a number, so that the result is of no use; keep "
            "more, take another method, or look at the fine-tune's own scores"
        )
