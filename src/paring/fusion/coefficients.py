"""Which numbers are searched: a weight for each task, or for each task and group of layers; lambda where weights are shares.

A method that divides by the sum of its weights (``normalize``) is told their ratios alone: how much of the merged difference is
added is then its ``lambda``, which is searched beside them where the method has one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paring.fuse.inputs import FuseError
from paring.fuse.method import Method, Resolved
from paring.fusion.groups import ALL, Group, group_of
from paring.fusion.merging import Settings

WEIGHT, LAMBDA = "weight", "lambda"
DIGITS = 4  # of a weight, behind the point: what is tried is what a person can write down
_SHARES = (0.3, 0.5, 1.0)
_LAMBDAS = (0.5, 1.0, 1.5)


def searchable(how: Method) -> None:
    """That a method has a weight for each model.

    Raises:
        FuseError: it has none.
    """
    if not any(p.name == WEIGHT and p.per_model for p in how.parameters):
        raise FuseError(
            f"{how.name} has no weight for each model, so there is nothing to search; take ties, task_arithmetic, nps …"
        )


def shares(how: Method, settings: Resolved) -> bool:
    """Whether only the ratios of the weights count."""
    given = settings.parameters
    return how.name == "nuslerp" or bool(given.get("normalize")) or bool(given.get("normalize_weights"))


@dataclass(frozen=True)
class Coefficients:
    """The coordinates of a search: weights by group, in a group by task; lambda last, where it is one of them.

    Attributes:
        tasks: names. groups: of layers.
        with_lambda: whether lambda is searched, too.
    """

    tasks: tuple[str, ...]
    groups: tuple[Group, ...] = ALL
    with_lambda: bool = False
    _group_of: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def dims(self) -> int:
        return len(self.tasks) * len(self.groups) + self.with_lambda

    def bounds(self, most: float, starts: Mapping[str, Sequence[float]]) -> tuple[tuple[float, float], ...]:
        """From 0 to ``most``, or as far as a start is outside of that; lambda the same."""
        lows = [min([0.0, *(x[i] for x in starts.values())]) for i in range(self.dims)]
        highs = [max([most, *(x[i] for x in starts.values())]) for i in range(self.dims)]
        return tuple(zip(lows, highs, strict=True))

    def equal(self, weight: float, factor: float = 1.0) -> list[float]:
        """One weight for all."""
        return [weight] * (len(self.tasks) * len(self.groups)) + [factor] * self.with_lambda

    def spread(self, x: Sequence[float]) -> list[float]:
        """Coefficients of a search without groups as those of one with them."""
        own, last = list(x[: len(self.tasks)]), list(x[len(self.tasks) :])
        return own * len(self.groups) + last

    def starts(self, how: Method, settings: Resolved, configured: Sequence[float] | None = None) -> dict[str, list[float]]:
        """Points that a search begins with: equal weights, as task arithmetic has them, and those of the configuration.

        Args:
            settings: of any tensor. configured: a weight for each task; None: the configuration has none.
        """
        n, factor = len(self.tasks), float(settings.parameters.get(LAMBDA) or 1.0)
        if self.with_lambda:
            found = {f"equal, lambda {v:g}": self.equal(1.0, v) for v in _LAMBDAS}
        elif shares(how, settings):
            found = {"equal": self.equal(1.0)}
        else:
            values = dict.fromkeys([round(1 / n, DIGITS), *_SHARES])
            found = {f"equal {v:g}": self.equal(v) for v in values}
        if configured is not None:
            own = self.spread([*(round(float(w), DIGITS) for w in configured), *([factor] * self.with_lambda)])
            if own not in found.values():
                found["as configured"] = own
        return found

    def rounded(self, x: Sequence[float]) -> tuple[float, ...]:
        """What is tried in the place of a candidate: ``DIGITS`` digits."""
        return tuple(round(float(v), DIGITS) for v in x)

    def weights(self, x: Sequence[float]) -> dict[str, dict[str, float]]:
        """By task and group."""
        n = len(self.tasks)
        return {t: {g.name: x[j * n + i] for j, g in enumerate(self.groups)} for i, t in enumerate(self.tasks)}

    def factor(self, x: Sequence[float]) -> float | None:
        """Lambda, where it is searched."""
        return float(x[-1]) if self.with_lambda else None

    def settings(self, x: Sequence[float], how: Method, given: Settings) -> Settings:
        """The method's settings for each tensor, with these weights in the place of those given.

        Raises:
            FuseError: weights that the method cannot take (they sum to zero), when a tensor's are asked for.
        """
        n, known = len(self.tasks), dict[tuple[int, int], tuple[Resolved, Resolved]]()

        def of(name: str) -> Resolved:
            fixed, group = given(name), self._group(name)
            key = id(fixed), group
            if key not in known:
                weights = x[group * n : (group + 1) * n]
                shared: dict[str, Any] = {**fixed.parameters}
                if self.with_lambda:
                    shared[LAMBDA] = float(x[-1])
                own = tuple({**one, WEIGHT: float(w)} for one, w in zip(fixed.per_model, weights, strict=True))
                if wrong := how.check(shared, own):
                    raise FuseError(f"{how.name}: {wrong}")
                known[key] = fixed, Resolved(shared, own)  # the first is kept, so that no other object gets its id
            return known[key][1]

        return of

    def _group(self, name: str) -> int:
        if name not in self._group_of:
            self._group_of[name] = group_of(name, self.groups)
        return self._group_of[name]
