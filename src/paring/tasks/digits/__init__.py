"""Digits: a small vision transformer, pretrained in half a minute, and five tasks its frozen features do not solve.

data (four splits) -> vit (the pretrained model), shifts (the tasks) -> training (fit, accuracy).
"""

from paring.tasks.digits.data import Examples, load_splits
from paring.tasks.digits.shifts import SHIFTS, Shift, named_shifts
from paring.tasks.digits.training import History, accuracy, fit, one_thread
from paring.tasks.digits.vit import pretrained

__all__ = [
    "SHIFTS",
    "Examples",
    "History",
    "Shift",
    "accuracy",
    "fit",
    "load_splits",
    "named_shifts",
    "one_thread",
    "pretrained",
]
