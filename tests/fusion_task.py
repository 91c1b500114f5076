"""Two tasks of one small text encoder, with heads of three and of two classes, tuned; their rows; and what a user has of it."""

import atexit
import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import yaml

from paring.cli.main import main
from small_text import save_base, texts, write_rows

SPLITS = {"train": (150, 0), "calibration": (40, 1), "validation": (40, 2), "test": (40, 3)}
TASKS = ("subject", "size")


@dataclass(frozen=True)
class Two:
    """Paths: of the base, and of a folder with ``TASK``, what ``paring tune`` leaves, and ``rows/TASK/SPLIT.csv`` for each."""

    base: Path
    folder: Path

    def rows(self, task: str, split: str) -> Path:
        return self.folder / "rows" / task / f"{split}.csv"

    def config(self, path: Path, method: str = "task_arithmetic", **more: object) -> Path:
        models = [{"model": str(self.folder / task)} for task in TASKS]
        plain = {"merge_method": method, "base_model": str(self.base), "models": models, **more}
        path.write_text(yaml.safe_dump(plain, sort_keys=False))
        return path

    def options(self, *splits: str) -> list[str]:
        return [a for s in splits for a in (f"--{s}", *(f"{t}={self.rows(t, s)}" for t in TASKS))]


@cache
def two() -> Two:
    """Removed when the process ends."""
    at = Path(mkdtemp(prefix="paring-tests-"))
    atexit.register(rmtree, at, ignore_errors=True)
    base = save_base(at / "base")
    for task in TASKS:
        for split, (count, seed) in SPLITS.items():
            rows = texts(count, seed)
            answer = {"subject": lambda label, text: label, "size": lambda label, text: "long" if len(text) > 33 else "short"}[
                task
            ]
            write_rows(at / "rows" / task / f"{split}.csv", [(text, answer(label, text)) for text, label in rows])
        run = ["tune", str(base), "--data", str(at / "rows" / task / "train.csv"), "--task", "text-classification"]
        run += ["--out", str(at / task), "--max-steps", "120", "--rank", "8", "--learning-rate", "0.02", "--max-length", "7"]
        assert main(run) == 0
    return Two(base, at)


def labels(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["label"] for row in csv.DictReader(file)]
