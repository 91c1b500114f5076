"""What a merge would read, write and take: ``paring fuse --dry-run``.

Time is measured, not known: how long the method takes on random numbers with the settings of the largest tensor, and how fast
the first input is read and hashed now. What the disk takes to write is not in it.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from paring.delta.checkpoint.fingerprint import tensor_hash
from paring.delta.checkpoint.write import refuse_no_room
from paring.fuse.apart import refuse_onto_input
from paring.fuse.as_bank import expected, refuse_present_bank
from paring.fuse.config import Config, read_config
from paring.fuse.device import usable
from paring.fuse.engine import copied_files, laid_out
from paring.fuse.inputs import Inputs
from paring.fuse.output import refuse_no_room_for, refuse_present
from paring.fuse.plan import Job, Plan, make_plan
from paring.fuse.runner import Runner, num_cores, one_thread_each
from paring.fuse.tokens import align_vocabularies

_SAMPLE = 1 << 20  # entries
_READ_BYTES = 256 << 20


@dataclass(frozen=True)
class Estimate:
    """See above; ``seconds`` without the start of the process, ``work_bytes`` what of ``held_bytes`` the method takes."""

    plan: Plan
    out: Path
    files: tuple[str, ...]
    read_bytes: int
    write_bytes: int
    held_bytes: int
    seconds: float
    work_bytes: int

    def lines(self) -> Iterator[str]:
        """For people."""
        config, jobs = self.plan.config, self.plan.jobs
        yield f"{config.method.name} ({config.method.paper}), scope: {config.scope}"
        for reference in config.references:
            model = self.plan.models[reference]
            role = "base " if reference == config.base else "model"
            size = sum(info.nbytes for name, info in model.infos.items() if name not in model.tied)
            yield f"  {role} {model.called}: {len(model.infos):,} tensors, {size / 1e9:.3f} GB as weights"
        types = Counter(str(job.info.dtype).removeprefix("torch.") for job in jobs)
        copied = sum(job.settings is None for job in jobs)
        yield f"  into  {self.out}: {len(jobs):,} tensors ({', '.join(f'{n:,} {t}' for t, n in types.items())})"
        if copied:
            yield f"  {copied} buffers are copied" + (f"; {note}" if (note := self.plan.float_buffers) else "")
        yield f"  files {', '.join(self.files[:4])}" + (f" and {len(self.files) - 4} more" if len(self.files) > 4 else "")
        yield f"reads   {self.read_bytes / 1e9:.3f} GB"
        yield f"writes  {self.write_bytes / 1e9:.3f} GB"
        yield f"memory  about {self.held_bytes / 1e6:,.0f} MB beside Python, PyTorch and the page cache"
        if self.work_bytes:
            yield f"        of it {self.work_bytes / 1e6:,.0f} MB of whole tensors for the method; --threads 1 takes least"
        yield f"time    about {self.seconds:.1f} s, and what the disk takes to write"


def estimate(
    config: str | Path | Config,
    out: str | Path,
    *,
    allow: Collection[str] = (),
    device: str | torch.device = "cpu",
    threads: int | None = None,
    shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
) -> Estimate:
    """What ``engine.fuse`` with the same arguments would do; it writes nothing.

    Raises:
        As ``engine.fuse``, as far as that shows without reading the models' tensors.
    """
    out, where = Path(out), usable(device)
    config = config if isinstance(config, Config) else read_config(config)
    (refuse_present_bank if config.method.per_task_state else refuse_present)(out.resolve(), overwrite)
    plan = make_plan(config, allow)
    refuse_onto_input(out, plan.models.items())
    vocabulary = align_vocabularies(plan)
    files, _ = laid_out(plan, vocabulary, shard_bytes)
    names, write_bytes = tuple(file.name for file in files), sum(file.num_bytes for file in files)
    runner = Runner(plan, vocabulary, where, lambda done, total: None)
    threads = threads or num_cores()
    reads = plan.input_bytes * (1 if config.scope == "tensor" else 2)
    with one_thread_each():
        entries = sum(job.info.shape.numel() * len(job.sources) for job in plan.jobs if job.settings)
        rate = _rate(plan)
        seconds = entries * _seconds_an_entry(plan, runner.device) / threads + (reads + plan.output_bytes) / rate / threads
    held = runner.room_bytes(threads)
    work = sum(sorted(map(runner.work_bytes, plan.jobs), reverse=True)[:threads])
    if config.method.per_task_state:
        names, write_bytes, held = expected(plan)
        refuse_no_room(out.resolve(), write_bytes)
    else:
        refuse_no_room_for(out.resolve(), write_bytes + sum(path.stat().st_size for path in copied_files(plan).values()))
    return Estimate(plan, out, names, reads, write_bytes, held, seconds, work)


def _seconds_an_entry(plan: Plan, device: torch.device) -> float:
    """Of one model's, by one thread, for the method with the settings of the largest tensor."""
    job = max((j for j in plan.jobs if j.settings), key=lambda j: j.info.nbytes, default=None)
    if job is None:
        return 0.0
    inputs = _random(job, device, exclusive=plan.config.method.exclusive)
    out = torch.empty(inputs.shape, dtype=job.info.dtype, device=device)
    plan.config.method(inputs, out)  # loads what is loaded once
    begun = time.perf_counter()
    plan.config.method(inputs, out)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / inputs.numel / len(inputs.models)


def _random(job: Job, device: torch.device, *, exclusive: bool) -> Inputs:
    assert job.settings
    width = job.info.shape[-1] if len(job.info.shape) > 1 else 1
    shape = (max(1, min(_SAMPLE, job.info.shape.numel()) // width), width)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator).mul_(0.02).bfloat16().float()
    models = [base + torch.randn(shape, generator=generator).mul_(1e-4) for _ in job.sources]
    if exclusive:  # each changes entries of its own
        whose = torch.arange(base.numel()).view(shape) % len(models)
        models = [torch.where(whose == i, model, base) for i, model in enumerate(models)]
    return Inputs(
        job.name,
        tuple(m.bfloat16().to(device) for m in models),
        base.bfloat16().to(device) if job.base else None,
        job.settings.parameters,
        job.settings.per_model,
    )


def _rate(plan: Plan) -> float:
    """Bytes a second of the first checkpoint (a model, or the base of one), read and hashed by one thread, as it lies now."""
    first = next(iter(plan.models.values()))
    checkpoint = first.checkpoint or (first.base.checkpoint if first.base else None)
    assert checkpoint  # what is no checkpoint has a base that is one
    num_bytes, begun = 0, time.perf_counter()
    for name in sorted(checkpoint.names, key=lambda name: checkpoint.info(name).nbytes):
        tensor_hash(checkpoint.pieces(name, 1 << 20))
        num_bytes += checkpoint.info(name).nbytes
        if num_bytes > _READ_BYTES:
            break
    return max(num_bytes, 1) / max(time.perf_counter() - begun, 1e-9)
