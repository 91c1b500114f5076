"""Several workers, on this machine or a cluster, try the same candidates: Ray actors, each with an objective of its own.

Every worker has one candidate at a time and gets the next one when it is done. A worker that dies (killed, out of memory, its
machine gone) is replaced, and its candidate tried again. As a score depends on the coefficients alone, it does not matter who
worked it out: the search is that of one process with the same number of threads.
"""

import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from paring.search.executors import Objective, Outcome, timed
from paring.search.settings import SearchError, Vector

_STARTING = {  # for what Ray starts here, unless the caller's environment says otherwise
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns that it will stop hiding GPUs from workers that take none
}


class RayExecutor:
    """See the module's text. A context manager: on leaving, its workers end, and the cluster if it was started here.

    Args:
        make_objective: called once in each worker; picklable, with what it needs (paths rather than models). Modules are
            looked for where this process finds them.
        num_workers: >= 1.
        address: of a cluster (``auto``, ``ray://…``). None: the one this process is connected to, else the one that
            ``$RAY_ADDRESS`` names, else one of ``num_workers`` CPUs, started here at the first evaluation.
        threads: that torch uses in each worker, >= 1, and CPUs that it takes of a cluster; scores in one process are
            the same floats if torch has as many threads there.
        gpus_per_worker: GPUs (or a part of one) that each worker takes.
        max_retries: times that one candidate is tried again after its worker died, >= 0.

    Raises:
        ImportError: Ray is not installed.
    """

    def __init__(
        self,
        make_objective: Callable[[], Objective],
        num_workers: int,
        address: str | None = None,
        *,
        threads: int = 1,
        gpus_per_worker: float = 0,
        max_retries: int = 3,
    ) -> None:
        for name, value, least in (("num_workers", num_workers, 1), ("threads", threads, 1), ("max_retries", max_retries, 0)):
            if value < least:
                raise ValueError(f"`{name}` is {value}, expected {least} or more")
        try:
            import ray
        except ImportError as error:
            raise ImportError("RayExecutor needs Ray: pip install 'paring[ray]'") from error
        self._ray: Any = ray
        self._factory: bytes = ray.cloudpickle.dumps(make_objective)
        self._num_workers = num_workers
        self._address = address
        self._threads = threads
        self._gpus = gpus_per_worker
        self._max_retries = max_retries
        self._started = False  # Ray, by us
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, int]] = {}  # by the reference to the outcome: the worker, the candidate's place

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def evaluate(self, batch: Sequence[Vector]) -> Iterator[tuple[int, Outcome]]:
        """See ``Executor``. What an objective raises comes through.

        Raises:
            SearchError: a candidate's workers died too often, or the cluster is too small.
        """
        self._connect()
        for worker, _ in self._busy.values():  # amid a batch that was left half way
            self._ray.kill(worker)
        self._busy.clear()
        waiting = list(range(len(batch)))[::-1]
        died = [0] * len(batch)
        while waiting or self._busy:
            while waiting and len(self._busy) < self._num_workers:
                worker = self._idle.pop() if self._idle else self._new_worker()
                place = waiting.pop()
                self._busy[worker.evaluate.remote(batch[place])] = worker, place
            done, _ = self._ray.wait(list(self._busy), num_returns=1)
            worker, place = self._busy.pop(done[0])
            try:
                outcome = self._ray.get(done[0])
            except self._ray.exceptions.RayTaskError as error:  # the objective's own exception; its worker is well
                self._idle.append(worker)
                if isinstance(error.cause, Exception):
                    raise error.cause from error
                raise
            except (self._ray.exceptions.RayActorError, self._ray.exceptions.WorkerCrashedError) as error:
                died[place] += 1
                if died[place] > self._max_retries:
                    raise SearchError(
                        f"{died[place]} workers died over the coefficients {batch[place]}; expected one to last: look for what "
                        f"ends it (memory?), take fewer workers, or raise max_retries={self._max_retries}. The last: {error}"
                    ) from error
                waiting.append(place)
            else:
                self._idle.append(worker)
                yield place, outcome

    def close(self) -> None:
        """Ends the workers, and Ray if it was started here; a later evaluation starts them anew."""
        self._end_workers()
        if self._started:
            self._started = False
            self._ray.shutdown()

    def _end_workers(self) -> None:
        """Ends the workers alone."""
        if self._ray.is_initialized():
            for worker in [*self._idle, *(worker for worker, _ in self._busy.values())]:
                self._ray.kill(worker)
        self._idle.clear()
        self._busy.clear()

    def _connect(self) -> None:
        if not self._ray.is_initialized():
            address = self._address or os.environ.get("RAY_ADDRESS") or "local"
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
            if address == "local":
                quiet |= {"num_cpus": self._num_workers * self._threads, "include_dashboard": False}
            with _environment(_STARTING):
                self._ray.init(address, **quiet)
            self._started = True
        for name, needed in (("CPU", self._num_workers * self._threads), ("GPU", self._num_workers * self._gpus)):
            there = self._ray.cluster_resources().get(name, 0)
            if there < needed:
                raise SearchError(
                    f"{self._num_workers} workers take {needed:g} {name}s, the cluster has {there:g}; take fewer or start more"
                )

    def _new_worker(self) -> Any:
        remote = self._ray.remote(num_cpus=self._threads, num_gpus=self._gpus, max_restarts=0, max_task_retries=0)
        return remote(_Worker).remote(self._factory, self._threads, sys.path)


class _Worker:
    """In a process of its own."""

    def __init__(self, factory: bytes, threads: int, path: list[str]) -> None:
        import torch

        torch.set_num_threads(threads)
        sys.path.extend(entry for entry in path if entry not in sys.path)
        self._factory = factory
        self._objective: Objective | None = None

    def evaluate(self, vector: Vector) -> Outcome:
        if self._objective is None:  # here, not on starting, so that what it raises is told from a death
            self._objective = pickle.loads(self._factory)()  # with cloudpickle in it, where that was needed
        return timed(self._objective, vector)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Sets variables that are not set, and takes them away again."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
