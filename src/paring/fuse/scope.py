"""Where thresholds fall: in each tensor by itself, or in all tensors together (``scope: global``).

TIES, breadcrumbs, SCE and PCB as their papers have them rank the entries of a whole task vector; mergekit ranks within each
tensor, which keeps the same share of every tensor, however little it changed. A global threshold is found exactly, by two
streamed readings of each model (``paring.slim.histogram``) and a third one up to where the last of the tied entries is.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from paring.fuse.inputs import Cut, Cuts, FuseError, Inputs
from paring.fuse.method import Method, Ranking, Stage
from paring.fuse.selection import largest_of_each
from paring.slim.histogram import Threshold, patterns, thresholds

A = TypeVar("A")
B = TypeVar("B")
Map = Callable[[Callable[[A], B], Iterable[A]], Iterable[B]]
Load = Callable[[str], Inputs]
LoadSome = Callable[[str, Collection[int]], Inputs]
Holding = Callable[[str, int | None], AbstractContextManager[None]]
Reader = Callable[[str], Iterator[tuple[Inputs, Ranking]]]


def local_cuts(inputs: Inputs, stages: Sequence[Stage]) -> Cuts:
    """Of one tensor by itself; ``inputs.cuts`` where these are given."""
    if inputs.cuts is not None:
        return inputs.cuts
    found: Cuts = ()
    for stage in stages:
        found += largest_of_each([(r.read, r.counts) for r in stage(inputs, found)], inputs.ranges, inputs.numel)
    return found


def global_cuts(
    method: Method,
    names: Sequence[str],
    load: Load,
    map: Map = map,
    *,
    load_some: LoadSome | None = None,
    holding: Holding = lambda name, model: nullcontext(),
) -> dict[str, Cuts]:
    """Of all tensors together: for each name what goes into ``Inputs.cuts``.

    Args:
        names: of the tensors, in the order in which equal magnitudes count.
        load: gives a tensor's inputs; called several times for each.
        map: for several threads: ``executor.map``; a call reads all tensors of one model.
        load_some: the same as ``load`` where only the models of these numbers are read: it need not make the others, whose
            content may be anything of their shape.
        holding: entered for as long as a tensor is read, of one model by its number, or (None) of all: waits for memory, say.

    Raises:
        FuseError: the method ranks nothing, or tensors differ in what is asked for (a gradient of densities).
    """
    if not method.stages:
        raise FuseError(f"{method.name}: it ranks nothing, so there is no threshold over all tensors; expected scope: tensor")
    found: dict[str, Cuts] = dict.fromkeys(names, ())
    if not names:
        return found
    some = load_some or (lambda name, models: load(name))
    total = sum(some(name, ()).numel for name in names)
    for stage in method.stages:
        rankings = len(stage(some(names[0], ()), found[names[0]]))

        def one(i: int, stage: Stage = stage, found: dict[str, Cuts] = found) -> dict[str, tuple[Cut, ...]]:
            return _one(method, stage, i, names, load, some, holding, found, total)

        cuts = list(map(one, range(rankings)))
        found = {name: found[name] + tuple(of[name] for of in cuts) for name in names}
    return found


def _one(
    method: Method,
    stage: Stage,
    i: int,
    names: Sequence[str],
    load: Load,
    some: LoadSome,
    holding: Holding,
    found: dict[str, Cuts],
    total: int,
) -> dict[str, tuple[Cut, ...]]:
    """Cuts of one ranking."""

    def unread(name: str) -> Ranking:
        return stage(replace(some(name, ()), cuts=None), found[name])[i]

    model = unread(names[0]).model

    def ranking(name: str) -> Iterator[tuple[Inputs, Ranking]]:
        with holding(name, model):
            inputs = load(name) if model is None else some(name, (model,))
            yield inputs, stage(replace(inputs, cuts=None), found[name])[i]
            del inputs  # before it is said to be

    def pieces() -> Iterator[tuple[None, Tensor]]:
        for name in names:
            yield from _pieces(ranking, name)

    of_nonzero = unread(names[0]).of_nonzero
    nonzero = sum(int(torch.count_nonzero(piece)) for _, piece in pieces()) if of_nonzero else total
    asked = {tuple(unread(name).counts(total, nonzero)) for name in names}
    if len(asked) > 1:
        raise FuseError(
            f"{method.name}: scope: global with settings that differ between tensors; expected one density for all of a model's"
        )
    counts = asked.pop()
    return _by_tensor(names, ranking, thresholds(pieces, 1, [(0, k) for k in counts]))


def _pieces(ranking: Reader, name: str) -> Iterator[tuple[None, Tensor]]:
    """One tensor's: nothing of it stays when the next is read."""
    for inputs, ranked in ranking(name):
        for start, end in inputs.ranges():
            yield None, ranked.read(start, end, 1).cpu()
        del inputs, ranked  # else they are there until the next are


def _by_tensor(names: Sequence[str], ranking: Reader, at: Sequence[Threshold]) -> dict[str, tuple[Cut, ...]]:
    """One cut for each threshold: tied entries are in up to where their number is reached."""
    left = [t.ties for t in at]
    return {name: _cuts(ranking, name, at, left) for name in names}


def _cuts(ranking: Reader, name: str, at: Sequence[Threshold], left: list[int]) -> tuple[Cut, ...]:
    """Of one tensor.

    Args:
        left: tied entries that may still be in; those that are in this tensor are taken off.
    """
    ends, numel = [0] * len(at), 0
    open_ = [j for j, t in enumerate(at) if t.pattern > 0 and left[j]]
    for inputs, ranked in ranking(name):
        numel = inputs.numel
        for start, end in inputs.ranges() if open_ else ():
            p = patterns(ranked.read(start, end, 1).cpu())
            for j in open_:
                equal = np.flatnonzero(p == at[j].pattern)[: left[j]]
                if equal.size:
                    ends[j], left[j] = start + int(equal[-1]) + 1, left[j] - equal.size
        del inputs, ranked  # as above
    return tuple(Cut(-1.0, numel) if t.pattern < 0 else Cut(_magnitude(t), ends[j]) for j, t in enumerate(at))


def _magnitude(t: Threshold) -> float:
    return float("inf") if t.pattern == np.iinfo(np.int32).max else t.magnitude
