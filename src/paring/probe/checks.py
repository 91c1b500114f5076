"""What the kinds' settings check."""

from collections.abc import Sequence
from typing import Any


def refuse(name: str, got: object, expected: str) -> None:
    raise ValueError(f"{name} is {got!r}; expected {expected}")


def as_tuples(settings: Any, *names: str) -> None:
    for name in names:
        if isinstance(getattr(settings, name), list):
            object.__setattr__(settings, name, tuple(getattr(settings, name)))


def at_least(settings: Any, name: str, least: int) -> None:
    value = getattr(settings, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        refuse(name, value, f"a whole number, at least {least}")


def distinct(settings: Any, name: str, kind: type, least: int = 1) -> None:
    """A tuple of different numbers."""
    values = getattr(settings, name)
    allowed = (int, float) if kind is float else (int,)
    fits = isinstance(values, tuple) and all(isinstance(v, allowed) and not isinstance(v, bool) for v in values)
    if not fits or len(values) < least or len(set(values)) < len(values):
        what = "whole number" if kind is int else "number"
        refuse(name, values, f"at least {least} {what}{'s' if least > 1 else ''}, every one once")


def some_of(settings: Any, name: str, choices: Sequence[str], least: int = 1) -> None:
    """A tuple of different names."""
    values = getattr(settings, name)
    if not isinstance(values, tuple) or len(values) < least or set(values) - set(choices) or len(set(values)) < len(values):
        count = f"at least {least}" if least else "none or some"
        refuse(name, values, f"{count} of {', '.join(choices)}, every one once")
