"""``write_csv`` of the docstrings, but for the number of rows: as many as show that the commands run."""

import csv
from collections.abc import Sequence
from pathlib import Path

from paring.tasks.docstrings import write_csv as write_all
from paring.tasks.docstrings.splits import Split

ROWS = {"train": 120, "calibration": 64, "validation": 48, "test": 48}


def write_csv(task: str, folder: str | Path, splits: Sequence[Split] = ("train", "validation", "test")) -> None:
    for split, path in zip(splits, write_all(task, folder, splits), strict=True):
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        labels = {row[1] for row in rows}
        firsts = [next(row for row in rows if row[1] == label) for label in sorted(labels)]  # every label stays
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([header, *firsts, *[r for r in rows if r not in firsts][: ROWS[split] - len(firsts)]])
