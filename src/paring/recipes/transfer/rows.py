"""The rows of all tasks: read as ``paring slim`` reads them, and none in two splits, be it of two tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from paring.recipes.calibration import Splits, read_split, refuse_shared
from paring.recipes.data import Rows
from paring.recipes.settings import TuneSettings

SPLITS = ("calibration", "validation", "test")


@dataclass(frozen=True)
class TaskFiles:
    """Where the rows of a task lie: to choose lambda on, to search on, to report on; each a file or folder of one split."""

    validation: str
    calibration: str | None = None
    test: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """By split."""
        return {split: path for split in SPLITS if (path := getattr(self, split)) is not None}


@dataclass(frozen=True)
class TaskRows:
    """The rows of a task by split, and what the options are called that gave them."""

    splits: Mapping[str, Rows]
    options: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Of the calibration rows and their labels; empty: there are none."""
        there = "calibration" in self.splits
        return Splits(self.splits["calibration"], None, None, ()).digest if there else ""


def read_task(files: TaskFiles, settings: TuneSettings, labels: Sequence[str], option: str, notes: list[str]) -> TaskRows:
    """Reads the rows of one task.

    Args:
        settings: the task and its columns.
        labels: names of the model's outputs; empty: the task has none.
        option: how options are called: "--{}" or "--original-{} NAME", with the split for {}.

    Raises:
        FileNotFoundError, ImportError, ValueError: as ``paring.recipes.calibration.load_splits``.
    """
    options = {split: option.format(split) for split in files.given}
    rows = {split: read_split(options[split], path, settings, labels, notes) for split, path in files.given.items()}
    return TaskRows(rows, options)


def refuse_shared_rows(tasks: Sequence[TaskRows]) -> None:
    """That no row stands in two splits, of one task or of two.

    The same split of two tasks may share rows: nothing is scored on what was searched or chosen by then.

    Raises:
        ValueError: one does; names options and rows.
    """
    every = [(split, task.options[split], rows) for task in tasks for split, rows in task.splits.items()]
    for (split, one, rows), (other_split, other, others) in combinations(every, 2):
        if split != other_split:
            refuse_shared(one, rows, other, others)
