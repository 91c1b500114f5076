"""Runs the jobs of a merge's plan, several at a time.

Each thread takes the largest tensor that is left, reads its inputs where they lie (in the page cache, through a mapping: no
copy of an input is held), and writes the merged one. One thread of PyTorch's works on a tensor, whatever their number, so the
output's bytes do not depend on it. What a tensor takes in memory (its output, what is made of a delta) is known beforehand,
and no tensor is begun for which there is no room; the largest always has it.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from threading import Event, Lock
from types import MappingProxyType

import torch
from torch import Tensor

from paring.delta.checkpoint.fingerprint import remember, remembered, tensor_hash
from paring.delta.errors import DeltaError
from paring.fuse.config import Reference
from paring.fuse.inputs import PIECE, Cuts, FuseError, Inputs
from paring.fuse.models import Read
from paring.fuse.output import Output
from paring.fuse.plan import Job, Origin, Plan
from paring.fuse.room import Room
from paring.fuse.scope import global_cuts
from paring.fuse.tokens import Vocabulary

Report = Callable[[int, int], None]


def num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread_each() -> Iterator[None]:
    """PyTorch computes in the thread that asks; afterwards as it did before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Runner:
    """Does the jobs of a plan.

    Attributes:
        hashes: of the inputs' tensors, by model and name; filled while running.
    """

    def __init__(
        self,
        plan: Plan,
        vocabulary: Vocabulary | None,
        device: torch.device,
        report: Report,
        fitted: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        self._fitted = _checked(fitted, plan)
        self.plan, self.device, self._vocabulary, self._report = plan, device, vocabulary, report
        self._cuts: Mapping[str, Cuts] = {}
        self.hashes: dict[Reference, dict[str, str]] = {}
        self._before = {r: m.checkpoint.state() for r, m in plan.models.items() if m.checkpoint}
        for reference, model in plan.models.items():
            if model.checkpoint:
                self.hashes[reference] = dict(remembered(model.checkpoint) or {})
        self._done, self._lock, self._stop = 0, Lock(), Event()
        self._total = plan.input_bytes + plan.output_bytes

    def run(self, output: Output, threads: int) -> None:
        """Writes every tensor that is not there yet, and hashes every tensor of the inputs."""
        jobs = sorted(self.plan.jobs, key=lambda job: -job.info.nbytes)
        todo = [job for job in jobs if not {job.name, *job.aliases} <= output.kept.keys()]
        room = Room(self.room_bytes(threads))
        used = {(o.model, o.name) for job in todo for o in job.origins}
        with ThreadPoolExecutor(threads) as pool:
            if self.plan.config.scope == "global":
                self._cuts = self._global_cuts(pool, room)
            self._count(sum(self._bytes(job) for job in jobs) - sum(self._bytes(job) for job in todo))
            futures = [pool.submit(self._one, job, output, room) for job in todo]
            for reference, hashes in self.hashes.items():
                left = [n for n in self.plan.models[reference].infos if n not in hashes and (reference, n) not in used]
                futures += [pool.submit(self._hash, reference, name) for name in left]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._stop.set()
                for future in futures:
                    future.cancel()
                raise

    def _global_cuts(self, pool: ThreadPoolExecutor, room: Room) -> Mapping[str, Cuts]:
        """Where thresholds over all tensors fall: a first reading of all."""
        merged = {job.name: job for job in self.plan.jobs if job.settings}

        def holding(name: str, model: int | None) -> AbstractContextManager[None]:
            job = merged[name]
            beside = (job.base,) if job.base else ()
            return room.of(self._read_bytes(job, job.origins if model is None else (job.sources[model], *beside)))

        try:
            return global_cuts(
                self.plan.config.method,
                list(merged),
                lambda name: self.inputs(merged[name]),
                pool.map,
                load_some=lambda name, models: self.inputs(merged[name], models),
                holding=holding,
            )
        except FuseError as error:
            for job in merged.values():
                if isinstance(located := self.located(job, error), DeltaError):
                    raise located from error
            raise self.plan.config.error("scope", str(error)) from error

    def room_bytes(self, threads: int) -> int:
        """The memory that threads share: of two outputs of the largest tensor, enough for any; where the method works on whole
        matrices, for one of them each."""
        jobs = self.plan.jobs
        work = sorted(map(self.work_bytes, jobs), reverse=True)
        most = max([0, *(2 * job.info.nbytes for job in jobs), *(self.held_bytes(job) - self.work_bytes(job) for job in jobs)])
        return most + sum(work[:threads])

    def work_bytes(self, job: Job) -> int:
        """What the method itself takes of this machine's memory, beside the output."""
        if job.settings is None or self.device.type != "cpu":
            return 0
        return self.plan.config.method.work_bytes(job.info.shape, job.settings.parameters, job.settings.per_model)

    def held_bytes(self, job: Job) -> int:
        """The most memory that a tensor takes, beside the page cache and what does not grow with it."""
        return self.work_bytes(job) + job.info.nbytes + self._read_bytes(job, job.origins)

    def _read_bytes(self, job: Job, origins: Sequence[Origin]) -> int:
        """What reading a tensor of these models takes; all are read where vocabularies are aligned."""
        if self._vocabulary and job.vocabulary:
            aligned, origins = self._vocabulary.held_bytes(job), job.origins
        else:
            aligned = 0
        return aligned + sum(self.plan.models[o.model].held_bytes(o.name) for o in origins)

    def _bytes(self, job: Job) -> int:
        models = self.plan.models
        return job.info.nbytes * (1 + len(job.aliases)) + sum(models[o.model].infos[o.name].nbytes for o in job.origins)

    def _one(self, job: Job, output: Output, room: Room) -> None:
        if self._stop.is_set():
            return
        with room.of(self.held_bytes(job)):
            merged = self.merged(job)
            for name in (job.name, *job.aliases):
                output.write(name, merged)
        self.finished(job)

    def finished(self, job: Job) -> None:
        """That a job is done: its inputs, just read, are hashed, and its bytes counted."""
        for origin in job.origins:
            if origin.model in self.hashes:
                self._hash(origin.model, origin.name)
        self._count(self._bytes(job))

    def hash_rest(self) -> None:
        """Hashes of what has not been read."""
        for reference in self.hashes:
            for name in self.plan.models[reference].infos:
                self._hash(reference, name)

    def refuse_changed(self) -> None:
        """That the inputs are as they were in the beginning; their hashes, all known now, are remembered.

        Raises:
            DeltaError: one is not.
        """
        for model in self.plan.models.values():
            changed = {row[0] for row in {*model.before} ^ {*model.state()}}
            if changed:
                raise DeltaError(f"{model.called}: {min(changed)} was written to while it was read; fuse again")
        for reference, state in self._before.items():
            checkpoint = self.plan.models[reference].checkpoint
            assert checkpoint
            remember(checkpoint, self.hashes[reference], state)

    def merged(self, job: Job) -> Tensor:
        try:
            if job.settings is None:
                return self._copied(job)
            if (given := self._fitted.get(job.name)) is not None:
                merged = given
            else:
                inputs = self.inputs(job)
                merged = torch.empty(inputs.shape, dtype=job.info.dtype, device=self.device)
                self.plan.config.method(inputs, merged)
                merged = merged.cpu()
            if at := not_finite(merged):
                raise FuseError(f"the merged value is {at[1]} at entry {at[0]:,}, out of the range of {job.info.dtype}")
        except FuseError as error:
            raise self.located(job, error) from error
        return merged

    def inputs(self, job: Job, only: Collection[int] | None = None) -> Inputs:
        """What the method is given; with ``only``, what it reads of the models of these numbers, and nothing of the others."""
        assert job.settings is not None
        base = self.weights(job.base).to(self.device) if job.base else None
        aligning = self._vocabulary if job.vocabulary else None
        models, differences = [], []
        for i, origin in enumerate(job.sources):
            model = self.plan.models[origin.model]
            if only is not None and i not in only and not aligning:
                models.append(torch.zeros(1, device=self.device).expand(model.infos[origin.name].shape))
                differences.append(False)
                continue
            read = model.read(origin.name)
            beside = model.beside(origin.name) if read.difference and job.base else None
            if read.difference and (aligning or beside is None or beside != self._stored(job.base)):
                read = Read(self.weights(origin))
            models.append(read.tensor.to(self.device))
            differences.append(read.difference)
        if aligning:
            models, base = aligning.aligned(job, models, base)
        return Inputs(
            job.name,
            tuple(models),
            base,
            job.settings.parameters,
            job.settings.per_model,
            job.keys,
            tuple(differences),
            self.plan.config.seed,
            self._cuts.get(job.name),
        )

    def weights(self, origin: Origin) -> Tensor:
        """A tensor as weights; of a difference in fp32."""
        model = self.plan.models[origin.model]
        read = model.read(origin.name)
        if not read.difference:
            return read.tensor
        base, name = model.beside(origin.name)
        return read.tensor.add_(base.read(name).tensor)

    def _stored(self, origin: Origin | None) -> tuple[object, str] | None:
        return (self.plan.models[origin.model], origin.name) if origin else None

    def _copied(self, job: Job) -> Tensor:
        """A buffer: of whole numbers the same in all models, of others one model's."""
        first = self.weights(job.sources[0])
        for origin in job.sources[1:]:
            other = self.weights(origin)
            if other.dtype != first.dtype or not torch.equal(other, first):
                called = [self.plan.models[o.model].called for o in (job.sources[0], origin)]
                raise FuseError(
                    f"{first.dtype} values that differ between {called[0]} and {called[1]}: there is no mean of whole numbers; "
                    "make them agree first"
                )
        return first

    def located(self, job: Job, error: FuseError) -> Exception:
        """An error that names the file in which a value is not finite, or else the tensor."""
        for origin in job.origins:
            model = self.plan.models[origin.model]
            found = not_finite(model.read(origin.name).tensor)
            if found:
                where = model.checkpoint.file_of(origin.name) if model.checkpoint else model.called
                return DeltaError(
                    f"{where}: tensor '{origin.name}' holds {found[1]} at entry {found[0]:,}; expected finite numbers: take "
                    "another checkpoint of this model, or leave it out"
                )
        text = str(error)
        return error if f"'{job.name}'" in text else FuseError(f"'{job.name}': {text}")

    def _hash(self, reference: Reference, name: str) -> None:
        hashes, checkpoint = self.hashes[reference], self.plan.models[reference].checkpoint
        if name not in hashes and checkpoint and not self._stop.is_set():
            hashes[name] = tensor_hash([checkpoint.mapped(name)])

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self._done += num_bytes
            self._report(self._done, self._total)


def _checked(fitted: Mapping[str, Tensor], plan: Plan) -> Mapping[str, Tensor]:
    """Tensors that are in the output, as they will be there."""
    jobs = {job.name: job for job in plan.jobs if job.settings is not None and not job.vocabulary}
    for name, tensor in fitted.items():
        if name not in jobs:
            raise ValueError(f"fitted: {name!r} is no merged tensor of the output; expected names of such")
        info = jobs[name].info
        if tensor.dtype != info.dtype or tensor.shape != info.shape:
            raise ValueError(
                f"fitted: {name!r} is {list(tensor.shape)} {tensor.dtype}; the output's is {list(info.shape)} {info.dtype}"
            )
    return fitted


def not_finite(tensor: Tensor) -> tuple[int, float] | None:
    """The first entry that is NaN or infinite, and what it is; None: all are finite."""
    if not tensor.is_floating_point():
        return None
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), PIECE):
        piece = flat[start : start + PIECE].float()
        if not bool(torch.isfinite(piece.sum())):  # NaN or infinity, or a sum too large for fp32
            bad = (~piece.isfinite()).nonzero()
            if len(bad):
                return start + int(bad[0, 0]), float(piece[bad[0, 0]])
    return None
