"""Schedules: which slice of which layer is active at an optimizer step, as pure functions of the step.

    visit     v = step // move_steps                       (0 for a static slice)
    window    with layer_window = k: window v mod n of the n windows of k blocks, counted from the output down;
              the slices move on once the window has passed all blocks: v <- v // n
    mode      modes[v mod |modes|],  j = v // |modes|
    position  the (j mod n)-th of the layer's n positions; with a lane those of its share of the layer; of a static slice
              with ``starts`` the layer's own

Every layer counts its own positions, since layers differ in extent: the last position of a layer is moved back
so that the slice ends with the layer, every row or column is reached, and the width stays the rank.
The same step gives the same plan in every process and after a resume.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b

from paring.tune.config import SliceConfig
from paring.tune.slices import Matrix, Slice


def plan(config: SliceConfig, matrices: Mapping[str, Matrix], step: int) -> dict[str, Slice]:
    """The active slices at ``step``, by layer; layers outside the window are missing.

    Args:
        config: the settings.
        matrices: the sliced layers.
        step: optimizer steps taken so far, from 0.
    """
    visit = visits(config, step)
    if config.layer_window is None:
        active = set(matrices)
    else:
        windows = windows_from_output(sorted({m.block for m in matrices.values()}), config.layer_window)
        blocks = windows[visit % len(windows)]
        active = {name for name, m in matrices.items() if m.block in blocks}
        visit //= len(windows)
    mode = config.modes[visit % len(config.modes)]
    turn = visit // len(config.modes)
    starts = dict(config.starts or ())
    return {
        name: Slice(mode, starts[name] if starts else _position(config, matrix.extent(mode), turn), config.rank)
        for name, matrix in matrices.items()
        if name in active
    }


def visits(config: SliceConfig, step: int) -> int:
    """How often the slices (or the window) have moved before ``step``."""
    return 0 if config.move_steps is None else step // config.move_steps


def positions(config: SliceConfig, extent: int) -> tuple[int, ...]:
    """Every starting position in a layer of ``extent`` rows or columns, in the order of a sweep."""
    if not isinstance(config.order, str):
        return config.order
    first, end = bounds(config, extent)
    return _sweep(first, end, config.rank, config.stride or config.rank)


def bounds(config: SliceConfig, extent: int) -> tuple[int, int]:
    """First and last + 1 of the rows or columns that a layer's slices stay in: of ``position`` to ``max_position`` the lane's.

    Lanes are disjoint and cover the range; their widths differ by one at most.
    """
    first, end = config.position, min(config.max_position or extent, extent)
    i, n = config.share
    return first + (end - first) * i // n, first + (end - first) * (i + 1) // n


def windows_from_output(blocks: Sequence[int], width: int) -> list[frozenset[int]]:
    """Windows of ``width`` consecutive blocks, the uppermost first; the lowest is filled from above if they do not fit."""
    tops = range(len(blocks), 0, -width)
    return [frozenset(blocks[max(top - width, 0) : max(top, width)]) for top in tops]


def check(config: SliceConfig, matrices: Mapping[str, Matrix]) -> None:
    """That every slice the schedule can ask for exists.

    Raises:
        ValueError: naming the layer, its extent, and the setting that does not fit it.
    """
    starts = dict(config.starts or ())
    if starts.keys() != matrices.keys() and config.starts is not None:
        unknown, missing = [n for n in starts if n not in matrices], [n for n in matrices if n not in starts]
        what = f"names '{unknown[0]}', which is not sliced" if unknown else f"has no position for '{missing[0]}'"
        raise ValueError(f"starts {what}; expected the {len(matrices)} layers that are sliced, each once")
    for name, matrix in matrices.items():
        for axis in config.modes:
            extent = matrix.extent(axis)
            where = f"layer '{name}' has {extent} {axis}s ([out, in] = [{matrix.out}, {matrix.inp}])"
            if config.rank > extent:
                raise ValueError(f"rank {config.rank} is larger than a layer: {where}; lower the rank, or exclude the layer")
            last = config.position if isinstance(config.order, str) else max(config.order)
            last = starts.get(name, last)
            first, end = bounds(config, extent)
            if config.lane is not None and config.position < extent and end - first < config.rank:
                shared = min(config.max_position or extent, extent) - config.position
                raise ValueError(
                    f"lane {config.lane} has {end - first} of {shared} {axis}s, fewer than rank {config.rank}: {where}; the "
                    f"most lanes there are {shared // config.rank}: take fewer, lower the rank, or exclude the layer"
                )
            if last + config.rank > extent:
                raise ValueError(
                    f"position {last} with rank {config.rank} is beyond the extent: {where}; "
                    f"the largest position there is {extent - config.rank}"
                )
    blocks = {m.block for m in matrices.values()}
    if config.layer_window is not None and config.layer_window > len(blocks):
        raise ValueError(f"layer_window is {config.layer_window}; the sliced layers stand in {len(blocks)} block(s)")


def _position(config: SliceConfig, extent: int, turn: int) -> int:
    at = positions(config, extent)
    if config.order == "random":
        return at[_permutation(config.seed, len(at), turn // len(at))[turn % len(at)]]
    return at[turn % len(at)]


@lru_cache(maxsize=1024)
def _sweep(first: int, end: int, rank: int, stride: int) -> tuple[int, ...]:
    last = end - rank
    return (*range(first, last, stride), last) if last >= first else (first,)


@lru_cache(maxsize=256)
def _permutation(seed: int, size: int, cycle: int) -> tuple[int, ...]:
    """By hash, not by a random generator: generators change between versions of their library, this never does."""
    return tuple(sorted(range(size), key=lambda i: blake2b(f"{seed}/{size}/{cycle}/{i}".encode(), digest_size=8).digest()))
