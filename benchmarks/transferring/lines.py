"""The lines of the table: what is done with a delta before, and where on its path it is scored."""

from dataclasses import dataclass

from paring.transfer.grid import lambdas

KEEP = 0.1  # of a pruned task vector
SUBSPACES = "magnitude*kind"  # of searches
BUDGET = {"digits": 200, "docstrings": 60}  # evaluations of a search
PATH = {"digits": lambdas("0:2:0.1"), "docstrings": lambdas("0:1.6:0.2")}


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        title: for a reader.
        method: of ``paring transfer``.
        at: lambda; None: chosen on validation rows.
    """

    title: str
    method: str
    at: float | None = None

    def path(self, suite: str) -> tuple[float, ...]:
        return PATH[suite] if self.at is None else (self.at,)


LINES = {
    "base": Line("the base", "whole", 0.0),
    "tuned": Line("the fine-tune", "whole", 1.0),
    "whole": Line("whole", "whole"),
    "magnitude": Line("magnitude", "magnitude"),
    "rescaled": Line("magnitude, rescaled", "rescaled"),
    "dare": Line("DARE", "dare"),
    "nps": Line("NPS", "nps"),
    "fitted": Line("fitted", "fitted"),
    "joint": Line("NPS and lambda, searched together on rows of all tasks", "joint"),
}
