"""Minimise a number over a few coefficients: CMA-ES that begins at known good points and survives being killed.

    from paring.search import SearchSettings, search

    found = search(objective, 8, {"ones": [1.0] * 8}, SearchSettings(budget=200, bounds=(0, 2)), folder="runs/nps")
    found.coefficients, found.score, found.start_scores

It knows no model and no delta. With ``RayExecutor`` (extra ``ray``) several workers, on one machine or a cluster, try the same
candidates and find the same.
"""

from paring.search.driver import Candidate, Driver
from paring.search.executors import Executor, InProcess, Objective, Outcome
from paring.search.journal import Evaluation
from paring.search.ray_executor import RayExecutor
from paring.search.run import Progress, Result, search
from paring.search.settings import NoScoreError, SearchError, SearchSettings, Vector

__all__ = [
    "Candidate",
    "Driver",
    "Evaluation",
    "Executor",
    "InProcess",
    "NoScoreError",
    "Objective",
    "Outcome",
    "Progress",
    "RayExecutor",
    "Result",
    "SearchError",
    "SearchSettings",
    "Vector",
    "search",
]
