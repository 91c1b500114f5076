"""A merge that keeps a model for each task, written as a bank: one shared vector, and a mask and a scale for each task (emr).

    shared/                  tau, a delta of the base
    NAME.mask.safetensors    a task: theta_pre + scale * mask * tau, and its own tensors (``paring.bank.masked``)
    paring-fuse.yml, paring-fuse.json, README.md    as beside a merged checkpoint (``record``)

Inputs are read once: ``save_delta`` asks for tau tensor by tensor; the masks that fall out on the way wait in a temporary file,
since what stands before them in theirs, the scale, is known when all are there. The folder is there whole or not at all, and a
run that is stopped begins anew.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from paring.bank.masked import SHARED, SUFFIX, PackedMask, shared_id, write_masked
from paring.delta.base import base_of
from paring.delta.change import SCATTERED_BELOW, Change, wide
from paring.delta.checkpoint.fingerprint import tensor_hash
from paring.delta.checkpoint.tensorinfo import TensorInfo
from paring.delta.checkpoint.write import refuse_no_room
from paring.delta.codec.compression import pack
from paring.delta.errors import DeltaError
from paring.delta.files import save_delta
from paring.delta.places import Everywhere, Scattered
from paring.delta.sources import public_name
from paring.delta.taskvector import Lazy, TaskVector
from paring.files import replacing_folder
from paring.fuse import emr
from paring.fuse.agree import Catalogue, extra_of
from paring.fuse.config import Config, Reference
from paring.fuse.inputs import FuseError
from paring.fuse.models import Weights, model_config
from paring.fuse.output import refuse_present
from paring.fuse.plan import Job, Origin, Plan
from paring.fuse.record import CARD, CONFIG, RECORD, bank_files
from paring.fuse.runner import Runner

_VALUES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
PAGE = "report.html"  # what ``paring report`` puts there: made from the rest, and again at any time
_ENDINGS = (".mask.safetensors", ".delta.safetensors", ".safetensors", ".delta", ".pt", ".bin")


def task_names(config: Config) -> dict[Reference, str]:
    """What each model's task is called in the bank: the model's name without where it lies.

    Raises:
        ConfigError: two have one name.
    """
    found: dict[Reference, str] = {}
    for source in config.slices[0].sources:
        if source.model == config.base:
            continue
        where = Path(source.model.adapter or source.model.model)
        name = _bare(where.name)
        name = _bare(where.absolute().parent.name) if name == "model" else public_name(name)
        if other := next((r for r, n in found.items() if n == name), None):
            raise config.error_at(
                source.line, f"{source.model} and {other} would both be the task {name!r} of the bank; rename one of them"
            )
        found[source.model] = name
    return found


def expected(plan: Plan) -> tuple[tuple[str, ...], int, int]:
    """Files, the most bytes that these have, and the memory that it takes to write them."""
    names = task_names(plan.config)
    merged = [job for job in plan.jobs if job.settings and not job.settings.parameters["own"]]
    entries = sum(job.info.shape.numel() for job in merged)
    own = sum(job.info.nbytes for job in plan.jobs if job.settings) - sum(job.info.nbytes for job in merged)
    num_bytes = entries * _dtype(plan).itemsize + len(names) * (own + entries // 8 + len(merged))
    num_bytes += sum(plan.models[o.model].infos[o.name].nbytes for r in names for o in _extra(plan, r).values())
    largest = max((job.info.shape.numel() for job in merged), default=0)
    held = 12 * min(entries, 2 * largest + (32 << 20))  # fp32, its byte planes, and these compressed; see save_delta
    return (SHARED, *(f"{name}{SUFFIX}" for name in names.values())), num_bytes, held


def write_bank(plan: Plan, runner: Runner, out: Path, *, shard_bytes: int, threads: int, overwrite: bool) -> tuple[Path, ...]:
    """Writes the bank of a plan to the new folder ``out``; returns its files.

    Raises:
        DeltaError, FuseError: what is wrong with a model, by file and tensor. FileExistsError, OSError: as ``engine.fuse``.
        Nothing is there then that was not before.
    """
    config, names, base = plan.config, task_names(plan.config), plan.models[plan.main]
    assert isinstance(base, Weights)
    refuse_present_bank(out, overwrite)
    refuse_no_room(out.resolve(), expected(plan)[1])
    dtype = _dtype(plan)
    with replacing_folder(out, overwrite) as folder, ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
        elected = _Elected(plan, runner, dtype, len(names), file)
        changes = {job.name: elected.lazy(job) for job in plan.jobs if job.settings and not job.settings.parameters["own"]}
        for job in plan.jobs:
            if job.settings is None:
                runner.merged(job)  # integer buffers: all agree, and stay the base's
        vector = TaskVector(changes, base_of(base.source, origin=base.source.origin))
        facts = {"method": config.method.name, "paper": config.method.paper, "tasks": sorted(names.values())}
        save_delta(vector, folder / SHARED, facts, values=_VALUES[dtype], shard_bytes=shard_bytes, threads=threads)
        known = shared_id(folder / SHARED)
        tasks: dict[str, dict[str, Any]] = {}
        for i, (reference, name) in enumerate(names.items()):
            scale = emr.scale([elected.parts[job][i] for job in changes if job in elected.parts])
            masks = {job: elected.masks[job][i] for job in changes if job in elected.masks}
            own = _own(plan, runner, reference, i)
            about = facts | {"config": found} if (found := model_config(plan.models[reference])) else facts
            size = write_masked(folder / f"{name}{SUFFIX}", known, scale, masks, own, about)
            tasks[name] = {"scale": scale, "bytes": size, "own": sorted(own)}
        runner.hash_rest()
        for path, content in bank_files(plan, runner.hashes, known, tasks).items():
            (folder / path).write_bytes(content)
        written = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
        runner.refuse_changed()
    return tuple(out / path for path in written)


def refuse_present_bank(out: Path, overwrite: bool) -> None:
    """As ``refuse_present``; but a bank may be overwritten, too."""
    if overwrite and (out / RECORD).is_file() and (out / SHARED).is_dir():
        inner = [p.name for p in out.iterdir()]
        if all(n in (SHARED, RECORD, CONFIG, CARD, PAGE) or n.endswith(SUFFIX) for n in inner):
            return
    refuse_present(out.resolve(), overwrite)


class _Elected:
    """tau of every tensor, made when it is asked for; and what falls out for the tasks.

    Attributes, by tensor name, of each task: ``parts``: (sum |tau_i|, sum m_i |tau|); ``masks``: what is stored of m_i.
    """

    def __init__(self, plan: Plan, runner: Runner, dtype: torch.dtype, num_tasks: int, file: BinaryIO) -> None:
        self._plan, self._runner, self._dtype, self._file = plan, runner, dtype, file
        self._lock = Lock()
        self.parts: dict[str, list[emr.Part]] = {}
        self.masks: dict[str, list[PackedMask]] = {}

    def lazy(self, job: Job) -> Lazy:
        return Lazy(job.info.shape, self._base_dtype(job), "real", partial(self._made, job))

    def _base_dtype(self, job: Job) -> torch.dtype:
        assert job.base
        return self._plan.models[job.base.model].infos[job.base.name].dtype

    def _made(self, job: Job) -> Change:
        try:
            tau, parts = emr.parts(self._runner.inputs(job), self._dtype)
        except FuseError as error:
            raise self._runner.located(job, error) from error
        flat = tau.view(-1)
        if bad := not_finite(flat):
            raise self._runner.located(job, FuseError(f"the shared vector is {bad} in {self._dtype}; take dtype: float32"))
        numel, nonzero = flat.numel(), int(torch.count_nonzero(flat))
        few = 0 < nonzero < SCATTERED_BELOW * numel
        inside = flat.nonzero().view(-1) if few else None
        if nonzero:
            masks = [self._kept(part, numel, inside) for part in parts]
            with self._lock:
                self.masks[job.name] = masks
        with self._lock:
            empty = torch.empty(0, dtype=torch.uint8)
            self.parts[job.name] = [emr.Part(empty, part.own, part.shared) for part in parts]
        self._runner.finished(job)
        places = Everywhere(numel) if inside is None else Scattered(inside)
        values = (flat if inside is None else flat[inside]).to(wide(self._base_dtype(job)))
        return Change(job.info.shape, self._base_dtype(job), "real", places, values)

    def _kept(self, part: emr.Part, numel: int, inside: Tensor | None) -> PackedMask:
        """A mask coded, over the values that are stored, and put into the file."""
        bits = part.bits.numpy()
        if inside is not None:
            chosen = np.unpackbits(bits, count=numel, bitorder="little")[inside.numpy()]
            bits = np.packbits(chosen, bitorder="little")
        stored, used = pack(bits)
        tensor = torch.from_numpy(stored.copy())
        with self._lock:
            start = self._file.seek(0, os.SEEK_END)
            self._file.write(stored.tobytes())
            self._file.flush()
        return PackedMask(TensorInfo(torch.uint8, tensor.shape), used, tensor_hash([tensor]), self._reader(start, stored.size))

    def _reader(self, start: int, size: int) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with self._lock:
                self._file.seek(start)
                return torch.frombuffer(bytearray(self._file.read(size)), dtype=torch.uint8)

        return read


def not_finite(flat: Tensor) -> float | None:
    """A value that is NaN or infinite, if there is one."""
    bad = flat[~flat.isfinite()]
    return float(bad[0]) if bad.numel() else None


def _own(plan: Plan, runner: Runner, reference: Reference, i: int) -> Mapping[str, Tensor]:
    """The tensors that are a task's alone: those that the base lacks, and those of which the configuration says so."""
    found: dict[str, Tensor] = {}
    origins = {name: (origin, None) for name, origin in _extra(plan, reference).items()}
    for job in plan.jobs:
        if job.settings and job.settings.parameters["own"]:
            assert job.base
            origins[job.name] = job.sources[i], plan.models[job.base.model].infos[job.base.name].dtype  # type: ignore[assignment]
    for name, (origin, dtype) in origins.items():
        tensor = runner.weights(origin)
        tensor = (tensor if dtype is None else tensor.to(dtype)).contiguous()
        if tensor.is_floating_point() and (bad := not_finite(tensor.reshape(-1).float())):
            raise DeltaError(f"{plan.models[reference].called}: tensor '{origin.name}' holds {bad}; expected finite numbers")
        found[name] = tensor
    return found


def _extra(plan: Plan, reference: Reference) -> dict[str, Origin]:
    """The tensors of a model that the base lacks, by the base's way to name them."""
    main = plan.models[plan.main]
    catalogue, there = Catalogue(plan.models[reference], main), Catalogue(main, main)
    return {name: Origin(reference, catalogue.extra[name]) for name in extra_of(catalogue, there)}


def _dtype(plan: Plan) -> torch.dtype:
    """That tau is stored in: the one asked for, else that of most of the base's entries; fp32 at most, as arithmetic is."""
    asked = plan.config.out_dtype or plan.config.dtype
    sizes: Counter[torch.dtype] = Counter()
    for job in plan.jobs:
        if job.settings:
            sizes[job.info.dtype] += job.info.shape.numel()
    found = asked or max(sizes, key=lambda dtype: (sizes[dtype], str(dtype)), default=torch.float32)
    return found if found in _VALUES else torch.float32


def _bare(name: str) -> str:
    """A file's or folder's name without its ending and revision."""
    name = name.partition("@")[0]
    return next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)
