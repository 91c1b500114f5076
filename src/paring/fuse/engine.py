"""A merge carried out, from files to files: everything is checked, then written beside the output's name, then renamed."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from paring.delta.checkpoint.companions import companions, in_modules
from paring.delta.checkpoint.fingerprint import tensor_hash
from paring.delta.checkpoint.write import LaidOut, lay_out
from paring.fuse.agree import ALLOW
from paring.fuse.apart import refuse_onto_input
from paring.fuse.as_bank import refuse_present_bank, write_bank
from paring.fuse.config import Config, read_config
from paring.fuse.device import usable
from paring.fuse.output import refuse_present, writing
from paring.fuse.plan import Plan, make_plan
from paring.fuse.record import other_files, run_key
from paring.fuse.runner import Report, Runner, num_cores, one_thread_each
from paring.fuse.tokens import REPLACED, Vocabulary, align_vocabularies


@dataclass(frozen=True)
class Fused:
    """What a merge wrote.

    Attributes:
        files: all of them; num_bytes: of the weights.
        kept: tensors that an earlier, interrupted run had finished.
        note: for people: what was not merged, if there is such; else "".
    """

    files: tuple[Path, ...]
    num_bytes: int
    kept: int
    note: str = ""


def fuse(
    config: str | Path | Config,
    out: str | Path,
    *,
    allow: Collection[str] = (),
    device: str | torch.device = "cpu",
    threads: int | None = None,
    shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
    report: Report = lambda done, total: None,
    fitted: Mapping[str, Tensor] | None = None,
) -> Fused:
    """Merges models as a configuration says, into a new folder that ``from_pretrained`` loads; by ``emr`` into a bank.

    Args:
        config: a file (see ``config.py``), or what ``read_config`` made of it.
        allow: "extra": tensors that the base does not have are left out.
        device: where it is computed; bytes may differ from one kind of device to another.
        threads: how many tensors at a time; None: as many as there are cores. The output does not depend on it.
        shard_bytes: the most bytes of a file.
        overwrite: whether an old checkpoint at ``out`` is replaced, when the new one is whole.
        report: is told of bytes done, read and written, and of all there are.
        fitted: tensors of the output that were tuned after they were merged (``paring.fusion.fitting``): written as they are.
            Record and model card say so, since the configuration does not make them.

    Raises:
        ConfigError, FuseError, DeltaError: what is wrong with the configuration or the models, by line, file and tensor.
        FileExistsError: ``out`` is there, or an input lies there. OSError: the disk has no room. In each case nothing is there
            that was not before.
        KeyboardInterrupt: as Ctrl-C does; the same call goes on where it was. As it does after an OSError, MemoryError or
            torch.OutOfMemoryError when tensors had been finished (``output.machine_failed``).
    """
    out = Path(out)
    if unknown := set(allow) - set(ALLOW):
        raise ValueError(f"allow: {min(unknown)!r}; expected {' or '.join(map(repr, ALLOW))}")
    if out.suffix == ".safetensors":
        raise ValueError(f"{out} is a file's name; a merge is written to a folder, with its configuration: take another name")
    where = usable(device)
    config = config if isinstance(config, Config) else read_config(config)
    (refuse_present_bank if config.method.per_task_state else refuse_present)(out.resolve(), overwrite)
    plan = make_plan(config, allow)
    refuse_onto_input(out, plan.models.items())
    if config.method.per_task_state:
        if fitted:
            raise config.error("merge_method", f"{config.method.name} writes a bank, whose values cannot be fitted")
        runner = Runner(plan, None, where, report)
        with one_thread_each():
            written = write_bank(
                plan, runner, out, shard_bytes=shard_bytes, threads=threads or num_cores(), overwrite=overwrite
            )
        return Fused(written, sum(path.stat().st_size for path in written if path.suffix == ".safetensors"), 0)
    vocabulary = align_vocabularies(plan)
    files, index = laid_out(plan, vocabulary, shard_bytes)
    given = {name: tensor.detach().cpu().contiguous() for name, tensor in (fitted or {}).items()}
    runner = Runner(plan, vocabulary, where, report, given)
    copies = copied_files(plan)
    other_bytes = sum(path.stat().st_size for path in copies.values())
    hashes = {name: tensor_hash([tensor]) for name, tensor in given.items()}
    key = run_key(plan, str(runner.device), shard_bytes, allow, hashes)
    with writing(out, files, key, other_bytes=other_bytes, overwrite=overwrite) as output, one_thread_each():
        kept = len(output.kept)
        runner.run(output, threads or num_cores())
        runner.refuse_changed()
        extra = {name: path.read_bytes() for name, path in copies.items()}
        if vocabulary and vocabulary.files:
            extra = {name: content for name, content in extra.items() if name not in REPLACED} | dict(vocabulary.files)
        extra |= index | other_files(plan, vocabulary, output.hashes, runner.hashes, files, set(hashes))
        for name, content in extra.items():
            (output.folder / name).parent.mkdir(exist_ok=True)
            (output.folder / name).write_bytes(content)
    names = [*(file.name for file in files), *extra]
    return Fused(tuple(out / name for name in names), sum(file.num_bytes for file in files), kept, plan.float_buffers)


def copied_files(plan: Plan) -> dict[str, Path]:
    """Name in the output -> the file beside the main model's weights, or its base's, that is copied: the tokenizer, say."""
    main = plan.models[plan.main]
    folder = main.folder or (main.base.folder if main.base else None)
    copies = {path.name: path for path in (companions(folder) if folder else [])}
    if folder and copies:
        copies |= {str(path.relative_to(folder)): path for path in in_modules(folder)}
    return copies


def laid_out(plan: Plan, vocabulary: Vocabulary | None, shard_bytes: int) -> tuple[list[LaidOut], dict[str, bytes]]:
    """The output's files, and its index."""
    infos = {job.name: vocabulary.info(job) if vocabulary and job.vocabulary else job.info for job in plan.jobs}
    tensors = list(infos.items()) + [(alias, infos[job.name]) for job in plan.jobs for alias in job.aliases]
    return lay_out(tensors, shard_bytes)
