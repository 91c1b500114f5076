"""What a merge will do, before it does anything: for each tensor of the output what it is made of, and with which settings.

Everything that can be known without reading tensors is checked here: keys and values of the configuration, that models agree,
that every tensor has every parameter. A plan is plain data; ``engine.py`` carries it out.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch

from paring.delta.checkpoint.tensorinfo import TensorInfo
from paring.delta.errors import DeltaError
from paring.fuse.agree import Catalogue, is_vocabulary, layers_of, refuse_shape, refuse_unlike
from paring.fuse.config import Config, Reference, Slice, Source
from paring.fuse.inputs import FuseError
from paring.fuse.method import Resolved
from paring.fuse.models import Model, Weights, model_config, open_models
from paring.fuse.settings import Setting, evaluate
from paring.fuse.stacks import LAYER_KEYS, before_blocks


class Origin(NamedTuple):
    """A tensor of a model: which model, and the model's own name for it."""

    model: Reference
    name: str


@dataclass(frozen=True)
class Job:
    """One tensor of the output.

    Attributes:
        info: type and shape in the output.
        sources: what is merged; base: beside what.
        settings: of the method; None: an integer buffer, the same in all sources, which is copied.
        keys: what the models are called, for seeds.
        aliases: further names in the output.
        vocabulary: whether it has a row for each entry of the vocabulary, to be aligned.
    """

    name: str
    info: TensorInfo
    sources: tuple[Origin, ...]
    base: Origin | None
    settings: Resolved | None
    keys: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    vocabulary: bool = False

    @property
    def origins(self) -> tuple[Origin, ...]:
        return (*self.sources, self.base) if self.base else self.sources


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
    builder = _Builder(config, models, reference, {r: Catalogue(m, models[main]) for r, m in models.items()})
    jobs = tuple(builder.whole(config.slices[0], allow) if config.whole else builder.stacked())
    _refuse_idle(config, jobs)
    return Plan(config, jobs, models, main, _output_config(config, models[main], jobs, builder))


