"""The jobs of a plan: for each tensor of whole models, or of runs of layers put one on the other, what goes into it."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import torch

from paring.delta.checkpoint.tensorinfo import TensorInfo
from paring.delta.errors import DeltaError
from paring.fuse.agree import Catalogue, is_buffer, is_one_models, is_vocabulary, refuse_shape, refuse_unlike
from paring.fuse.config import Config, Reference, Slice, Source
from paring.fuse.inputs import FuseError
from paring.fuse.job import Job, Origin
from paring.fuse.method import OF_MODEL, Resolved
from paring.fuse.models import Model
from paring.fuse.output_config import LayerFrom, entries_by_type, most_common_type
from paring.fuse.settings import evaluate
from paring.fuse.stacking import Layers, layers_of, loose, refuse_unlike_layer, refuse_unlike_names


class Builder:
    """Makes jobs, each when it is asked for; what is wrong is said then.

    Args:
        models: every one that is named. reference: the main one, under whose names all are; catalogues: of each model.
    """

    def __init__(
        self, config: Config, models: Mapping[Reference, Model], reference: Catalogue, catalogues: Mapping[Reference, Catalogue]
    ) -> None:
        self.config, self.models, self.reference, self.catalogues = config, models, reference, catalogues
        self.layers: list[LayerFrom] = []  # of a stack, in the output's order
        self.num_layers = 0  # of the reference's stack
        self._main = config.base or config.slices[0].sources[0].model
        self._layers: Mapping[Reference, Layers] = {}
        self._keys = _keys(config, models)
        self._resolved: dict[Any, Resolved] = {}
        self._asked = config.out_dtype or config.dtype
        self._common = self._common_type()

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

    def stacked(self, allow: Collection[str]) -> Iterator[Job]:
        """Tensors of a model that is put together of runs of layers."""
        stack = self.reference.stacks.only(self.reference.model.called)
        self.num_layers = self.reference.stacks.sizes[stack]
        slices = self.config.slices
        self._layers = {r: layers_of(c, self.reference, stack) for r, c in self.catalogues.items()}
        found = [self._loose(one, allow, before=before) for one, before in ((slices[0], True), (slices[-1], False))]
        tied = {name: embeddings for names in found for name, embeddings in names.items() if embeddings}
        yield from self._loose_jobs(slices[0], found[0], tied)
        for one in slices:
            base = self._base(one)
            self._refuse_runs(one, base)
            length = one.sources[0].layers[1] - one.sources[0].layers[0]  # type: ignore[index]
            for i in range(length):
                out = len(self.layers)
                there = [(s.model, s.layers[0] + i) for s in one.sources if s.layers]
                rests = self._rests(stack, there)
                first, number = there[0]
                self.layers.append(LayerFrom(self.catalogues[first].config or {}, len(self._layers[first]), number))
                for rest in rests:
                    sources = [(s, f"{stack}{n}{rest}") for s, (_, n) in zip(one.sources, there, strict=True)]
                    base_name = f"{stack}{dict(there)[base]}{rest}" if base else ""
                    t = i / (length - 1) if length > 1 else 1.0
                    yield self._job(f"{stack}{out}{rest}", one, sources, base, base_name, t)
        yield from self._loose_jobs(slices[-1], found[1], tied)

    def _loose(self, one: Slice, allow: Collection[str], *, before: bool) -> dict[str, str]:
        """Tensors outside of the blocks: before them those of the first slice's models, after them of the last's. Of a head
        that is the embeddings, these."""
        sources, vocabulary = [self.catalogues[s.model] for s in one.sources], self.config.tokenizer is not None
        return dict(loose(self.reference, sources, before=before, vocabulary=vocabulary, allow=allow))

    def _loose_jobs(self, one: Slice, names: Collection[str], tied: Mapping[str, str]) -> Iterator[Job]:
        for name in names:
            if name not in tied:
                aliases = tuple(head for head, embeddings in tied.items() if embeddings == name)
                yield self._job(name, one, [(s, name) for s in one.sources], self._base(one), name, 0.0, aliases)

    def _job(
        self, name: str, one: Slice, sources: Sequence[tuple[Source, str]], base: Reference | None, base_name: str, t: float,
        aliases: tuple[str, ...] = (),
    ) -> Job:  # fmt: skip
        merged = [(s, n) for s, n in sources if s.model != base]
        named = [*([(base, base_name)] if base else []), *((s.model, n) for s, n in merged)]
        there = [(m, n) for m, n in named if self.catalogues[m].has(n)] or named
        first, first_name = self.catalogues[there[0][0]], there[0][1]
        info = first.info(first_name)
        if is_buffer(first_name, info):
            one_or_all = there[:1] if is_one_models(first_name, info) else there
            return Job(name, info, tuple(Origin(m, self.catalogues[m].own(n)) for m, n in one_or_all), None, None, (), aliases)
        first, first_name = self.catalogues[named[0][0]], named[0][1]
        vocabulary = self.config.tokenizer is not None and is_vocabulary(first_name, first)
        for source, own in merged:
            self._same_shape(own, source.model, first, first_name, vocabulary)
        origins = tuple(Origin(s.model, self.catalogues[s.model].own(n)) for s, n in merged)
        beside = Origin(base, first.own(base_name)) if base else None
        types = [self.models[o.model].infos[o.name].dtype for o in ([beside] if beside else origins)]
        dtype = self._asked or self._promoted([*types, *([self._common] if self._common else [])])
        settings = self._settings(name, one, merged, base is not None, t)
        keys = self._keys_of([s for s, _ in merged])
        return Job(name, TensorInfo(dtype, info.shape), origins, beside, settings, keys, aliases, vocabulary)

    def _keys_of(self, sources: Sequence[Source]) -> tuple[str, ...]:
        """What the models of a slice are called in seeds; one with several runs of layers, each by its own."""
        count = Counter(s.model for s in sources)
        runs = [f" {list(s.layers)}" if s.layers and count[s.model] > 1 else "" for s in sources]
        return tuple(self._keys[s.model] + run for s, run in zip(sources, runs, strict=True))

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
                said = f"'{name}': {error}"
                if found := OF_MODEL.search(said):  # the base is not counted there
                    source = merged[int(found[1]) - 1][0]
                    raise self.config.error_at(source.line, said.replace(found[0], f"{source.model}: ", 1)) from None
                raise self.config.error("merge_method", said) from None
        return self._resolved[key]

    def _base(self, one: Slice) -> Reference | None:
        how = self.config.method
        base = None if how.base == "unused" else one.base or self.config.base
        try:
            how.check_models(sum(s.model != base for s in one.sources), base is not None)
        except FuseError as error:
            raise self.config.error("merge_method", str(error)) from None
        return base

    def _common_type(self) -> torch.dtype | None:
        """One that holds the types of the models that give the output's: bases, or models where there is none. None: they are
        of one type, and each tensor keeps that it has."""
        donors: dict[Reference, None] = {}
        for one in self.config.slices:
            base = None if self.config.method.base == "unused" else one.base or self.config.base
            donors |= dict.fromkeys([base] if base else [source.model for source in one.sources])
        found = set()
        for reference in donors:
            infos = [(i.dtype, i.shape.numel()) for i in self.models[reference].infos.values()]
            found.add(most_common_type(entries_by_type(infos)))
        types = sorted((dtype for dtype in found if dtype), key=str)
        return self._promoted(types) if len(types) > 1 and not self._asked else None

    def _promoted(self, types: Sequence[torch.dtype]) -> torch.dtype:
        """A type that holds all of these."""
        try:
            return reduce(torch.promote_types, types)
        except RuntimeError:  # of 8-bit floats and any other
            named = " and ".join(sorted({str(t).removeprefix("torch.") for t in types}))
            raise self.config.error("merge_method", f"the models are {named}, which no type holds; give a dtype") from None

    def _refuse_runs(self, one: Slice, base: Reference | None) -> None:
        """That the layers are there, and the base among the sources."""
        for source in one.sources:
            assert source.layers
            number = len(self._layers[source.model])
            if source.layers[1] > number:
                raise self.config.error_at(
                    source.line, f"layer_range {list(source.layers)} of {source.model}, which has {number} layers"
                )
        if base and (count := sum(s.model == base for s in one.sources)) != 1:
            if count:
                said = (
                    f"base_model {base} is {count} sources of this slice; expected one: a difference is from one run of layers"
                )
            else:
                said = f"base_model {base} is not among the sources of this slice; add it with its layer_range"
            raise self.config.error_at(one.line, said)

    def _rests(self, stack: str, there: Sequence[tuple[Reference, int]]) -> list[str]:
        """The tensors of a layer: weights, which are as in the reference's layers; buffers, where a source has them.

        Args:
            there: the sources' layers.
        """
        layers, ours = self._layers, self.reference.model.called
        for model, number in there:
            refuse_unlike_layer(stack, self.models[model].called, number, layers[model], ours, layers[self._main])
        for model, number in there[1:]:
            first = self.models[there[0][0]].called, there[0][1], layers[there[0][0]]
            refuse_unlike_names(stack, (self.models[model].called, number, layers[model]), first)
        return sorted({rest for model, number in there for rest in layers[model][number]})

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


def _keys(config: Config, models: Mapping[Reference, Model]) -> dict[Reference, str]:
    """What models are called in seeds: names without where they lie, where these tell them apart."""
    short = {r: models[r].public for r in config.references}
    return short if len(set(short.values())) == len(short) else {r: str(r) for r in config.references}
