"""When an evaluation metric stops improving: the learning rate drops, and the slices become narrower.

SliceFine's trainer names ``tolerance``, ``learning_rate_decay``, ``min_learning_rate``, ``rank_decay`` and ``min_rank``
and does not define them. Our reading (docs/method.md): each time the metric has not improved for ``tolerance`` evaluations in a
row, the rate drops by ``learning_rate_decay`` (subtracted) and the rank by ``rank_decay``, neither below its least value.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer


@dataclass
class Plateau:
    """Counts evaluations without improvement.

    Attributes:
        tolerance: evaluations in a row that may pass without improvement before something decays; at least 1.
        learning_rate_decay: subtracted from the schedule's base rate; 0: rates stay.
        min_learning_rate: the base rate never goes below it.
        rank_decay: rows or columns taken off the slices; 0: ranks stay.
        min_rank: the rank never goes below it.
        metric: name in the evaluation's metrics, with or without "eval_".
        greater_is_better: of the metric.
        best, num_worse: what was seen so far.

    Raises:
        ValueError: naming the setting, what it is, what was expected.
    """

    tolerance: int = 1
    learning_rate_decay: float = 0.0
    min_learning_rate: float = 0.0
    rank_decay: int = 0
    min_rank: int = 1
    metric: str = "loss"
    greater_is_better: bool = False
    best: float | None = field(default=None, init=False)
    num_worse: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for name, least in (("tolerance", 1), ("rank_decay", 0), ("min_rank", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; expected a whole number, at least {least}")
        for name in ("learning_rate_decay", "min_learning_rate"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value!r}; expected a number, at least 0")

    @property
    def idle(self) -> bool:
        """Whether nothing would ever decay."""
        return not self.learning_rate_decay and not self.rank_decay

    def observe(self, metrics: dict[str, float]) -> bool:
        """Takes in one evaluation; True when it is time to decay. A value that is not finite is no improvement.

        Raises:
            ValueError: the metric is missing; names those there are.
        """
        name = self.metric if self.metric in metrics else f"eval_{self.metric}"
        if name not in metrics:
            raise ValueError(f"the metric {self.metric!r} is not among the evaluation's: {', '.join(sorted(metrics))}")
        value = float(metrics[name])
        better = math.isfinite(value) and (
            self.best is None or (value > self.best if self.greater_is_better else value < self.best)
        )
        if better:
            self.best, self.num_worse = value, 0
            return False
        self.num_worse += 1
        if self.num_worse < self.tolerance:
            return False
        self.num_worse = 0
        return True

    def lower_rates(self, optimizer: Optimizer, scheduler: Any) -> list[float]:
        """Lowers the schedule's base rates, and the present ones in proportion; returns the base rates, by group.

        A scheduler without base rates (ReduceLROnPlateau) has the optimizer's present ones lowered.
        """
        rates = getattr(scheduler, "base_lrs", None) or [group["lr"] for group in optimizer.param_groups]
        lowered = [min(r, max(r - self.learning_rate_decay, self.min_learning_rate)) for r in rates]
        for group, before, after in zip(optimizer.param_groups, rates, lowered, strict=True):
            group["lr"] *= after / before if before else 1.0
            if "initial_lr" in group:
                group["initial_lr"] = after
        if getattr(scheduler, "base_lrs", None):
            scheduler.base_lrs = lowered
        return lowered

    def next_rank(self, rank: int) -> int:
        """The rank after a decay."""
        return min(rank, max(rank - self.rank_decay, self.min_rank))

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "num_worse": self.num_worse}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.num_worse = state["best"], state["num_worse"]
