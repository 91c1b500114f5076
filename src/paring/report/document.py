"""What a page says, apart from how it looks: sections of facts, tables and figures, in plain values.

Readers of folders (``readers/``) make a ``Document``; ``page`` makes HTML of it. Nothing here knows HTML.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

# How a number is written: count 12,345 · score 0.9512 · share 12.3 % · seconds and ratio 1.2 · general 4 digits.
Form = Literal["text", "count", "score", "share", "seconds", "ratio", "general"]
# A NaN or infinity is a number that came out so; None is a value that is not there.
Cell = str | int | float | None


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        bar: a bar under each number, as long as its share of the column's largest.
        best: which of the numbers is printed bold.
    """

    name: str
    form: Form = "text"
    bar: bool = False
    best: Literal["high", "low"] | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells, which a reader can sort and download.

    Attributes:
        foot: rows under the rule (totals, ends to compare with); they stay there when rows are sorted.
        summed: the foot is the sum of the rows.
        marked: numbers of rows that were chosen; ``mark`` says by what.
        folded: shown on demand only.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    foot: Sequence[Sequence[Cell]] = ()
    summed: bool = False
    marked: frozenset[int] = frozenset()
    mark: str = ""
    note: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis of a panel.

    Attributes:
        ticks: where they are; empty: chosen.
        within: what the margin may not go beyond: (0, 1) of an accuracy.
    """

    label: str
    form: Form = "general"
    log: bool = False
    ticks: tuple[float, ...] = ()
    within: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class Series:
    """One line or cloud of points.

    Attributes:
        name: in the legend; equal names in a figure are shown and hidden together.
        points: (x, y); a y that is no finite number is a gap. Of a "level": one point, whose y is drawn across.
        labels: of the points, for who looks closer; empty: none.
        held: the axes are wide enough for all of it; points of another one may lie outside and are not drawn then.
        faint: drawn in the background.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    shape: Literal["line", "step", "dots", "level"] = "line"
    labels: Sequence[str] = ()
    held: bool = True
    faint: bool = False


@dataclass(frozen=True)
class Panel:
    """Axes and what is drawn in them."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]


@dataclass(frozen=True)
class Figure:
    """Panels side by side, with one legend.

    Attributes:
        shared: axes of the same label have the same range in all panels.
    """

    caption: str
    panels: Sequence[Panel]
    note: str = ""
    shared: bool = True


@dataclass(frozen=True)
class Strip:
    """Small grey images in a row, under each its label.

    Attributes:
        images: rows of ink, 0 (none) to 1; all of one size.
        labels: of the images; empty: none.
    """

    name: str
    images: Sequence[Sequence[Sequence[float]]]
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Album:
    """Groups of strips: (title, text, strips)."""

    caption: str
    groups: Sequence[tuple[str, str, Sequence[Strip]]]


@dataclass(frozen=True)
class Picture:
    """An SVG drawing that lies in the folder; shown as an image, in which no script runs."""

    caption: str
    svg: bytes


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """Text as it stands in a file."""

    caption: str
    text: str


@dataclass(frozen=True)
class Points:
    """Sentences, each an item."""

    items: Sequence[str]


Block = str | Table | Figure | Album | Picture | Facts | Code | Points


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """One page.

    Attributes:
        kind: the command that wrote the folder.
        title: of the page. lead: one or two sentences: what was done.
        stats: the few numbers that matter most: (value, what it is).
        gaps: what is missing in the folder, a sentence each.
    """

    kind: str
    title: str
    lead: str
    sections: Sequence[Section]
    stats: Sequence[tuple[str, str]] = ()
    gaps: Sequence[str] = field(default_factory=tuple)
