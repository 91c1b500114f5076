"""What a search is told: how long, within which bounds, how wide at first, and when to stop early."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

Vector = tuple[float, ...]
Pair = tuple[float, float]


class SearchError(ValueError):
    """A search that cannot be run or resumed; the message says what was found, what was expected and the remedy."""


class NoScoreError(SearchError):
    """Nothing that was tried has a finite score."""


@dataclass(frozen=True)
class SearchSettings:
    """Settings of one search; two searches with equal settings, starts and scores try bitwise the same coefficients.

    Attributes:
        budget: evaluations at most, starts included; >= 1.
        bounds: ``(low, high)`` of every coefficient, or one such pair for each; finite, low < high. Nothing outside is tried.
        step_size: standard deviation of the first generation, as a fraction of each coefficient's range; in (0, 1].
        population: candidates in a generation, >= 4; None: pycma's 4 + floor(3 ln M) for M coefficients.
        seed: of the draws; 0 <= seed < 2**32.
        patience: stops when this many evaluations after the starts went by without a better score; >= 1. None: never.
        tolerance: a score counts as better, for ``patience``, when it is lower by more than this; >= 0, in the score's unit.
        min_step: stops when the standard deviation of every coefficient is below this fraction of its range; in [0, 1).
        target: stops when a score is at or below this. None: never.

    All but the budget are looked at after a whole generation, so that the order in which workers finish changes nothing.

    Raises:
        ValueError: a value out of its range; TypeError: of another type.
    """

    budget: int = 200
    bounds: Pair | tuple[Pair, ...] = (0.0, 2.0)
    step_size: float = 0.2
    population: int | None = None
    seed: int = 0
    patience: int | None = None
    tolerance: float = 0.0
    min_step: float = 1e-6
    target: float | None = None

    def __post_init__(self) -> None:
        _integer("budget", self.budget, 1)
        _integer("population", self.population, 4, optional=True)
        _integer("seed", self.seed, 0, 2**32 - 1)
        _integer("patience", self.patience, 1, optional=True)
        _number("step_size", self.step_size, self.step_size is not None and 0 < self.step_size <= 1, "in (0, 1]")
        _number("tolerance", self.tolerance, self.tolerance is not None and self.tolerance >= 0, "0 or more")
        _number("min_step", self.min_step, self.min_step is not None and 0 <= self.min_step < 1, "in [0, 1)")
        if self.target is not None:
            _number("target", self.target, True, "a finite number or None")
        plain: dict[str, Any] = {"bounds": _bounds(self.bounds)}  # lists and NumPy's numbers become what JSON can hold
        plain |= {name: getattr(self, name) for name in ("budget", "population", "seed", "patience")}
        plain = {name: int(value) if isinstance(value, Integral) else value for name, value in plain.items()}
        plain |= {name: float(getattr(self, name)) for name in ("step_size", "tolerance", "min_step")}
        plain["target"] = None if self.target is None else float(self.target)
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def limits(self, dims: int) -> tuple[Vector, Vector]:
        """The lowest and the highest values of ``dims`` coefficients.

        Raises:
            ValueError: there are bounds for another number of coefficients.
        """
        pairs = self.bounds if isinstance(self.bounds[0], tuple) else (self.bounds,) * dims
        if len(pairs) != dims:
            raise ValueError(f"{len(pairs)} pairs of bounds for {dims} coefficients; give one pair for all, or {dims} of them")
        return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)  # type: ignore[index]

    def as_json(self) -> dict[str, Any]:
        """Plain values, exact."""
        return asdict(self)


def checked_starts(starts: Mapping[str, Sequence[float]], dims: int, settings: SearchSettings) -> dict[str, Vector]:
    """The starts as tuples of floats; without any, the middle of the bounds.

    Raises:
        ValueError: a start of another length, not finite or outside the bounds; more starts than evaluations.
    """
    _integer("dims", dims, 1)
    lows, highs = settings.limits(dims)
    if not starts:
        return {"middle": tuple(low / 2 + high / 2 for low, high in zip(lows, highs, strict=True))}
    if len(starts) > settings.budget:
        raise ValueError(f"{len(starts)} starts and a budget of {settings.budget} evaluations; every start is evaluated")
    taken = {}
    for name, given in starts.items():
        vector = tuple(float(value) for value in given)
        if len(vector) != dims:
            raise ValueError(f"start {name!r} has {len(vector)} coefficients, expected {dims}")
        for i, (value, low, high) in enumerate(zip(vector, lows, highs, strict=True)):
            if not low <= value <= high:
                raise ValueError(
                    f"start {name!r}: coefficient {i} is {value}, outside [{low}, {high}]; widen `bounds`, or move it"
                )
        taken[str(name)] = vector
    return taken


def _bounds(given: Any) -> Pair | tuple[Pair, ...]:
    entries = tuple(given)
    if entries and all(isinstance(entry, Iterable) for entry in entries):
        return tuple(_pair(tuple(entry), f"bounds[{i}]") for i, entry in enumerate(entries))
    return _pair(entries, "bounds")


def _pair(entries: tuple[Any, ...], name: str) -> Pair:
    if len(entries) != 2 or not all(isinstance(entry, Real) for entry in entries):
        raise ValueError(f"`{name}` is {entries}, expected (low, high)")
    low, high = float(entries[0]), float(entries[1])
    if not (math.isfinite(low) and math.isfinite(high) and math.isfinite(high - low) and low < high):
        raise ValueError(f"`{name}` is ({low}, {high}), expected two finite numbers with low < high")
    return low, high


def _integer(name: str, value: Any, least: int, most: int | None = None, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` is {value!r}, expected an integer{' or None' if optional else ''}")
    if not least <= int(value) <= (most or int(value)):
        raise ValueError(f"`{name}` is {value}, expected {least} or more" + ("" if most is None else f", at most {most}"))


def _number(name: str, value: Any, within: bool, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` is {value!r}, expected a number")
    if not (within and math.isfinite(value)):
        raise ValueError(f"`{name}` is {value}, expected {expected}")
