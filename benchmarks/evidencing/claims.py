"""What the paper claims, and our comments: ``claims.toml``, written by hand. Numbers of ours stand in the records alone."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from evidencing.plan import KINDS


@dataclass(frozen=True)
class Claim:
    """Of one kind.

    Attributes:
        short: for the table. where: in the paper. paper: what it says. measured: how, in a sentence.
        why: where ours differs, and why we think so.
    """

    short: str
    where: str
    paper: str
    measured: str
    why: str


def read() -> tuple[str, dict[str, Claim]]:
    """The page's opening, and a claim for every kind.

    Raises:
        ValueError: a kind is missing. TypeError: a claim has other fields.
    """
    path = Path(__file__).with_name("claims.toml")
    found = tomllib.loads(path.read_text("utf-8"))
    opening = found.pop("opening")
    if set(found) != set(KINDS):
        raise ValueError(f"{path} tells of {', '.join(found)}; expected {', '.join(KINDS)}")
    return opening.strip(), {kind: Claim(**{k: v.strip() for k, v in fields.items()}) for kind, fields in found.items()}
