"""How much of a long run is on the page."""

from dataclasses import dataclass, replace

MOST_BYTES = 5_000_000


@dataclass(frozen=True)
class Limits:
    """Attributes:
    rows: of a table; csv_rows: of its download. points: of a line that are drawn. letters: of a text or cell.
    """

    rows: int = 500
    csv_rows: int = 50_000
    points: int = 600
    letters: int = 100_000

    def halved(self) -> "Limits":
        """Less of downloads first, while these have many times the rows that are shown; then of everything."""
        if self.csv_rows > 4 * self.rows:
            return replace(self, csv_rows=self.csv_rows // 2)
        return Limits(*(max(n // 2, 1) for n in (self.rows, self.csv_rows, self.points, self.letters)))
