"""The JSON that a run leaves, read without trust: what is missing or of another kind is said with its place in the file."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MOST_BYTES = 64 << 20


class ReportError(ValueError):
    """A folder or a file in it is not what a run writes."""


class Record:
    """One JSON object.

    Args:
        where: the file, and the keys that lead here; for errors.
    """

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise ReportError(f"{where} is {_kind(values)}; expected an object")
        self._values, self.where = values, where

    def __contains__(self, key: str) -> bool:
        """Whether there is a value that is not null."""
        return self._values.get(key) is not None

    @property
    def names(self) -> list[str]:
        """The keys."""
        return list(self._values)

    def text(self, key: str) -> str:
        value = self._needed(key)
        return value if isinstance(value, str) else self._refuse(key, value, "text")

    def truth(self, key: str) -> bool:
        value = self._needed(key)
        return value if isinstance(value, bool) else self._refuse(key, value, "true or false")

    def number(self, key: str) -> float:
        """A number; NaN where it is null, which is how a number that was not finite is written."""
        return self._number(key, self._needed(key))

    def maybe(self, key: str) -> float | None:
        """A number, or None where there is none of that name."""
        return self.number(key) if key in self._values else None

    def numbers(self, key: str) -> list[float]:
        return [self._number(f"{key}[{i}]", v) for i, v in enumerate(self._list(key))]

    def texts(self, key: str) -> list[str]:
        found = self._list(key)
        for i, value in enumerate(found):
            if not isinstance(value, str):
                self._refuse(f"{key}[{i}]", value, "text")
        return found

    def pairs(self, key: str) -> list[tuple[float, float]]:
        """A list of lists of two numbers."""
        rows = self._list(key)
        for i, row in enumerate(rows):
            if not isinstance(row, list) or len(row) != 2:
                self._refuse(f"{key}[{i}]", row, "two numbers")
        return [(self._number(f"{key}[{i}][0]", x), self._number(f"{key}[{i}][1]", y)) for i, (x, y) in enumerate(rows)]

    def record(self, key: str) -> "Record":
        return Record(self._needed(key), f"{self.where}: {key}")

    def records(self, key: str) -> list["Record"]:
        return [Record(value, f"{self.where}: {key}[{i}]") for i, value in enumerate(self._list(key))]

    def items(self) -> Iterator[tuple[str, "Record"]]:
        """Each value as an object."""
        for key in self._values:
            yield key, self.record(key)

    def plain(self) -> Iterator[tuple[str, str]]:
        """Each value that is not null as text: what it is, yes or no, the items of a list, or JSON."""
        for key, value in self._values.items():
            if value is not None:
                yield key, _plain(value)

    def _needed(self, key: str) -> Any:
        if key not in self._values:
            raise ReportError(f"{self.where} has no '{key}'; it was written by another program, or is damaged")
        return self._values[key]

    def _list(self, key: str) -> list[Any]:
        value = self._needed(key)
        return value if isinstance(value, list) else self._refuse(key, value, "a list")

    def _number(self, key: str, value: Any) -> float:
        if value is None:
            return math.nan
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._refuse(key, value, "a number")
        if isinstance(value, int) and abs(value) > 1 << 62:
            return math.inf if value > 0 else -math.inf  # no count of ours; and too large for arithmetic
        return value

    def _refuse(self, key: str, value: Any, expected: str) -> Any:
        raise ReportError(f"{self.where}: '{key}' is {_kind(value)}; expected {expected}")


def read_record(path: Path) -> Record:
    """A JSON file with one object.

    Raises:
        ReportError: it is no such file, or larger than any record of a run.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ReportError(f"{path} has {path.stat().st_size:,} bytes; expected a record of at most {_MOST_BYTES:,}")
        return Record(json.loads(path.read_bytes()), str(path))
    except ReportError:
        raise
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ReportError(f"{path} is not JSON ({reason}); it is damaged, or half written") from None


def _plain(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(v, str | int | float) for v in value):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value!r:.40}")
