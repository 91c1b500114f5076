"""Ranges of lambda as a user writes them: ``0:1.2:0.1``, or single values, ``0.5,1``."""

import math
from fractions import Fraction
from itertools import pairwise

MOST = 1000


def lambdas(text: str) -> tuple[float, ...]:
    """The numbers of ``START:STOP:STEP`` (both ends taken) and of single values, with commas between; increasing.

    Decimals are taken as they are written, so that 0:1.2:0.1 has 13 values and 0.3 is 0.3.

    Raises:
        ValueError: not numbers, a step that does not lead from START to STOP, a value twice, or more than 1,000 values.
    """
    found: list[float] = []
    for part in text.split(","):
        pieces = part.split(":")
        if len(pieces) == 1:
            found.append(float(_number(pieces[0], text)))
        elif len(pieces) == 3:
            start, stop, step = (_number(piece, text) for piece in pieces)
            found += _steps(start, stop, step, part)
        else:
            raise ValueError(f"lambda is {text!r}; expected START:STOP:STEP such as 0:1.2:0.1, or single values: 0.5,1")
    return checked(tuple(sorted(found)))


def checked(values: tuple[float, ...]) -> tuple[float, ...]:
    """Finite values, each once, increasing.

    Raises:
        ValueError: they are not, or there are none, or more than 1,000.
    """
    if not values or len(values) > MOST:
        raise ValueError(f"lambda has {len(values):,} values; expected 1 to {MOST:,}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"lambda is {value!r}; expected finite numbers")
    for one, other in pairwise(values):
        if one >= other:
            raise ValueError(f"lambda has {other:g} after {one:g}; expected every value once, increasing")
    return values


def _steps(start: Fraction, stop: Fraction, step: Fraction, part: str) -> list[float]:
    if step <= 0 or stop <= start:
        raise ValueError(f"lambda is {part!r}; expected a START below STOP and a STEP above 0, such as 0:1.2:0.1")
    count = (stop - start) / step
    if count > MOST:
        raise ValueError(f"lambda is {part!r}, more than {MOST:,} values; expected a larger step")
    if count.denominator != 1:
        last = start + step * math.floor(count)
        raise ValueError(
            f"lambda is {part!r}, which ends at {float(last):g}, not at {float(stop):g}; expected a step that leads to the end"
        )
    return [float(start + step * i) for i in range(int(count) + 1)]


def _number(piece: str, text: str) -> Fraction:
    try:
        if not math.isfinite(float(piece)):
            raise ValueError
        return Fraction(piece.strip())
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"lambda is {text!r}: {piece!r} is no finite number; expected START:STOP:STEP such as 0:1.2:0.1, or single values"
        ) from None
