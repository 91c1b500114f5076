"""One task of the demo: tuned every way, what each has learnt written as a delta, and the full fine-tune made slim."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from paring.delta.files import save_delta
from paring.demo.methods import METHODS, Method
from paring.demo.slimming import Slim, slimmed
from paring.tasks.digits import Shift, accuracy, fit, load_splits


@dataclass(frozen=True)
class Result:
    """One way to tune on one task.

    Attributes:
        task, method: names.
        test_accuracy: after training, 0 to 1.
        curve: (optimizer steps taken, validation accuracy).
        num_trainable: entries trained at any one time.
        delta: name of the file with what was learnt. kept_bytes: its size, which is what must be stored beside the base.
        seconds: of training, without scoring.
    """

    task: str
    method: str
    test_accuracy: float
    curve: tuple[tuple[int, float], ...]
    num_trainable: int
    delta: str
    kept_bytes: int
    seconds: float


@dataclass(frozen=True)
class TaskResults:
    """All ways on one task, and the full fine-tune made slim."""

    untuned_accuracy: float
    results: tuple[Result, ...]
    slim: Slim


def on_task(model: nn.Module, shift: Shift, deltas: Path, steps: int, seed: int) -> TaskResults:
    """The results of one task; what each run learns is written into the folder ``deltas``. The model is bitwise as before."""
    untuned = score(model, shift)
    results = tuple(_tune(model, shift, method, steps, seed, deltas) for method in METHODS.values())
    full = deltas / f"{shift.name}-full.delta.safetensors"
    return TaskResults(untuned, results, slimmed(model, shift, full, deltas, steps))


def _tune(model: nn.Module, shift: Shift, method: Method, steps: int, seed: int, deltas: Path) -> Result:
    """Tunes the model one way on one task, scores it, writes what it learnt, and puts it back."""
    splits = load_splits()
    train, validation = shift(splits["train"]), shift(splits["validation"])
    with method.prepare(model) as tuning:
        history = fit(
            model,
            tuning.parameters,
            train,
            steps=steps,
            rate=method.rate,
            seed=seed,
            after_step=tuning.after_step,
            watch=lambda: accuracy(model, validation.images, validation.labels),
        )
        name = f"{shift.name}-{method.name}"
        facts = {"task": shift.summary, "method": method.label, "steps": steps, "seed": seed}
        size = save_delta(tuning.learnt(), deltas / f"{name}.delta.safetensors", facts)
        return Result(
            task=shift.name,
            method=method.name,
            test_accuracy=score(model, shift),
            curve=history.curve,
            num_trainable=tuning.num_trainable,
            delta=name,
            kept_bytes=size,
            seconds=history.seconds,
        )


def score(model: nn.Module, shift: Shift) -> float:
    """Accuracy on the test images of a task, 0 to 1."""
    test = shift(load_splits()["test"])
    return accuracy(model, test.images, test.labels)
