"""Docstrings: text classification made of the standard library that is installed, four tasks, no download.

collect (reads the sources) -> tasks (the questions) -> splits (train, calibration, validation, test; CSV files).
"""

from paring.tasks.docstrings.splits import Split, Texts, label_names, load_splits, write_csv
from paring.tasks.docstrings.tasks import TASKS, Task

__all__ = ["TASKS", "Split", "Task", "Texts", "label_names", "load_splits", "write_csv"]
