"""A LoRA adapter of PEFT's as a delta: ``tau = scale B A``, in fp32, and what the adapter holds whole (``peft_parts.py``).

scale = lora_alpha / rank (or / sqrt(rank), rslora), with the patterns for single modules. Factors stay factors; their products
are taken when numbers are asked for, one at a time. A tensor that the adapter holds whole is a difference where the base has
it, else new (a head). PEFT trains tied weights under one name only, or each name for itself; a delta keeps them tied, so all
names must change alike.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from paring.delta.align import align
from paring.delta.base import Base, TensorFacts, dtype_name
from paring.delta.change import Change, wide
from paring.delta.checkpoint.read import Checkpoint, open_checkpoint
from paring.delta.errors import DeltaError
from paring.delta.factors import LowRank
from paring.delta.places import Everywhere
from paring.delta.sources import BaseLike, CheckpointSource, Source, as_source
from paring.delta.taskvector import Lazy, TaskVector
from paring.delta.taskvector import low_rank as as_product
from paring.neighbours.layers import Layers, read_config, skeleton
from paring.neighbours.peft_config import plain_facts, read_settings
from paring.neighbours.peft_parts import Part, check_shape, finite, low_rank, parts_of

_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def import_peft(adapter: str | Path, base: BaseLike) -> TaskVector:
    """The task vector that the LoRA adapter in the folder ``adapter`` is, on ``base``.

    Args:
        adapter: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: what it was trained on: a model, state dict, checkpoint or a name in the hub's local cache; its names may lack
            the prefix that they have in the adapter's model (``bert.``), or have one.

    Raises:
        DeltaError: the adapter is damaged, does more than change weights (``peft_config.py``), or is none of this base: a
            tensor is missing there, or has another shape. FileNotFoundError: there is no adapter, or no base.
    """
    folder = Path(adapter)
    settings = read_settings(_there(folder, "adapter_config.json"))
    checkpoint = open_checkpoint(find_adapter(folder))
    source = as_source(base)
    layers = _layers(base, source)
    parts = parts_of(checkpoint, settings)
    found = align(parts, {*source.names(), *source.tied()})
    rename = _renaming(found)
    homes = _homes(found, parts, source, layers)
    reader = _Reader(checkpoint, source, layers, settings.transposed)
    changes: dict[str, Lazy] = {}
    listed: dict[str, str] = {}  # name in the base -> in the delta
    for name, part in parts.items():
        if name in homes:
            there = homes[name]
            if there in listed:
                reader.refuse_unlike(listed[there], parts[listed[there]], name, part, there)
                continue
            _refuse_half_tied(name, there, parts, rename, source, layers)
            listed[there] = name
            changes[rename(there)] = reader.difference(name, part, there)
        elif part.whole and not part.adds:
            changes[name] = reader.new(name, part.whole)
        else:
            raise DeltaError(f"{folder} is no adapter of {source.called}: it changes '{name}', which is not there")
    facts = {"method": "peft-lora", "adapter": plain_facts(settings)}
    every = isinstance(base, nn.Module)
    return TaskVector(changes, _base(source, rename, {rename(t) for t in listed}, changes, every), (), facts)


def find_adapter(folder: str | Path) -> Path:
    """The file of weights in an adapter's folder. FileNotFoundError: there is none."""
    return _there(Path(folder), *_FILES)


def _there(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"there is no {names[0]} in {folder}; expected the folder of a PEFT adapter")


def _layers(base: BaseLike, source: Source) -> Layers | None:
    """The modules of the base, where it is a model or has a configuration that transformers knows."""
    if isinstance(base, nn.Module):
        return Layers(base)
    config = read_config(Path(source.checkpoint.folder)) if isinstance(source, CheckpointSource) else None
    try:
        return Layers(skeleton(config)) if config else None
    except (DeltaError, ImportError):
        return None


def _renaming(found: Mapping[str, str]) -> Callable[[str], str]:
    """From names in the base to names in the adapter's model, as ``align`` found them: the same, a prefix more, or one less."""
    for name, there in found.items():
        if name.endswith("." + there):
            more = name.removesuffix(there)
            return lambda n: more + n
        if there.endswith("." + name):
            less = there.removesuffix(name)
            return lambda n: n.removeprefix(less)
    return lambda n: n


def _homes(found: Mapping[str, str], parts: Mapping[str, Part], source: Source, layers: Layers | None) -> dict[str, str]:
    """Where in the base the adapter's tensors lie; of a tied one that is stored once, for each of its names."""
    homes = {name: source.tied().get(there, there) for name, there in found.items()}
    for name in parts:
        for other in layers.names_of(name) if layers and name not in homes else ():
            if other in found:
                homes[name] = homes[other]
    return homes


