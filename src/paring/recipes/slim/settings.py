"""The settings of ``paring slim``."""

import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Literal

from paring.recipes.scoring import Goal
from paring.recipes.settings import TASKS, Task
from paring.search.settings import SearchSettings
from paring.slim.nps import PARTS, Nps
from paring.slim.pruners import PRUNERS, SCOPES, check_keep
from paring.slim.refit import Refit
from paring.slim.subspaces import COUNTED, SUBSPACES

WITHOUT_DATA, WITH_DATA = "rescaled", "fitted"  # the default methods
ON_DATA = ("nps", "fitted", "auto")
METHODS = (*PRUNERS, *ON_DATA)
PLAIN = ("bf16", "fp16")  # values that are rounded, each by itself
VALUES = ("fp32", *PLAIN, "int8", "int4", "sign")
GOALS = ("loss", "accuracy")
# Settings that not every method has.
_OF = {
    **dict.fromkeys(("search", "workers", "budget", "objective", "subspaces", "parts"), ("nps", "auto")),
    "steps": ("fitted", "auto"),
    "held_out": ("auto",),
    "scope": ("magnitude", "rescaled", "auto"),
}
Values = Literal["fp32", "bf16", "fp16", "int8", "int4", "sign"]


@dataclass(frozen=True, kw_only=True)
class SlimSettings:
    """How one delta, or each of several, is made small.

    Attributes:
        keep: shares of all entries of the delta's tensors that are kept, each in (0, 1]; a file is made for each.
        method: one of ``METHODS``; None: "fitted" with calibration rows, "rescaled" without.
        scope: of "magnitude" and "rescaled": "global" or "tensor".
        values, group: how differences are stored, see ``save_delta``.
        objective: what is searched for on calibration rows: the least loss, or the highest accuracy.
        budget: evaluations of a search, at least 2.
        steps: of the refit ("fitted" and "auto"), at least 1.
        seed: of the search, of the refit, of random pruning and subspaces, and of what is held out.
        subspaces: that "nps" (one) and "auto" (each) try, see ``paring.slim.subspaces``; None: the usual one, and all.
        parts: M, the number of subspaces, at least 2.
        workers: Ray workers that score candidates; 0: this process does.
        search: folder of the searches' journals; one that is there is gone on with. None: nowhere.
        held_out: share of the calibration rows that "auto" selects on without validation rows, in (0, 1).
        batch_size: rows scored at a time.
        task, config, text_column, label_column, max_length: where the delta does not say; see ``paring.recipes.tuned``.
        report: a new folder for the numbers as JSON, and plots; None: none.
        overwrite: whether what is at the output may be replaced.

    Raises:
        ValueError: naming the setting, what it is, what was expected.
    """

    keep: tuple[float, ...]
    method: str | None = None
    scope: str = "global"
    values: str = "fp16"
    group: int = 0
    objective: Goal = "loss"
    budget: int = 200
    steps: int = Refit().steps
    seed: int = 0
    subspaces: tuple[str, ...] | None = None
    parts: int = 8
    workers: int = 0
    search: str | None = None
    held_out: float = 0.25
    batch_size: int = 32
    task: Task | None = None
    config: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    max_length: int | None = None
    report: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.keep:
            _refuse("keep", self.keep, "at least one share of entries kept, in (0, 1]")
        for keep in self.keep:
            check_keep(keep, self.scope)
        if len(set(self.keep)) < len(self.keep):
            _refuse("keep", self.keep, "every share once")
        for name, allowed in (
            ("method", METHODS),
            ("scope", SCOPES),
            ("values", VALUES),
            ("objective", GOALS),
            ("task", TASKS),
        ):
            value = getattr(self, name)
            if value not in allowed and not (value is None and name in ("method", "task")):
                _refuse(name, value, f"one of {', '.join(allowed)}")
        for method in ("auto",) if self.method == "auto" else ("nps", "auto"):
            for how in self.searches(method):  # checks them
                if self.subspaces and self.subspaces.count(how.subspaces) > 1:
                    _refuse("subspaces", self.subspaces, "every one once")
        if self.subspaces is not None and (not self.subspaces or (len(self.subspaces) > 1 and self.method != "auto")):
            _refuse("subspaces", self.subspaces, "one; several with the method 'auto' alone")
        for name, least in (("budget", 2), ("steps", 1), ("workers", 0), ("batch_size", 1), ("group", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                _refuse(name, value, f"a whole number, at least {least}")
        if not (isinstance(self.held_out, float) and math.isfinite(self.held_out) and 0 < self.held_out < 1):
            _refuse("held_out", self.held_out, "a share between 0 and 1")
        for how in self.searches("auto" if self.method == "auto" else "nps"):
            if how.subspaces == "random" and self.budget < 3:
                _refuse("budget", self.budget, "at least 3: a search of random subspaces has as many starts")
        self.search_settings()

    def search_settings(self) -> SearchSettings:
        """Of each search; its bounds are its own matter."""
        return SearchSettings(budget=self.budget, seed=self.seed)

    def searches(self, method: str) -> tuple[Nps, ...]:
        """What a method searches; "auto" tries each, and pruning without data searches nothing."""
        kinds = self.subspaces or {"nps": (Nps().subspaces,), "auto": tuple(SUBSPACES)}.get(method, ())
        if method not in ("nps", "auto"):
            return ()
        # Of several kinds those that have a number of their own keep it.
        return tuple(Nps(kind, self.parts if kind in COUNTED or len(kinds) == 1 else PARTS, seed=self.seed) for kind in kinds)

    def fits(self, method: str) -> dict[str, Refit]:
        """What a method refits, by its label."""
        if method not in ("fitted", "auto"):
            return {}
        return {"fitted": Refit(steps=self.steps, seed=self.seed, values=self.values, group=self.group)}

    def chosen(self, with_data: bool) -> str:
        """The method.

        Raises:
            ValueError: it needs calibration rows and there are none.
        """
        method = self.method or (WITH_DATA if with_data else WITHOUT_DATA)
        if method in ON_DATA and not with_data:
            raise ValueError(f"method is {method!r}, which works on rows of the task; give some with --calibration FILE")
        return method

    def refuse_idle(self, methods: Collection[str]) -> None:
        """That every setting given is of one of the methods. ValueError: naming one that is of none, and whose it is."""
        usual = {f.name: f.default for f in fields(self)}
        for name, of in _OF.items():
            if getattr(self, name) != usual[name] and not set(of) & set(methods):
                raise ValueError(
                    f"--{name.replace('_', '-')} is of {' and '.join(of)}, and the method is "
                    f"{', '.join(dict.fromkeys(methods))}: leave it out, or take --method {of[0]}"
                )


def _refuse(name: str, got: object, expected: str) -> None:
    raise ValueError(f"{name} is {got!r}; expected {expected}")
