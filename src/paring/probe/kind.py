"""What a kind of probe is: cells, how one is measured, and what follows from all of them. See docs/probe.md."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from paring.probe.bench import Bench

Value = str | int | float | bool | None
Row = dict[str, Value]  # one observation: column -> value; None where a number was not finite or does not apply
Tables = dict[str, list[Row]]  # by name
_START = {True: "holds ", False: "does not hold: ", None: "undecided: "}
_MEASURED = {True: "undecided, as measured it holds: ", False: "undecided, as measured it does not hold: "}


@dataclass(frozen=True)
class Cell:
    """One piece of a probe's work: measured once, kept from then on.

    Attributes:
        what: what tells it from the probe's other cells (layer, seed, position …); each of its rows begins with these columns.
        weight: how long it takes, relative to the others; for the remaining time alone.
    """

    what: Mapping[str, Value]
    weight: float = 1.0


@dataclass(frozen=True)
class Plan:
    """The cells of one probe of one model, and how they are measured.

    Attributes:
        cells: in the order in which they are measured.
        measure: cell -> tables of rows; may be called for any of the cells, in any order, and gives the same rows for the same
            cell. Columns of ``what`` need not be in the rows.
        given: what every cell depends on beside ``what``, the model and the data: part of each cell's key.
        facts: of the model and the data (number of layers, of classes …): to ``probe.json``.
        notes: sentences for the user.
    """

    cells: Sequence[Cell]
    measure: Callable[[Cell], Tables]
    given: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What the numbers say of the claim.

    Attributes:
        holds: True and False leave no doubt: the whole interval says so; None where it does not decide.
        said: what was found, with its confidence interval: "within ±0.9 points over 48 positions x 3 seeds (95 % …)".
        numbers: those that ``said`` was made of, by name, with the ends of the interval.
        measured: of what is undecided, what the numbers say by themselves, without their interval.
    """

    holds: bool | None
    said: str
    numbers: Mapping[str, Value]
    measured: bool | None = None

    @property
    def sentence(self) -> str:
        """``holds …``, ``does not hold: …``, ``undecided: …`` or ``undecided, as measured it holds: …`` (``does not hold``)."""
        if self.holds is None and self.measured is not None:
            return _MEASURED[self.measured] + self.said
        return _START[self.holds] + self.said


def no_summaries(tables: Tables) -> Tables:
    return {}


@dataclass(frozen=True)
class Kind:
    """One kind of probe.

    Attributes:
        name: of the command.
        title: a few words, for headings.
        claim: the sentence that is tested. source: where it stands.
        settings: a frozen dataclass that checks itself, with a default for every field.
        needs: "checkpoint": weights on disk, streamed; "rows": a model in memory, and data.
        plan: (bench, settings) -> the plan, while what it needs is open.
        columns: column -> what it holds, with its unit; of all tables and of the cells.
        verdict: (all tables, settings) -> what they say.
        summaries: all tables -> further tables, made of them.
        figure: name of the module in ``paring.probe.plots`` whose ``figure(record, tables)`` draws.
        revision: to be raised when a cell would be measured otherwise: those of an older one are not taken over.
    """

    name: str
    title: str
    claim: str
    source: str
    settings: type[Any]
    needs: Literal["checkpoint", "rows"]
    plan: "Callable[[Bench, Any], AbstractContextManager[Plan]]"
    columns: Mapping[str, str]
    verdict: Callable[[Tables, Any], Verdict]
    figure: str
    summaries: Callable[[Tables], Tables] = no_summaries
    revision: int = 1


def key_of(cell: Cell, identity: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The content key: 32 hexadecimal digits of all that the cell's numbers depend on.

    Raises:
        TypeError: something of it is no plain JSON.
    """
    content = json.dumps([dict(identity), dict(given), dict(cell.what)], sort_keys=True, allow_nan=False)
    return blake2b(content.encode(), digest_size=16).hexdigest()
