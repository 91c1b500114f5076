"""What a merge will do, before it does anything: for each tensor of the output what it is made of, and with which settings.

Everything that can be known without reading tensors is checked here: keys and values of the configuration, that models agree,
that every tensor has every parameter. A plan is plain data; ``engine.py`` carries it out.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paring.fuse.agree import Catalogue
from paring.fuse.builder import Builder
from paring.fuse.config import Config, Reference
from paring.fuse.job import Job, Origin
from paring.fuse.models import Model, Weights, open_models
from paring.fuse.output_config import entries_by_type, most_common_type, output_config
from paring.fuse.quantised import refuse_quantised
from paring.fuse.settings import Setting

_COPIES = "passthrough"  # the method that takes codes for what they are

__all__ = ["Job", "Origin", "Plan", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """See above.

    Attributes:
        jobs: in the order of the output's files.
        models: every one that is named, opened.
        main: the model that configuration and tokenizer are taken from: the base, else the first.
        model_config: the output's ``config.json``; None where the main model has none.
    """

    config: Config
    jobs: tuple[Job, ...]
    models: Mapping[Reference, Model]
    main: Reference
    model_config: Mapping[str, Any] | None

    @property
    def input_bytes(self) -> int:
        """Of all tensors that are read, each once for each tensor it goes into."""
        return sum(self.models[o.model].infos[o.name].nbytes for job in self.jobs for o in job.origins)

    @property
    def output_bytes(self) -> int:
        return sum(job.info.nbytes * (1 + len(job.aliases)) for job in self.jobs)

    @property
    def float_buffers(self) -> str:
        """Says which buffers of floats are taken as they are; "": none."""
        found = [job for job in self.jobs if job.settings is None and job.info.dtype.is_floating_point]
        called = dict.fromkeys(self.models[job.sources[0].model].called for job in found)
        number = f"{len(found)} buffers of floats" if len(found) > 1 else "1 buffer of floats"
        return f"{number} ({found[0].name!r} …) as in {', '.join(called)}, not merged" if found else ""


def make_plan(config: Config, allow: Collection[str] = ()) -> Plan:
    """The plan of a merge.

    Args:
        allow: see ``agree.ALLOW``. A bank of tasks takes what a model has more.

    Raises:
        ConfigError: the configuration asks for what cannot be. DeltaError: models that do not agree, damaged files.
    """
    how = config.method
    if how.needs_data:
        raise config.error("merge_method", f"{how.name} searches on rows of the tasks; give --calibration NAME=FILE …")
    if how.per_task_state:
        _refuse_unfit(config)
        allow = {*allow, "extra"}  # the tasks' own, which the bank has
    models = open_models(config)
    main = config.base or config.slices[0].sources[0].model
    if how.per_task_state and config.base and not isinstance(models[main], Weights):
        raise config.error("base_model", f"{main} is no checkpoint; expected one, since the bank is put on it")
    reference = Catalogue(models[main], models[main])
    catalogues = {r: Catalogue(m, models[main]) for r, m in models.items()}
    for catalogue in catalogues.values() if how.name != _COPIES else ():
        refuse_quantised(catalogue)
    builder = Builder(config, models, reference, catalogues)
    jobs = tuple(builder.whole(config.slices[0], allow) if config.whole else builder.stacked(allow))
    _refuse_idle(config, jobs)
    dtype = most_common_type(entries_by_type([(j.info.dtype, j.info.shape.numel()) for j in jobs if j.settings]))
    about = output_config(reference.config, dtype, builder.layers, builder.num_layers)
    return Plan(config, jobs, models, main, about)


def _refuse_unfit(config: Config) -> None:
    """That a configuration can be written as a bank, which is of whole models and of the base as it is."""
    name = config.method.name
    if not config.whole:
        raise config.error("slices", f"{name} writes a bank of tasks of the base; expected whole models, under the key models")
    for key in ("tokenizer_source", "tokenizer"):
        if key in config.lines:
            raise config.error(key, f"{name} writes a bank of tasks of the base, whose vocabulary stays; leave {key} out")


def _refuse_idle(config: Config, jobs: Sequence[Job]) -> None:
    """That every filter matches a tensor."""
    names = [o.name for job in jobs for o in job.origins] + [job.name for job in jobs]
    places = [config.parameters]
    for one in config.slices:
        places += [one.parameters, *(s.parameters for s in one.sources)]
    every: list[tuple[str, Setting]] = [item for place in places for item in place.items()]
    for parameter, setting in every:
        for choice in setting.choices:
            if choice.filter not in (None, "*") and not any(str(choice.filter) in name for name in names):
                such = next((job.name for job in jobs if ".0." in job.name), jobs[0].name)
                said = f"filter {choice.filter!r} of {parameter} is in no tensor's name; names are such as {such!r}"
                raise config.error_at(choice.line, said)
