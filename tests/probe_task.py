"""A small text classifier's folder and rows, for probes. Made once for each process."""

import atexit
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from paring.probe.runner import Result, run
from small_text import save_base, texts, write_rows


@dataclass(frozen=True)
class Task:
    """Paths: of a BERT without a head, and of a folder with train, validation and test rows of three classes."""

    model: Path
    data: Path

    def probe(self, kind: str, out: Path, **given: Any) -> Result:
        rows = (
            {} if kind in ("spectra", "squares") else {"data": str(self.data), "task": "text-classification", "max_length": 7}
        )
        return run(kind, str(self.model), out=out, say=lambda line: None, **(rows | {"figure": False} | given))

    def command(self, kind: str, out: Path, *more: str) -> list[str]:
        rows = (
            []
            if kind in ("spectra", "squares")
            else ["--data", str(self.data), "--task", "text-classification", "--max-length", "7"]
        )
        return ["probe", kind, str(self.model), "--out", str(out), *rows, *more]


@cache
def task() -> Task:
    """Removed when the process ends."""
    at = Path(mkdtemp(prefix="paring-tests-"))
    atexit.register(rmtree, at, ignore_errors=True)
    for name, count, seed in (("train", 90, 0), ("validation", 30, 2), ("test", 30, 3)):
        write_rows(at / "rows" / f"{name}.csv", texts(count, seed))
    return Task(save_base(at / "model"), at / "rows")