def _refuse_half_tied(
    name: str, there: str, parts: Mapping[str, Part], rename: Callable[[str], str], source: Source, layers: Layers | None
) -> None:
    names = {rename(there), *(rename(a) for a, n in source.tied().items() if n == there)}
    names |= set(layers.names_of(name)) if layers else set()
    if missing := sorted(names - parts.keys()):
        raise DeltaError(
            f"the adapter changes '{name}' but not '{missing[0]}', which is the same tensor in {source.called}; save the base "
            "untied (tie_word_embeddings=False) and take that"
        )


class _Reader:
    """Reads differences out of an adapter, beside its base."""

    def __init__(self, checkpoint: Checkpoint, source: Source, layers: Layers | None, transposed: bool) -> None:
        self._checkpoint, self._source, self._layers, self._transposed = checkpoint, source, layers, transposed

    def difference(self, name: str, part: Part, there: str) -> Lazy:
        dtype, shape = self._source.extent(there)
        for key in (part.whole, part.summand):
            if key and self._checkpoint.info(key).shape != shape:
                raise DeltaError(
                    f"{self._checkpoint.files[0]}: '{name}' is {list(self._checkpoint.info(key).shape)}, in the base it is "
                    f"{list(shape)}; merge the adapter with PEFT and take `paring diff --allow reshaped`"
                )
        if part.A:
            check_shape(self._checkpoint, part, shape, self._orientation(name, shape), self._where(name))

        if part.A and not (part.whole or part.summand):
            return as_product(shape, dtype, lambda: self._factors(name, part, shape), self._where(name))

        def load() -> Change:
            return Change(shape, dtype, "real", Everywhere(shape.numel()), self._dense(name, part, there).view(-1))

        return Lazy(shape, dtype, "real", load)

    def new(self, name: str, key: str) -> Lazy:
        info = self._checkpoint.info(key)

        def load() -> Change:
            values = finite(self._checkpoint.tensor(key), self._where(name)).contiguous()
            return Change(info.shape, info.dtype, "new", Everywhere(values.numel()), values.view(-1))

        return Lazy(info.shape, info.dtype, "new", load)

    def refuse_unlike(self, first: str, one: Part, second: str, other: Part, there: str) -> None:
        """That two names of a tied tensor change alike. DeltaError: they do not."""
        a, b = self._dense(first, one, there), self._dense(second, other, there)
        if not torch.allclose(a, b, rtol=1e-5, atol=1e-6 * float(a.abs().max())):
            raise DeltaError(
                f"the adapter changes '{first}' and '{second}' differently, the same tensor in {self._source.called}; "
                "save the base untied (tie_word_embeddings=False) and take that"
            )

    def _dense(self, name: str, part: Part, there: str) -> Tensor:
        dtype, shape = self._source.extent(there)
        out = torch.zeros(shape, dtype=wide(dtype))
        if part.whole:
            whole = finite(self._checkpoint.tensor(part.whole), self._where(name))
            out += whole.to(out.dtype) - self._source.tensor(there).cpu().to(out.dtype)
        if part.summand:
            out += finite(self._checkpoint.tensor(part.summand), self._where(name)).to(out.dtype) * part.scale
        if part.A:
            product = self._factors(name, part, shape).change(shape, dtype, self._where(name))
            out += product.values.view(shape)
        return out

    def _factors(self, name: str, part: Part, shape: torch.Size) -> LowRank:
        return low_rank(self._checkpoint, part, shape, self._orientation(name, shape), self._where(name))

    def _orientation(self, name: str, shape: torch.Size) -> bool | None:
        """Whether a weight is [in, out]: by its module, else by its shape, else as the adapter's configuration says."""
        inside = align([name], self._layers.tensors).get(name, "") if self._layers else ""
        kind = self._layers.kind(inside) if self._layers else "other"
        if kind in ("linear", "conv1d"):
            return kind == "conv1d"
        return self._transposed if len(shape) == 2 and shape[0] == shape[1] else None

    def _where(self, name: str) -> str:
        return f"{self._checkpoint.files[0]}: '{name}'"


def _base(source: Source, rename: Callable[[str], str], touched: set[str], changes: Mapping[str, Lazy], every: bool) -> Base:
    """The base under the adapter's names.

    An adapter with a new head stands for another class of model than the base's, which need not have the base's own head:
    what lies outside of the body, the first component that all changed tensors have in common, is then left out.
    """
    first = {n.split(".", 1)[0] for n in touched}
    body = first.pop() + "." if len(first) == 1 and not every and any(c.kind == "new" for c in changes.values()) else ""
    tensors = {}
    for there in source.names():
        name = rename(there)
        if name.startswith(body) or name in touched:
            dtype, shape = source.extent(there)
            tensors[name] = TensorFacts(dtype_name(dtype), tuple(shape), source.hash(there))
    tied = {rename(a): rename(n) for a, n in source.tied().items() if rename(n) in tensors}
    return Base(tensors, tied, source.origin)
