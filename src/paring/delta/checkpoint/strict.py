"""JSON from a file that may lie: of bounded size, UTF-8, an object, no name twice."""

import json
from typing import Any

from paring.delta.errors import DeltaError

# What safetensors allows a header; far beyond an index of a million tensors' names would be refused too.
MOST_BYTES = 100_000_000


def parsed(where: str, raw: bytes) -> dict[str, Any]:
    """The object in ``raw``; ``where`` names the file in errors.

    Raises:
        DeltaError: it is too long, no UTF-8, no JSON, no object, or has a name twice.
    """
    if len(raw) > MOST_BYTES:
        raise DeltaError(f"{where} is {len(raw):,} bytes of JSON, expected at most {MOST_BYTES:,}; it is no index or header")
    try:
        # Decoded here: json.loads would guess UTF-16 and UTF-32 as well.
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DeltaError(f"{where} is damaged: no valid JSON ({str(error)[:200]}); fetch or write the file again") from None
    if not isinstance(found, dict):
        raise DeltaError(f"{where} is damaged: got a JSON {type(found).__name__}, expected an object; fetch or write it again")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a name given twice, one reader takes the first and another the last; so it is refused."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice[:200]!r} stands in it twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
