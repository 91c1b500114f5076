"""Parts of the demo on the one model, one after the other or several at a time, each in a process of its own."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

from torch import Tensor, nn

from paring.tasks.digits import one_thread
from paring.tasks.digits.cache import digest
from paring.tasks.digits.vit import new_model

Job = Callable[[nn.Module], Any]


def each(jobs: Sequence[Job], model: nn.Module, workers: int) -> Iterator[tuple[Any, bool]]:
    """What each job makes of the model, in their order, on one thread; the same with any number of workers.

    Args:
        jobs: leave the model as it was; with more than one worker they are picklable.

    Returns:
        Pairs: what the job gave, and whether the model's weights were bitwise the same afterwards.
    """
    if workers == 1:
        for job in jobs:
            yield _checked(model, job)
        return
    weights = dict(model.state_dict())
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(partial(_in_worker, weights), jobs)


def _in_worker(weights: dict[str, Tensor], job: Job) -> tuple[Any, bool]:
    model = new_model(0).eval()
    model.load_state_dict(weights)
    return _checked(model, job)


def _checked(model: nn.Module, job: Job) -> tuple[Any, bool]:
    before = digest(model.state_dict())
    with one_thread():
        found = job(model)
    return found, digest(model.state_dict()) == before