class _Builder:
    def __init__(
        self, config: Config, models: Mapping[Reference, Model], reference: Catalogue, catalogues: Mapping[Reference, Catalogue]
    ) -> None:
        self.config, self.models, self.reference, self.catalogues = config, models, reference, catalogues
        self.source_layers: list[int] = []  # of the first source of each layer of the output
        self._keys = _keys(config, models)
        self._resolved: dict[Any, Resolved] = {}

    def whole(self, one: Slice, allow: Collection[str]) -> Iterator[Job]:
        """Tensors of whole models."""
        base = self._base(one)
        taking_part = list(dict.fromkeys([*(s.model for s in one.sources), *([base] if base else [])]))
        for reference in taking_part:
            if self.catalogues[reference].model is not self.reference.model:
                refuse_unlike(
                    self.catalogues[reference], self.reference, vocabulary=self.config.tokenizer is not None, allow=allow
                )
        aliases: dict[str, list[str]] = {}
        for alias, name in self.reference.model.tied.items():
            self._refuse_untied(name, alias, taking_part)
            aliases.setdefault(name, []).append(alias)
        for name in self.reference.names:
            if name in self.reference.model.tied:
                continue
            place = self.reference.stacks.place(name)
            layers = self.reference.stacks.sizes.get(place.stack, 0)
            t = 0.0 if place.layer < 0 else place.layer / (layers - 1) if layers > 1 else 1.0
            yield self._job(name, one, [(s, name) for s in one.sources], base, name, t, tuple(aliases.get(name, ())))

    def stacked(self) -> Iterator[Job]:
        """Tensors of a model that is put together of runs of layers."""
        stack = self.reference.stacks.only(self.reference.model.called)
        slices = self.config.slices
        yield from self._loose(slices[0], before=True)
        for one in slices:
            base = self._base(one)
            self._refuse_runs(one, stack, base)
            length = one.sources[0].layers[1] - one.sources[0].layers[0]  # type: ignore[index]
            for i in range(length):
                out = len(self.source_layers)
                there = {s.model: s.layers[0] + i for s in one.sources if s.layers}
                self.source_layers.append(there[one.sources[0].model])
                for rest in self._rests(one, stack, there):
                    sources = [(s, f"{stack}{there[s.model]}{rest}") for s in one.sources]
                    base_name = f"{stack}{there[base]}{rest}" if base else ""
                    t = i / (length - 1) if length > 1 else 1.0
                    yield self._job(f"{stack}{out}{rest}", one, sources, base, base_name, t)
        yield from self._loose(slices[-1], before=False)

    def _loose(self, one: Slice, *, before: bool) -> Iterator[Job]:
        """Tensors outside of the blocks: before them those of the first slice's models, after them of the last's."""
        first = self.catalogues[one.sources[0].model]
        for name in [*first.names, *first.extra]:
            if self.reference.stacks.place(name).layer < 0 and before_blocks(name) == before:
                yield self._job(name, one, [(s, name) for s in one.sources], self._base(one), name, 0.0)

    def _job(
        self, name: str, one: Slice, sources: Sequence[tuple[Source, str]], base: Reference | None, base_name: str, t: float,
        aliases: tuple[str, ...] = (),
    ) -> Job:  # fmt: skip
        merged = [(s, n) for s, n in sources if s.model != base]
        first = self.catalogues[base or merged[0][0].model]
        first_name = base_name if base else merged[0][1]
        info = first.info(first_name)
        if not info.dtype.is_floating_point:
            named = [*([(base, base_name)] if base else []), *((s.model, n) for s, n in merged)]
            there = [Origin(m, self.catalogues[m].own(n)) for m, n in named if self.catalogues[m].has(n)]
            return Job(name, info, tuple(there), None, None, (), aliases)
        vocabulary = self.config.tokenizer is not None and is_vocabulary(first_name, first)
        for source, own in merged:
            self._same_shape(own, source.model, first, first_name, vocabulary)
        origins = tuple(Origin(s.model, self.catalogues[s.model].own(n)) for s, n in merged)
        beside = Origin(base, first.own(base_name)) if base else None
        types = [self.models[o.model].infos[o.name].dtype for o in origins]
        common = first.info(base_name).dtype if base else reduce(torch.promote_types, types)
        dtype = self.config.out_dtype or self.config.dtype or common
        settings = self._settings(name, one, merged, base is not None, t)
        keys = tuple(self._keys[s.model] for s, _ in merged)
        return Job(name, TensorInfo(dtype, info.shape), origins, beside, settings, keys, aliases, vocabulary)

    def _same_shape(self, name: str, model: Reference, first: Catalogue, first_name: str, vocabulary: bool) -> None:
        catalogue = self.catalogues[model]
        if name == first_name:
            refuse_shape(name, catalogue, first, vocabulary=vocabulary)
        elif catalogue.info(name).shape != first.info(first_name).shape:
            raise DeltaError(
                f"'{name}' has shape {list(catalogue.info(name).shape)} in {catalogue.model.called}, and '{first_name}' "
                f"{list(first.info(first_name).shape)} in {first.model.called}; layers of one width can be merged"
            )

    def _settings(self, name: str, one: Slice, merged: Sequence[tuple[Source, str]], has_base: bool, t: float) -> Resolved:
        how, places = self.config.method, (one.parameters, self.config.parameters)
        shared = evaluate(places, [p.name for p in how.parameters if not p.per_model], name, t)
        per_model = [p.name for p in how.parameters if p.per_model]
        own = [evaluate((s.parameters, *places), per_model, n, t) for s, n in merged]
        key = (tuple(shared.items()), tuple(tuple(o.items()) for o in own), has_base)
        if key not in self._resolved:
            try:
                self._resolved[key] = how.resolve(shared, own, has_base=has_base)
            except FuseError as error:
                raise self.config.error("merge_method", f"'{name}': {error}") from None
        return self._resolved[key]

    def _base(self, one: Slice) -> Reference | None:
        how = self.config.method
        base = None if how.base == "unused" else one.base or self.config.base
        try:
            how.check_models(sum(s.model != base for s in one.sources), base is not None)
        except FuseError as error:
            raise self.config.error("merge_method", str(error)) from None
        return base

    def _refuse_runs(self, one: Slice, stack: str, base: Reference | None) -> None:
        """That the layers are there, and the base among the sources."""
        for source in one.sources:
            assert source.layers
            number = len(layers_of(self.catalogues[source.model], self.reference.stacks, stack))
            if source.layers[1] > number:
                raise self.config_error(
                    source.line, f"layer_range {list(source.layers)} of {source.model}, which has {number} layers"
                )
        if base and base not in [s.model for s in one.sources]:
            raise self.config_error(
                one.line, f"base_model {base} is not among the sources of this slice; add it with its layer_range"
            )

    def config_error(self, line: int, message: str) -> Exception:
        return type(self.config.error("", ""))(f"{self.config.path}, line {line}: {message}")

    def _rests(self, one: Slice, stack: str, there: Mapping[Reference, int]) -> list[str]:
        """The tensors of a layer, which all sources must have."""
        found = {}
        for source in one.sources:
            found[source.model] = layers_of(self.catalogues[source.model], self.reference.stacks, stack)[there[source.model]]
        first = one.sources[0].model
        for model, rests in found.items():
            if different := sorted(rests ^ found[first]):
                has, lacks = (model, first) if different[0] in rests else (first, model)
                raise DeltaError(
                    f"{self.models[has].called} has '{stack}{there[has]}{different[0]}', and {self.models[lacks].called} no "
                    f"'{stack}{there[lacks]}{different[0]}'; layers of one make can be merged"
                )
        return sorted(found[first])

    def _refuse_untied(self, name: str, alias: str, models: Sequence[Reference]) -> None:
        """That names which stand for one tensor in the reference do so in the others, too."""
        for reference in models:
            model, catalogue = self.models[reference], self.catalogues[reference]
            if not (catalogue.has(name) and catalogue.has(alias)):
                continue
            first, second = catalogue.own(name), catalogue.own(alias)
            if first != second and model.tied.get(second, second) != model.tied.get(first, first):
                a, b = model.read(first), model.read(second)
                if a.difference != b.difference or not torch.equal(a.tensor, b.tensor):
                    raise DeltaError(
                        f"'{name}' and '{alias}' are one tensor in {self.reference.model.called} and differ in {model.called}; "
                        "save the first untied"
                    )


