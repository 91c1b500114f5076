"""A tuned small text classifier, the folders a user has of it, and rows to slim it on. Made once for each process."""

import atexit
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

from paring.cli.main import main
from small_text import save_base, texts, write_rows


@dataclass(frozen=True)
class Tuned:
    """Paths: of the base, of the run's folder, and of files of rows that share none."""

    base: Path
    folder: Path
    calibration: Path
    validation: Path
    test: Path

    @property
    def delta(self) -> Path:
        return self.folder / "model.delta.safetensors"

    def slim(self, out: Path, *more: str, rows: bool = True) -> list[str]:
        """Arguments of the command."""
        given = ["--calibration", str(self.calibration)] if rows else []
        return ["slim", str(self.delta), str(out), "--base", str(self.base), *given, *more]


@cache
def tuned() -> Tuned:
    """Removed when the process ends."""
    at = Path(mkdtemp(prefix="paring-tests-"))
    atexit.register(rmtree, at, ignore_errors=True)
    splits = {"train": (180, 0), "calibration": (60, 1), "validation": (48, 2), "test": (48, 3)}
    files = {name: write_rows(at / "rows" / f"{name}.csv", texts(count, seed)) for name, (count, seed) in splits.items()}
    base = save_base(at / "base")
    run = ["tune", str(base), "--data", str(files["train"]), "--task", "text-classification", "--out", str(at / "tuned")]
    assert main([*run, "--max-steps", "100", "--rank", "8", "--learning-rate", "0.02", "--max-length", "7"]) == 0
    return Tuned(base, at / "tuned", files["calibration"], files["validation"], files["test"])
