"""The settings of a merge with rows: weights searched, values fitted."""

from dataclasses import dataclass

from paring.fusion.fitting import Fit
from paring.fusion.objective import GOALS as TOGETHER
from paring.fusion.objective import Goal as Together
from paring.recipes.calibration import Files
from paring.recipes.scoring import Goal
from paring.recipes.settings import TASKS, Task
from paring.recipes.slim.settings import GOALS, VALUES
from paring.search.settings import SearchSettings
from paring.slim.nps import Nps
from paring.slim.pruners import PRUNERS, check_keep
from paring.slim.refit import Refit

PRUNING = (*PRUNERS, "nps", "fitted")
_BUDGET = 200


@dataclass(frozen=True, kw_only=True)
class FusionSettings:
    """How weights are searched, values fitted, and what is done with the task vectors before.

    Attributes:
        objective: the mean over tasks of the score over the fine-tune's own, or the worst of these.
        by: what a score is: "accuracy" (of causal-lm the likelihood), or "loss", the likelihood exp(-loss).
        fit: whether the merged values are tuned on the calibration rows, see ``paring.fusion.fitting``. Weights are searched
            before only if ``layer_groups``, ``budget``, ``most``, ``workers`` or ``search`` is given.
        fit_steps, fit_rate, fit_head_rate: of it, see ``Fit``.
        layer_groups: runs of layers that have weights of their own; 1: a weight for each task.
        budget: evaluations of a search, at least 2; None: 200.
        most: the largest weight that is tried.
        seed: of searches, of random pruning, and of what is held out.
        workers: Ray workers that score merges; 0: this process does.
        search: folder of the searches' journals, to go on after a kill; None: nowhere.
        prune: of ``PRUNING``, done to each task vector first; None: nothing, or "nps" where that is the merge method.
        keep: share of all entries of a task vector's tensors that pruning keeps, in (0, 1].
        subspaces, parts: of pruning by "nps", see ``paring.slim.nps``. steps: of the refit of "fitted".
        values: how differences of pruned task vectors are stored, see ``save_delta``.
        own_heads: heads are no part of the merge though they differ in numbers alone: each task keeps its own.
        held_out: share of the calibration rows that a task without validation rows is selected on, in (0, 1).
        batch_size: rows scored at a time.
        pruned: a new folder for the pruned task vectors, a bank; None: OUT.pruned.

    Raises:
        ValueError: naming the setting, what it is, what was expected.
    """

    objective: Together = "mean"
    by: Goal = "accuracy"
    fit: bool = False
    fit_steps: int = Fit().steps
    fit_rate: float = Fit().rate
    fit_head_rate: float = Fit().head_rate
    layer_groups: int = 1
    budget: int | None = None
    most: float = 2.0
    seed: int = 0
    workers: int = 0
    search: str | None = None
    prune: str | None = None
    keep: float = 0.1
    subspaces: str = Nps().subspaces
    parts: int = Nps().parts
    steps: int = Refit().steps
    values: str = "fp16"
    own_heads: bool = False
    held_out: float = 0.25
    batch_size: int = 32
    pruned: str | None = None

    def __post_init__(self) -> None:
        check_keep(self.keep)
        for name, allowed in (("objective", TOGETHER), ("by", GOALS), ("values", VALUES), ("prune", PRUNING)):
            value = getattr(self, name)
            if value not in allowed and not (value is None and name == "prune"):
                _refuse(name, value, f"one of {', '.join(allowed)}")
        for name, least in (("layer_groups", 1), ("budget", 2), ("workers", 0), ("batch_size", 1), ("steps", 1)):
            value = getattr(self, name)
            if value is None and name == "budget":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                _refuse(name, value, f"a whole number, at least {least}")
        if isinstance(self.most, bool) or not isinstance(self.most, int | float) or not 0 < self.most < float("inf"):
            _refuse("most", self.most, "a number above 0")
        if not (isinstance(self.held_out, float) and 0 < self.held_out < 1):
            _refuse("held_out", self.held_out, "a share between 0 and 1")
        self.search_settings(), self.nps(), self.refit(), self.fitting()  # check them

    @property
    def searches(self) -> bool:
        """Whether weights are searched."""
        asked = (self.layer_groups, self.budget, self.most, self.workers, self.search)
        return not self.fit or asked != (1, None, 2.0, 0, None)

    @property
    def evaluations(self) -> int:
        """Of each search."""
        return _BUDGET if self.budget is None else self.budget

    def search_settings(self) -> SearchSettings:
        """Of each search; its bounds are its own matter."""
        return SearchSettings(budget=self.evaluations, seed=self.seed)

    def fitting(self) -> Fit:
        """How merged values are tuned."""
        return Fit(steps=self.fit_steps, rate=self.fit_rate, head_rate=self.fit_head_rate, seed=self.seed)

    def nps(self) -> Nps:
        """How task vectors are cut."""
        return Nps(subspaces=self.subspaces, parts=self.parts, seed=self.seed)

    def refit(self) -> Refit:
        """How "fitted" tunes what is kept."""
        return Refit(steps=self.steps, seed=self.seed, values=self.values)


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What is given of one task.

    Attributes:
        files: its rows.
        task, config, text_column, label_column, max_length: where its delta or configuration does not say; see
            ``paring.recipes.tuned``.
    """

    files: Files
    task: Task | None = None
    config: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.task is not None and self.task not in TASKS:
            _refuse("task", self.task, f"one of {', '.join(TASKS)}")

    def of_rows(self) -> dict[str, str | int | None]:
        """What says how rows become inputs."""
        return {name: getattr(self, name) for name in ("task", "text_column", "label_column", "max_length")}


def _refuse(name: str, got: object, expected: str) -> None:
    raise ValueError(f"{name} is {got!r}; expected {expected}")
