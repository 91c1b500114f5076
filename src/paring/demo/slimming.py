"""What is left of a full fine-tune at one entry in a hundred: fitted on the calibration images, and for comparison not."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from paring.delta.files import load_delta, save_delta
from paring.delta.taskvector import TaskVector
from paring.slim.fitted import prune_fitted
from paring.slim.lesson import Lesson
from paring.slim.pruners import prune
from paring.slim.refit import Refit
from paring.tasks.digits import Shift, accuracy, load_splits

KEEP = 0.01
VALUES = "int4"
_ROWS = 32  # in a batch


@dataclass(frozen=True)
class Slim:
    """One slim delta.

    Attributes:
        task: its name. delta: that of the file.
        num_bytes: the file's; of_bytes: that of the delta it was made of.
        test_accuracy: of base + what the file gives back, 0 to 1.
        magnitude_accuracy: of as many entries of largest magnitude, rescaled: no data, no refit.
    """

    task: str
    delta: str
    num_bytes: int
    of_bytes: int
    test_accuracy: float
    magnitude_accuracy: float


def slimmed(model: nn.Module, shift: Shift, delta: Path, out: Path, steps: int) -> Slim:
    """Makes the delta small, and scores it from its file; the model is bitwise as before.

    Args:
        model: the base. delta: a file on it. out: the folder of the new one, which has the task's name.
        steps: of the refit.
    """
    images = shift(load_splits()["calibration"]).images
    vector = load_delta(delta, base=model).in_memory()
    lesson = Lesson([{"pixel_values": images[i : i + _ROWS]} for i in range(0, len(images), _ROWS)])
    small = prune_fitted(vector, model, lesson, KEEP, Refit(steps=steps, values=VALUES))
    name = f"{shift.name}-slim"
    path = out / f"{name}.delta.safetensors"
    size = save_delta(small, path, values=VALUES, overwrite=True)
    return Slim(
        task=shift.name,
        delta=name,
        num_bytes=size,
        of_bytes=delta.stat().st_size,
        test_accuracy=_accuracy(model, load_delta(path, base=model), shift),
        magnitude_accuracy=_accuracy(model, prune(vector, "rescaled", KEEP), shift),
    )


def _accuracy(model: nn.Module, vector: TaskVector, shift: Shift) -> float:
    test = shift(load_splits()["test"])
    with vector.apply(model):
        return accuracy(model, test.images, test.labels)
