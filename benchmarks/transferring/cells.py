"""One line of the table on one fine-tune: lambda chosen on validation rows, the test rows scored once, with it."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from importlib.metadata import version
from json import dumps
from pathlib import Path
from typing import Any

import torch

from paring.recipes.transfer.methods import Candidate, candidates
from paring.recipes.transfer.problem import Place, Problem
from paring.recipes.transfer.report import best_place
from paring.recipes.transfer.settings import TransferSettings
from quality.store import versions
from slimming.cells import refit_identity
from transferring.lines import BUDGET, KEEP, LINES, PATH, SUBSPACES
from transferring.problem import originals, problem

REVISION = 1


@dataclass(frozen=True)
class Cell:
    """A line of ``LINES`` on the full fine-tune of one task and seed."""

    suite: str
    task: str
    seed: int
    line: str

    @property
    def key(self) -> str:
        line = LINES[self.line]
        what: dict[str, Any] = {**asdict(self), "keep": KEEP, "path": line.path(self.suite), "revision": REVISION}
        what["originals"] = originals(self.suite, self.task)
        if line.method in ("nps", "joint"):
            what |= {"budget": BUDGET[self.suite], "subspaces": SUBSPACES}
        if line.method == "fitted":
            what["refit"] = refit_identity()
        return blake2b(dumps(what, sort_keys=True).encode(), digest_size=8).hexdigest()


def measure(cells: Sequence[Cell], zoo: Path, results: Path) -> Iterator[dict[str, Any]]:
    """Cells of one fine-tune, which is loaded once."""
    torch.set_num_threads(1)
    first = cells[0]
    about = problem(first.suite, first.task, first.seed, zoo, results)
    for cell in cells:
        begun = time.perf_counter()
        found = scored(about, cell, zoo)
        yield {**asdict(cell), "key": cell.key, **found, "seconds": time.perf_counter() - begun, "versions": versions()}


def scored(about: Problem, cell: Cell, zoo: Path) -> dict[str, Any]:
    """The path of one line, its best place, and what the test rows say of that."""
    candidate = _candidate(about, cell, zoo)
    path = sorted({*LINES[cell.line].path(cell.suite), *(() if candidate.lam is None else (candidate.lam,))})
    places = about.trace(candidate.vector, path, "validation")
    best = best_place(places, cell.line)
    (test,) = about.trace(candidate.vector, (best.lam,), "test")
    return {
        "lambda": best.lam,
        "num_kept": candidate.num_kept,
        "validation": _plain(best),
        "test": _plain(test),
        "path": [{"lambda": place.lam, **_plain(place)} for place in places],
    }


def _candidate(about: Problem, cell: Cell, zoo: Path) -> Candidate:
    """By the code of ``paring transfer``. Searches keep their journals in the zoo: a killed one goes on, and "joint" begins
    where "nps" ended without searching that again."""
    method = LINES[cell.line].method
    settings = TransferSettings(
        lambdas=PATH[cell.suite],
        keep=KEEP,
        budget=BUDGET[cell.suite],
        subspaces=SUBSPACES,
        seed=cell.seed,
        search=str(_journals(about, cell, zoo)),
    )
    return candidates(("nps", "joint") if method == "joint" else (method,), about, settings, lambda _: None)[-1]


def _journals(about: Problem, cell: Cell, zoo: Path) -> Path:
    """A folder for each problem, since a journal of another is refused."""
    what = [cell.suite, cell.task, cell.seed, KEEP, SUBSPACES, BUDGET[cell.suite], PATH[cell.suite], REVISION]
    what += [about.vector.base.total, about.vector.norm(), originals(cell.suite, cell.task), version("cma"), version("numpy")]
    key = blake2b(dumps(what).encode(), digest_size=8).hexdigest()
    return zoo / f"transfer-{cell.suite}-{cell.task}-{cell.seed}-{key}"


def _plain(place: Place) -> dict[str, float]:
    return {"tuned": place.point.tuned, "original": place.point.original, "h": place.point.h}
