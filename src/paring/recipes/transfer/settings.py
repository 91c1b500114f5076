"""The settings of ``paring transfer``."""

from dataclasses import dataclass

from paring.recipes.scoring import Goal
from paring.recipes.settings import TASKS, Task
from paring.recipes.slim.settings import GOALS, VALUES
from paring.search.settings import SearchSettings
from paring.slim.nps import Nps
from paring.slim.pruners import PRUNERS, check_keep
from paring.slim.refit import Refit
from paring.transfer.grid import checked, lambdas

WHOLE = "whole"  # nothing is pruned
SEARCHED = ("nps", "fitted", "joint")  # on calibration rows
METHODS = (WHOLE, *PRUNERS, *SEARCHED)
WITHOUT_ROWS = (WHOLE, "magnitude", "dare")
WITH_ROWS = (*WITHOUT_ROWS, "nps", "fitted")
RANGE = lambdas("0:1.2:0.1")


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """What is tried on the path, and how.

    Attributes:
        lambdas: where every method is scored, increasing.
        methods: of ``METHODS``, each once: "whole" prunes nothing, "joint" searches lambda beside w. None: whole, magnitude and
            dare; with calibration rows of the tuned task nps and fitted, too.
        keep: share of all entries of the delta's tensors that pruning keeps, in (0, 1].
        objective: what "nps" and "joint" search for on calibration rows: by the loss, or by the accuracy.
        budget: evaluations of a search, at least 2.
        subspaces, parts: of "nps" and "joint", see ``paring.slim.nps``.
        steps: of "fitted"'s refit.
        seed: of searches, of the refit and of random pruning.
        own_head: the head is no part of the path though it differs in numbers alone: the original tasks keep the base's, the
            tuned task has the fine-tune's at every lambda.
        search: folder for the journals of searches, to go on after a kill; None: nowhere.
        batch_size: rows scored at a time.
        values: how differences are stored in a delta that is written, see ``save_delta``.
        task, config, text_column, label_column, max_length: of the tuned task, where the delta does not say; see
            ``paring.recipes.tuned``.
        report: a new folder for the numbers as JSON, and plots; None: none.
        overwrite: whether what is at the outputs may be replaced.

    Raises:
        ValueError: naming the setting, what it is, what was expected.
    """

    lambdas: tuple[float, ...] = RANGE
    methods: tuple[str, ...] | None = None
    keep: float = 0.1
    objective: Goal = "loss"
    budget: int = 200
    subspaces: str = Nps().subspaces
    parts: int = Nps().parts
    steps: int = Refit().steps
    seed: int = 0
    own_head: bool = False
    search: str | None = None
    batch_size: int = 32
    values: str = "fp16"
    task: Task | None = None
    config: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    max_length: int | None = None
    report: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        checked(self.lambdas)
        check_keep(self.keep)
        for name, allowed in (("objective", GOALS), ("values", VALUES), ("task", TASKS)):
            value = getattr(self, name)
            if value not in allowed and not (value is None and name == "task"):
                _refuse(name, value, f"one of {', '.join(allowed)}")
        for method in self.methods or ():
            if method not in METHODS:
                _refuse("methods", method, f"some of {', '.join(METHODS)}")
        if self.methods is not None and (not self.methods or len(set(self.methods)) < len(self.methods)):
            _refuse("methods", self.methods, "at least one, each once")
        if "joint" in (self.methods or ()) and len(self.lambdas) < 2:
            _refuse("lambda", self.lambdas, "a range, within which the method 'joint' searches")
        for name, least in (("budget", 2), ("batch_size", 1), ("steps", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                _refuse(name, value, f"a whole number, at least {least}")
        self.search_settings(), self.nps(), self.refit()  # check them

    def search_settings(self) -> SearchSettings:
        """Of each search."""
        return SearchSettings(budget=self.budget, seed=self.seed)

    def nps(self) -> Nps:
        """How task vectors are cut."""
        return Nps(subspaces=self.subspaces, parts=self.parts, seed=self.seed)

    def refit(self) -> Refit:
        """How "fitted" tunes what is kept."""
        return Refit(steps=self.steps, seed=self.seed)

    def chosen(self, tuned_rows: bool, original_rows: bool) -> tuple[str, ...]:
        """The methods.

        Args:
            tuned_rows, original_rows: whether there are calibration rows of the tuned task, and of every original one.

        Raises:
            ValueError: a method needs rows that there are not.
        """
        methods = self.methods or (WITH_ROWS if tuned_rows else WITHOUT_ROWS)
        for method in methods:
            if method in SEARCHED and not tuned_rows:
                raise ValueError(f"method {method!r} works on rows of the tuned task; give some with --calibration FILE")
            if method == "joint" and not original_rows:
                raise ValueError(
                    "method 'joint' searches on rows of the original tasks, too; give some of each with "
                    "--original-calibration [NAME=]FILE"
                )
        return methods


def _refuse(name: str, got: object, expected: str) -> None:
    raise ValueError(f"{name} is {got!r}; expected {expected}")
