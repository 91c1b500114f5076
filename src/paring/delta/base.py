"""The base a delta was made on: the name, type, shape and hash of each of its tensors.

By this a delta knows its base again, in memory or on disk, and names the first tensor that differs. Of tied tensors one
name is listed. A new head is not part of it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch

from paring.delta.align import align
from paring.delta.checkpoint.fingerprint import total
from paring.delta.errors import DeltaError
from paring.delta.names import split_part
from paring.delta.sources import Source

_WITHOUT = "use the base it was made on, without another delta on it"


class TensorFacts(NamedTuple):
    """Type (``"bfloat16"``), shape and hash (32 hexadecimal digits) of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    hash: str

    @property
    def torch_dtype(self) -> torch.dtype:
        found = getattr(torch, self.dtype, None)
        if not isinstance(found, torch.dtype):
            raise DeltaError(f"{self.dtype!r} is no tensor type of PyTorch {torch.__version__}")
        return found


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Base:
    """See above.

    Attributes:
        tensors: by the name they have in the tuned model.
        tied: further names of some of them -> the one listed.
        origin: where it was found, for people.
    """

    tensors: Mapping[str, TensorFacts]
    tied: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""

    @cached_property
    def total(self) -> str:
        """One hash of all: 32 hexadecimal digits."""
        return total({n: (f.dtype, f.shape, f.hash) for n, f in self.tensors.items()})

    def facts(self, name: str) -> TensorFacts:
        """Of a tensor or of a part of one (``name[i]``); the hash is that of the whole."""
        if name in self.tensors:
            return self.tensors[name]
        whole, index = split_part(name)
        facts = self.tensors[whole]
        if index < 0 or len(facts.shape) < 2 or index >= facts.shape[0]:
            raise KeyError(name)
        return TensorFacts(facts.dtype, facts.shape[1:], facts.hash)

    def places_in(self, source: Source) -> dict[str, str]:
        """For each tensor of the base its name in ``source``.

        Raises:
            DeltaError: one is missing there, or has another type or shape.
        """
        there, tied = source.names(), source.tied()
        found = align(self.tensors, {*there, *tied})
        if not found.keys() >= set(self.tied.values()):  # tied here, but stored under its other name there
            every = align([*self.tensors, *self.tied], {*there, *tied})
            for alias, name in self.tied.items():
                if name not in found and alias in every:
                    found[name] = every[alias]
        found |= self._by_content(source, found)
        for name, facts in self.tensors.items():
            if name not in found:
                raise DeltaError(f"{source.called} is not the base of this delta: it has no tensor '{name}'; {_WITHOUT}")
            dtype, shape = source.extent(found[name])
            if tuple(shape) != facts.shape or dtype_name(dtype) != facts.dtype:
                raise DeltaError(
                    f"{source.called} is not the base of this delta: '{name}' is {list(shape)} {dtype_name(dtype)} there; the "
                    f"delta was made on {list(facts.shape)} {facts.dtype}"
                )
        return {name: tied.get(other, other) for name, other in found.items()}

    def _by_content(self, source: Source, found: Mapping[str, str]) -> dict[str, str]:
        """Tensors that have another name in ``source``, known by type, shape and hash: a library may rename when it loads.

        Where several hold the same (biases that are all zero), the numbers in their names must tell them apart: their
        layer's. Those that stay in doubt are left out.
        """
        missing: dict[tuple[str, tuple[int, ...], str], list[str]] = {}
        for name, facts in self.tensors.items():
            if name not in found:
                missing.setdefault((facts.dtype, facts.shape, facts.hash), []).append(name)
        if not missing:
            return {}
        taken, there = set(found.values()), dict[tuple[str, tuple[int, ...], str], list[str]]()
        extents = {key[:2] for key in missing}
        for name in source.names():
            dtype, shape = source.extent(name)
            if name not in taken and (extent := (dtype_name(dtype), tuple(shape))) in extents:
                there.setdefault((*extent, source.hash(name)), []).append(name)
        out: dict[str, str] = {}
        for key, names in missing.items():
            others = there.get(key, [])
            ours, theirs = ({tuple(re.findall(r"\d+", n)): n for n in of} for of in (names, others))
            if len(names) == len(others) == 1:
                out[names[0]] = others[0]
            elif len(ours) == len(names) and len(theirs) == len(others):
                out |= {name: theirs[numbers] for numbers, name in ours.items() if numbers in theirs}
        return out

    def check(self, source: Source) -> dict[str, str]:
        """That ``source`` holds this base, by names, types, shapes and content; returns ``places_in``.

        Raises:
            DeltaError: it does not; the first tensor that differs is named.
        """
        found = self.places_in(source)
        for name, facts in self.tensors.items():
            if source.hash(found[name]) != facts.hash:
                raise DeltaError(f"{source.called} is not the base of this delta: the values of '{name}' differ; {_WITHOUT}")
        return found

    def refuse_other(self, other: "Base", what: str) -> None:
        """That two deltas have one base, as far as both list its tensors.

        Raises:
            DeltaError: a tensor differs.
        """
        pairs = align(self.tensors, set(other.tensors))
        for name, theirs in pairs.items():
            if self.tensors[name] != other.tensors[theirs]:
                raise DeltaError(f"{what}: the two were made on different bases; the first tensor that differs is '{name}'")
        if not pairs and self.tensors and other.tensors:
            raise DeltaError(f"{what}: the two were made on different bases; no tensor is in both")


class FactsWhenAsked(Mapping[str, TensorFacts]):
    """The tensors of a source that does not change; each is hashed when it is asked for, unless it was read before."""

    def __init__(self, source: Source) -> None:
        self._source, self._names = source, dict.fromkeys(source.names())

    def __getitem__(self, name: str) -> TensorFacts:
        if name not in self._names:
            raise KeyError(name)
        dtype, shape = self._source.extent(name)
        return TensorFacts(dtype_name(dtype), tuple(shape), self._source.hash(name))

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def base_of(source: Source, *, without: Iterable[str] = (), origin: str = "") -> Base:
    """The base that ``source`` holds, but for the tensors ``without`` (new ones)."""
    left_out = set(without)
    tensors = {}
    for name in source.names():
        if name not in left_out:
            dtype, shape = source.extent(name)
            tensors[name] = TensorFacts(dtype_name(dtype), tuple(shape), source.hash(name))
    tied = {a: n for a, n in source.tied().items() if n in tensors}
    return Base(tensors, tied, origin)