def _refuse_unfit(config: Config) -> None:
    """That a configuration can be written as a bank, which is of whole models and of the base as it is."""
    name = config.method.name
    if not config.whole:
        raise config.error("slices", f"{name} writes a bank of tasks of the base; expected whole models, under the key models")
    for key in ("tokenizer_source", "tokenizer"):
        if key in config.lines:
            raise config.error(key, f"{name} writes a bank of tasks of the base, whose vocabulary stays; leave {key} out")


def _keys(config: Config, models: Mapping[Reference, Model]) -> dict[Reference, str]:
    """What models are called in seeds: names without where they lie, where these tell them apart."""
    short = {r: models[r].public for r in config.references}
    return short if len(set(short.values())) == len(short) else {r: str(r) for r in config.references}


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
                said = f"filter {choice.filter!r} of {parameter} is in no tensor's name; names are such as {jobs[0].name!r}"
                raise config.error_at(choice.line, said)


def _output_config(config: Config, main: Model, jobs: Sequence[Job], builder: _Builder) -> dict[str, Any] | None:
    """The main model's ``config.json`` with the output's number of layers and type."""
    found = model_config(main)
    if found is None:
        return None
    found = json.loads(json.dumps(found))
    dtype = config.out_dtype or config.dtype
    if dtype:
        for key in ("torch_dtype", "dtype"):
            if key in found or key == "dtype":
                found[key] = str(dtype).removeprefix("torch.")
    layers = builder.source_layers
    if layers:
        before = builder.reference.stacks.sizes[builder.reference.stacks.only(main.called)]
        text = found.get("text_config")
        for place in (found, text) if isinstance(text, dict) else (found,):
            for key in LAYER_KEYS:
                if place.get(key) == before:
                    place[key] = len(layers)
            for key, value in place.items():  # one entry a layer: layer_types, sliding windows
                if isinstance(value, list) and len(value) == before and before > 1 and max(layers) < before:
                    place[key] = [value[i] for i in layers]
    return dict(found)
