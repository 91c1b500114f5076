"""The pruned task vectors that a merge is made of, in a folder of their own."""

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from paring.delta.files import save_delta
from paring.files import hidden_folder, put_in_place, sync
from paring.recipes.fusion.methods import Pruned
from paring.recipes.fusion.problem import Problem
from paring.recipes.fusion.settings import FusionSettings
from paring.recipes.slim.output import SUFFIX


@contextmanager
def banked(bank: Path, left: Mapping[str, Pruned], about: Problem, settings: FusionSettings, method: str) -> Iterator[None]:
    """Writes them before the merge, which is read from them; where that fails, what was there before is there again.

    What may be replaced was looked at before (``paring.recipes.slim.output.check_new``).
    """
    with hidden_folder(bank) as aside:
        other = aside / "other"
        other.mkdir()
        _write(other, left, about, settings, method)
        for path in (*other.iterdir(), other):
            sync(path)
        put_in_place(other, bank, overwrite=True)
        try:
            yield
        except BaseException:
            if other.exists():  # the old one
                put_in_place(other, bank, overwrite=True)
            else:
                shutil.rmtree(bank, ignore_errors=True)
            raise


def _write(folder: Path, left: Mapping[str, Pruned], about: Problem, settings: FusionSettings, method: str) -> None:
    for task in about.tasks:
        tuned = {split: of[task.name].metric[1] for split, of in about.tuned.items()}
        facts = {
            **{k: v for k, v in task.vector.facts.items() if k not in ("scores", "calibration")},
            "config": dict(task.config),
            "method": method,
            "keep": settings.keep,
            "tuned_scores": {split: v for split, v in tuned.items() if math.isfinite(v)},
        }
        save_delta(left[task.name].vector, folder / f"{task.name}{SUFFIX}", facts, values=settings.values)
