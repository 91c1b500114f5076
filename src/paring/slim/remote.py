"""Candidates scored by Ray workers, each with a model of its own: the pool travels to them once, coefficients every time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from paring.delta.base import Base
from paring.delta.change import Change, Kind
from paring.delta.taskvector import Lazy, TaskVector, ready
from paring.search.executors import Objective as OfCoefficients
from paring.search.ray_executor import RayExecutor
from paring.slim.placing import Placing
from paring.slim.pool import Pool
from paring.slim.scoring import Objective, scorer

Make = Callable[[], tuple[nn.Module, Objective]]


@dataclass(frozen=True)
class Workers:
    """Who scores candidates; see ``RayExecutor`` for what is not said here.

    Attributes:
        make: called once in each worker; gives the base, as a model of the worker's own, and the objective. Picklable.
        num: of workers, at least 1.
    """

    make: Make
    num: int
    address: str | None = None
    threads: int = 1
    gpus_per_worker: float = 0

    def executor(self, vector: TaskVector, pool: Pool, scale: float) -> RayExecutor:
        """Of candidates given as x = w / scale.

        Raises:
            ImportError: Ray is not installed.
        """
        return RayExecutor(
            _Factory.of(self.make, vector, pool, scale),
            self.num,
            self.address,
            threads=self.threads,
            gpus_per_worker=self.gpus_per_worker,
        )


@dataclass(frozen=True)
class _Factory:
    """What a worker is made of, without the task vector's own numbers: those that may be kept are in the pool."""

    make: Make
    pool: Pool
    scale: float
    base: Base
    extents: dict[str, tuple[torch.Size, torch.dtype, Kind]]
    new: dict[str, Change] = field(default_factory=dict)

    @staticmethod
    def of(make: Make, vector: TaskVector, pool: Pool, scale: float) -> "_Factory":
        extents = {name: (lazy.shape, lazy.dtype, lazy.kind) for name, lazy in vector.changes.items()}
        new = {name: vector.change(name) for name in vector.new}
        plain = {name: Change(c.shape, c.dtype, c.kind, c.places, c.values) for name, c in new.items()}
        return _Factory(make, pool, scale, vector.base, extents, plain)

    def __call__(self) -> OfCoefficients:
        model, objective = self.make()
        changes = {name: _known(name, *extent) for name, extent in self.extents.items()}
        changes |= {name: ready(change) for name, change in self.new.items()}
        placing = Placing(model, TaskVector(changes, self.base))
        placing.__enter__()  # for good: the model is this worker's alone
        return scorer(placing, self.pool, self.scale, objective)


def _known(name: str, shape: torch.Size, dtype: torch.dtype, kind: Kind) -> Lazy:
    def load() -> Any:
        raise AssertionError(f"'{name}' is read where its extent alone is known")

    return Lazy(shape, dtype, kind, load)
