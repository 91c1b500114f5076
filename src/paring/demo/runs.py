"""The runs of the demo, one task after the other or several at a time, each in a process of its own."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from torch import Tensor, nn

from paring.delta.files import save_delta
from paring.demo.methods import METHODS, Method
from paring.demo.slimming import Slim, slimmed
from paring.tasks.digits import Shift, accuracy, fit, load_splits, named_shifts, one_thread
from paring.tasks.digits.cache import digest
from paring.tasks.digits.vit import new_model


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
    """All ways on one task, and the full fine-tune made slim; whether the model's weights were bitwise the same afterwards."""

    untuned_accuracy: float
    results: tuple[Result, ...]
    slim: Slim
    intact: bool


def tune_all(
    model: nn.Module, shifts: Sequence[Shift], steps: int, seed: int, workers: int, deltas: Path
) -> Iterator[TaskResults]:
    """The results task by task, in the order of ``shifts``; the same with any number of workers.

    What each run has learnt is written into the folder ``deltas``.
    """
    if workers == 1:
        for shift in shifts:
            yield _on_task(model, shift, steps, seed, deltas)
        return
    weights = dict(model.state_dict())
    with ProcessPoolExecutor(min(workers, len(shifts)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_in_worker, *zip(*((weights, s.name, steps, seed, deltas) for s in shifts), strict=True))


def _in_worker(weights: dict[str, Tensor], task: str, steps: int, seed: int, deltas: Path) -> TaskResults:
    model = new_model(seed).eval()
    model.load_state_dict(weights)
    return _on_task(model, named_shifts([task])[0], steps, seed, deltas)


def _on_task(model: nn.Module, shift: Shift, steps: int, seed: int, deltas: Path) -> TaskResults:
    base = digest(model.state_dict())
    with one_thread():
        untuned = score(model, shift)
        results = tuple(_tune(model, shift, method, steps, seed, deltas) for method in METHODS.values())
        full = deltas / f"{shift.name}-full.delta.safetensors"
        slim = slimmed(model, shift, full, deltas, steps)
    return TaskResults(untuned, results, slim, digest(model.state_dict()) == base)


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
