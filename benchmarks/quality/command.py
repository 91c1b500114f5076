"""The command line of a benchmark that measures cells of two suites by worker processes and keeps what it has."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from quality.store import Store
from quality.tasks import SUITES

BENCHMARKS = Path(__file__).parent.parent
DOCS = BENCHMARKS.parent / "docs"


class Plan(Protocol):
    """A module ``plan``."""

    def store(self, results: Path, suite: str) -> Store: ...

    def run(self, suite: str, kept: Store, workers: int, zoo: Path, results: Path, minutes: float | None) -> None: ...


def run(about: str, plan: Plan, show: Callable[[str, list[dict[str, Any]]], None]) -> None:
    """Measures what is missing, unless ``--report`` is given, and shows each suite's cells.

    Args:
        about: the script's docstring, which ``--help`` prints.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=list(SUITES), choices=list(SUITES), help="of which fine-tunes")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="groups at a time, one thread each")
    parser.add_argument("--minutes", type=float, help="begin nothing new after so long")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results", help="folder of the results")
    parser.add_argument("--zoo", type=Path, default=BENCHMARKS / "zoo", help="folder of the fine-tunes")
    parser.add_argument("--report", action="store_true", help="show what the results hold; run nothing")
    arguments = parser.parse_args()
    for suite in arguments.suites:
        store = plan.store(arguments.out, suite)
        if not arguments.report:
            plan.run(suite, store, arguments.workers, arguments.zoo, arguments.out, arguments.minutes)
        show(suite, list(store.cells.values()))
