"""The full fine-tunes of all tasks as one model: merged without data, and with values fitted on calibration images.

The tasks share the base's body, and each has its own head, tuned with it: what ``paring fuse --fit --own-heads`` makes of rows
in files.
The folder holds the fitted model as a checkpoint for anyone, and each task's head as a delta of it.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from paring.delta.diff import diff
from paring.delta.files import load_delta, save_delta
from paring.files import refuse_others, replacing_folder
from paring.fuse.registry import METHODS
from paring.fusion.fitting import Fit, fit
from paring.fusion.held import Task, hold
from paring.fusion.merging import Merging, Settings, same_for_all
from paring.recipes.quiet import quiet
from paring.recipes.transfer.originals import with_own_head
from paring.slim.lesson import Lesson
from paring.tasks.digits import Shift, accuracy, load_splits
from paring.tasks.extras import require

FOLDER, HEADS = "fused", "heads"
_OURS, _HEADS = ("config.json", "*.safetensors", f"{HEADS}/"), ("*.delta.safetensors",)  # files in these
RATE = 0.4  # of the fit: the best of a few on validation images (docs/log.md)
_ROWS = 32  # in a batch
# Without rows nobody can choose a setting: equal weights, and those of TIES' paper.
_AVERAGE: tuple[str, dict[str, float]] = ("linear", {"weight": 1.0})
_TIES: tuple[str, dict[str, float]] = ("ties", {"weight": 1.0, "density": 0.2})


@dataclass(frozen=True)
class FusedTask:
    """Test accuracy of a task, its own head on one body for all; 0 to 1.

    Attributes:
        task: its name.
        average, ties: of merges without data.
        fitted: of the files of the fitted one.
    """

    task: str
    average: float
    ties: float
    fitted: float


@dataclass(frozen=True)
class Fused:
    """All tasks in one model.

    Attributes:
        num_bytes: of its weights and of the heads, on disk.
        steps, seconds: of the fit. rate: see ``paring.fusion.fitting.Fitted``.
        distance: to the fine-tunes on the calibration images, before and after.
    """

    num_bytes: int
    steps: int
    seconds: float
    rate: float
    distance: tuple[float, float]
    results: tuple[FusedTask, ...]


def fused(model: nn.Module, shifts: Sequence[Shift], out: Path, deltas: Path, steps: int, seed: int) -> Fused:
    """Fuses the full fine-tunes, writes the folder ``out / FOLDER``, scores what lies there; the model is bitwise as before.

    Args:
        model: the base. shifts: at least two tasks. deltas: the folder of the fine-tunes' files.
        steps, seed: of the fit.
    """
    tasks = {shift.name: _task(model, shift, deltas) for shift in shifts}
    average, ties = (_scored(_merging(tasks, *how)[0], shifts) for how in (_AVERAGE, _TIES))
    (merging, settings), begun = _merging(tasks, *_AVERAGE), time.perf_counter()
    lessons = {shift.name: _lesson(shift) for shift in shifts}
    found = fit(merging, settings, lessons, Fit(steps=steps, rate=RATE, seed=seed))
    seconds = time.perf_counter() - begun
    with merging:
        merging.to()
        merging.put(found.values, found.heads)
        num_bytes = _write(model, merging, out / FOLDER)
    fitted = _from_files(shifts, out / FOLDER)
    results = zip((shift.name for shift in shifts), average, ties, fitted, strict=True)
    return Fused(num_bytes, steps, seconds, found.rate, found.distance, tuple(FusedTask(*one) for one in results))


def refuse_foreign(folder: Path) -> None:
    """That the folder, which is replaced, holds nothing but what a demo wrote. FileExistsError: it holds other files."""
    refuse_others(folder, _OURS)
    refuse_others(folder / HEADS, _HEADS)


def _task(model: nn.Module, shift: Shift, deltas: Path) -> Task:
    """A model on the body of ``model``, with a head of its own, and the task's fine-tune."""
    body = model.get_submodule(str(model.base_model_prefix))
    own = copy.deepcopy(model, {id(body): body})
    vector = load_delta(deltas / f"{shift.name}-full.delta.safetensors", base=model).in_memory()
    return Task(own, with_own_head(vector, own))


def _merging(tasks: Mapping[str, Task], method: str, parameters: Mapping[str, Any]) -> tuple[Merging, Settings]:
    how = METHODS[method]
    settings = same_for_all(how.resolve(parameters, [{} for _ in tasks]))
    return Merging([task.model for task in tasks.values()], hold(tasks), how, settings), settings


def _scored(merging: Merging, shifts: Sequence[Shift]) -> list[float]:
    with merging:
        merging.to()
        return [_accuracy(model, shift) for model, shift in zip(merging.models, shifts, strict=True)]


def _lesson(shift: Shift) -> Lesson:
    """The calibration images without their labels."""
    return Lesson([{"pixel_values": images} for images in shift(load_splits()["calibration"]).images.split(_ROWS)])


def _write(model: Any, merging: Merging, folder: Path) -> int:
    """The merge that is on the models, as files; a demo's old folder is replaced. Returns the bytes of weights and heads."""
    refuse_foreign(folder)
    with replacing_folder(folder, overwrite=True) as temporary, quiet():
        model.save_pretrained(temporary)
        for task, own in zip(merging.parts.tasks, merging.models, strict=True):
            facts = {"task": task, "method": "head of a merge"}
            save_delta(diff(model, own), temporary / HEADS / f"{task}.delta.safetensors", facts)
        return sum(path.stat().st_size for path in temporary.rglob("*.safetensors"))


def _from_files(shifts: Sequence[Shift], folder: Path) -> list[float]:
    """Of all tasks, from the checkpoint and each one's head."""
    found = []
    with quiet():
        whole = require("transformers", "the digits task").ViTForImageClassification.from_pretrained(folder).eval()
    for shift in shifts:
        with load_delta(folder / HEADS / f"{shift.name}.delta.safetensors", base=whole).apply(whole):
            found.append(_accuracy(whole, shift))
    return found


def _accuracy(model: nn.Module, shift: Shift) -> float:
    test = shift(load_splits()["test"])
    return accuracy(model, test.images, test.labels)
