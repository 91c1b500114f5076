"""One search from its first start to the reason why it stopped."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paring.search.driver import Candidate, Driver
from paring.search.executors import Executor, InProcess, Objective
from paring.search.journal import Evaluation, Journal, header
from paring.search.settings import NoScoreError, SearchError, SearchSettings, Vector

_ROUNDING = 1e-9  # of a coefficient's range: what another machine's linear algebra may change


@dataclass(frozen=True)
class Progress:
    """What ``report`` is called with after each evaluation made; ``best`` is None until a score is finite."""

    latest: Evaluation
    best: Evaluation | None
    num_evaluations: int
    budget: int


@dataclass(frozen=True)
class Result:
    """What a search found.

    Attributes:
        coefficients: with the lowest score; of equal ones the first tried.
        score: theirs; never above that of any start.
        start_scores: by name; None where it was not finite.
        num_evaluations: all, those of earlier processes included.
        history: every evaluation, by index.
        stopped_because: ``budget``, ``patience``, ``min_step`` or ``target`` (see ``SearchSettings``).
    """

    coefficients: Vector
    score: float
    start_scores: dict[str, float | None]
    num_evaluations: int
    history: tuple[Evaluation, ...]
    stopped_because: str


def search(
    objective: Objective | Executor,
    dims: int,
    starts: Mapping[str, Sequence[float]],
    settings: SearchSettings | None = None,
    folder: Path | str | None = None,
    problem: Mapping[str, Any] | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Result:
    """Looks for the ``dims`` coefficients that the objective scores lowest.

    Args:
        objective: coefficients to a number, or an executor of one. NaN and infinities lose to every number. What it raises
            comes through; the folder can be resumed then, as after Ctrl-C or a killed process.
        dims: number of coefficients, >= 1; made for 2 to 64.
        starts: named points that are evaluated first, as they are; the best is where the search begins. None: the middle.
        settings: see ``SearchSettings``.
        folder: where the journal lies; a search that began there goes on: finished evaluations are not made again, the next
            candidates are bitwise those of a search never cut off (on another machine up to its linear algebra's rounding).
        problem: what else the scores depend on (model, data, keep …), as plain JSON values; another ``problem`` is refused.
        report: called after each evaluation that is made, not for those read from the folder.

    Raises:
        ValueError: settings, starts and ``dims`` that do not fit together.
        NoScoreError: no finite score at all.
        SearchError: a folder of another search, or one in which a search is running.
    """
    settings = settings or SearchSettings()
    driver = Driver(dims, starts, settings)
    executor = objective if isinstance(objective, Executor) else InProcess(objective)
    head = header(dims, driver.starts, settings, problem or {})
    history: list[Evaluation] = []
    with Journal(None if folder is None else Path(folder), head) as journal:
        stopped, generation = None, 0
        while stopped is None:
            candidates = driver.ask(settings.budget - len(history))
            _refuse_strangers(candidates, journal, len(history), settings)
            _evaluate(candidates, len(history), generation, executor, journal, settings, report)
            made = [journal.known[len(history) + i] for i in range(len(candidates))]
            history += made
            driver.tell([evaluation.score for evaluation in made])
            generation += 1
            stopped = _reason(history, len(driver.starts), driver.step, settings)
        best = journal.best
    if best is None or best.score is None:
        raise NoScoreError(f"none of {len(history)} evaluations has a finite score; try the objective by hand on a start")
    return Result(
        coefficients=best.coefficients,
        score=best.score,
        start_scores={e.start: e.score for e in history if e.start is not None},
        num_evaluations=len(history),
        history=tuple(history),
        stopped_because=stopped,
    )


def _evaluate(
    candidates: Sequence[Candidate],
    begin: int,
    generation: int,
    executor: Executor,
    journal: Journal,
    settings: SearchSettings,
    report: Callable[[Progress], None] | None,
) -> None:
    """Those of a generation, of which ``begin`` is the first index, that the journal does not know."""
    missing = [i for i in range(len(candidates)) if begin + i not in journal.known]
    if not missing:
        return
    for place, outcome in executor.evaluate([candidates[i].coefficients for i in missing]):
        candidate = candidates[missing[place]]
        evaluation = Evaluation(
            index=begin + missing[place],
            generation=generation,
            start=candidate.start,
            coefficients=candidate.coefficients,
            score=outcome.score if math.isfinite(outcome.score) else None,
            seconds=outcome.seconds,
            worker=outcome.worker,
        )
        journal.add(evaluation)
        if report is not None:
            report(Progress(evaluation, journal.best, len(journal.known), settings.budget))
    journal.sync()


def _refuse_strangers(candidates: Sequence[Candidate], journal: Journal, begin: int, settings: SearchSettings) -> None:
    """What the journal says of this generation must be about these candidates."""
    for i, candidate in enumerate(candidates):
        known = journal.known.get(begin + i)
        if known is None:
            continue
        lows, highs = settings.limits(len(candidate.coefficients))
        near = len(known.coefficients) == len(candidate.coefficients) and all(
            abs(a - b) <= _ROUNDING * (high - low)
            for a, b, low, high in zip(known.coefficients, candidate.coefficients, lows, highs, strict=True)
        )
        if not near:
            raise SearchError(
                f"evaluation {known.index} of the folder is of other coefficients than this search would try; go on with the "
                "versions of cma and numpy that its first line names, or begin in another folder"
            )


def _reason(history: Sequence[Evaluation], num_starts: int, step: float, settings: SearchSettings) -> str | None:
    """Why to stop after this generation, or None."""
    scored = [(e.score, e.index) for e in history if e.score is not None]
    if settings.target is not None and scored and min(scored)[0] <= settings.target:
        return "target"
    if len(history) >= settings.budget:
        return "budget"
    if settings.patience is not None and scored:
        reference, since = math.inf, 0
        for score, index in scored:
            if score < reference - settings.tolerance:
                reference, since = score, index
        if len(history) - 1 - max(since, num_starts - 1) >= settings.patience:
            return "patience"
    if step < settings.min_step:
        return "min_step"
    return None
