"""Writes the golden delta files beside it: ``python tests/golden/make.py``. A committed file stays as it is: only missing
ones are written, since what format 1 files look like does not change.

``NAME.delta.safetensors`` (or a folder, a set of several) is a delta on ``base.safetensors``; ``expected/NAME.safetensors``
holds the tensors that differ from the base after it was applied, and new ones, from arithmetic done here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paring.delta import files
from paring.delta.base import Base, base_of
from paring.delta.blocks import Rect
from paring.delta.change import Change, exact_change
from paring.delta.factors import LowRank
from paring.delta.manifest import Manifest
from paring.delta.places import Blocks, Everywhere, Places, Scattered
from paring.delta.sources import MemorySource
from paring.delta.taskvector import TaskVector, low_rank, ready

HERE = Path(__file__).parent
State = dict[str, Tensor]
SCALES = {"int8": (127, 0), "int4": (7, 3), "sign": (1, 4)}  # the largest integer, and the group


class Golden(NamedTuple):
    """A delta and what comes out of it; ``options`` for ``save_delta``."""

    vector: TaskVector
    expected: State
    options: dict[str, Any] = {}  # noqa: RUF012 - read only


def base_state() -> State:
    random = torch.Generator().manual_seed(1)
    normal = partial(torch.randn, generator=random)
    state = {
        "embed.weight": normal(6, 4).bfloat16(),
        "norm.bias": torch.tensor([0.0, -0.0, 1.5, 6e-8, -65504.0]).half(),
        "layer.weight": normal(8, 6),
        "wide.weight": normal(32, 40).bfloat16(),
        "experts": normal(3, 4, 2).bfloat16(),
        "steps": torch.tensor(41),
        "flags": torch.tensor([True, False, True]),
        "codes": torch.tensor([0, 1, 254, 255], dtype=torch.uint8),
        "eighth": torch.tensor([0.5, -0.5, 448.0, 0.0, 1.0, 2.0, 3.0, -4.0]).to(torch.float8_e4m3fn),
        "old.bias": normal(2),
    }
    return state


@contextmanager
def fixed_tool() -> Iterator[None]:
    """Files do not name the version that writes them."""
    files.Manifest = partial(Manifest, tool="paring")  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        files.Manifest = Manifest  # type: ignore[misc]


def _at(shape: torch.Size, places: Places, before: Tensor, flat: Tensor) -> Tensor:
    """``before`` with ``flat`` at the places, without the code that deltas are applied by."""
    out = before.clone().view(-1).view(torch.uint8).view(shape.numel(), -1)
    out[places.flat(shape)] = flat.view(torch.uint8).view(flat.numel(), -1)
    return out.view(-1).view(before.dtype).view(shape)


def _exact(name: str, state: State, places: Places, after: Tensor) -> tuple[str, Change, Tensor]:
    tensor = state[name]
    flat = tensor.view(-1).view(torch.uint8).view(tensor.numel(), -1)[places.flat(tensor.shape)].view(-1).view(tensor.dtype)
    return name, exact_change(flat, after, places, tensor.shape), _at(tensor.shape, places, tensor, after)


def _real(name: str, state: State, places: Places, tau: Tensor) -> tuple[str, Change, Tensor]:
    tensor = state[name]
    after = (tensor.flatten()[places.flat(tensor.shape)].float() + tau).to(tensor.dtype)
    return name, Change(tensor.shape, tensor.dtype, "real", places, tau), _at(tensor.shape, places, tensor, after)


def _made(base: Base, made: list[tuple[str, Change, Tensor]], facts: dict[str, Any] | None = None, **options: Any) -> Golden:
    vector = TaskVector({name: ready(change) for name, change, _ in made}, base, (), facts or {})
    return Golden(vector, {name: after for name, _, after in made}, options)


def _bumped(tensor: Tensor, step: int = 1) -> Tensor:
    """Entries with other low bits, flat."""
    return (
        tensor.flatten().view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]) + step
    ).view(tensor.dtype)


def _places(name: str) -> Places:
    """Each kind of place on a tensor where a writer takes it."""
    return {
        "norm.bias": Everywhere(5),
        "embed.weight": Blocks((Rect(0, 2, 1, 4), Rect(4, 6, 0, 1), Rect(2, 3, 0, 4))),
        "layer.weight": Scattered(torch.tensor([0, 1, 5, 8, 13, 21, 30, 34, 40, 46, 47])),
        "wide.weight": Scattered(torch.tensor([3, 700, 701, 1002, 1279])),
    }[name]


def _tau(count: int, values: str, random: torch.Generator) -> Tensor:
    """Differences that are stored as they are as ``values``."""
    tau = 0.05 * torch.randn(count, generator=random)
    if values not in SCALES:
        return tau.to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[values]).float()
    largest, group = SCALES[values]
    index = torch.arange(count) // (group or count)
    scale = (0.001 + 0.01 * torch.rand(int(index.max()) + 1, generator=random)).bfloat16().float()[index]
    q = torch.randint(-largest, largest + 1, (count,), generator=random)
    q[:: group or count] = -largest
    return torch.where(q == 0, 1, q).clamp(-largest, largest).float() * scale


def _reals(state: State, base: Base, values: str) -> Golden:
    random = torch.Generator().manual_seed(2)
    names = ("norm.bias", "embed.weight", "layer.weight", "wide.weight")
    made = [_real(n, state, _places(n), _tau(_places(n).count, values, random)) for n in names]
    return _made(base, made, values=values, group=SCALES.get(values, (0, 0))[1])


def _exact_all(state: State, base: Base) -> Golden:
    after = {n: _bumped(t, -3) for n, t in state.items() if n not in ("old.bias", "wide.weight", "flags", "norm.bias")}
    after["flags"] = ~state["flags"]
    after["norm.bias"] = torch.tensor([-0.0, 0.0, -1.5, torch.inf, torch.nan]).half()
    return _made(base, [_exact(n, state, Everywhere(state[n].numel()), t) for n, t in after.items()], {"note": "ü"})


def _exact_places(state: State, base: Base) -> Golden:
    made = []
    for name in ("norm.bias", "embed.weight", "layer.weight", "wide.weight"):
        flat = state[name].flatten()[_places(name).flat(state[name].shape)]
        made.append(_exact(name, state, _places(name), _bumped(flat, 2) if name != "embed.weight" else -flat))
    one = Scattered(torch.tensor([2]))  # of a type that torch cannot index
    return _made(base, [*made, _exact("eighth", state, one, torch.tensor([-448.0]).to(torch.float8_e4m3fn))])


def _new(state: State, base: Base) -> Golden:
    new = {
        "classifier.weight": torch.arange(6.0).view(2, 3),
        "classifier.step": torch.tensor(7),
        "classifier.none": torch.empty(0, 4),
    }
    made = [(n, Change(t.shape, t.dtype, "new", Everywhere(t.numel()), t.view(-1)), t) for n, t in new.items()]
    return _made(base, made)


def _tied(state: State, base: Base) -> Golden:
    golden = _exact_places(state, Base(base.tensors, {"head.weight": "embed.weight"}, base.origin))
    return Golden(golden.vector.only("embed.weight"), {"embed.weight": golden.expected["embed.weight"]})


def _removed(state: State, base: Base) -> Golden:
    kept = Base({n: f for n, f in base.tensors.items() if n != "old.bias"}, {}, base.origin)
    name, change, after = _exact("steps", state, Everywhere(1), torch.tensor([-1]))
    return Golden(TaskVector({name: ready(change)}, kept, ("old.bias",)), {name: after})


def _parts(state: State, base: Base) -> Golden:
    parts = {f"experts[{i}]": t for i, t in enumerate(state["experts"])}
    one = _exact("experts[1]", parts, Blocks((Rect(1, 3, 0, 2),)), -parts["experts[1]"][1:3].flatten())
    two = _real("experts[2]", parts, Everywhere(8), torch.linspace(-0.5, 0.5, 8))
    golden = _made(base, [one, two])
    return golden._replace(expected={"experts": torch.stack([parts["experts[0]"], one[2], two[2]])})


def _prefix(state: State, base: Base) -> Golden:
    longer = Base({f"model.{n}": f for n, f in base.tensors.items()}, {}, base.origin)
    (name, change, after), *_ = [_exact("norm.bias", state, Everywhere(5), torch.arange(5).half())]
    return Golden(TaskVector({f"model.{name}": ready(change)}, longer), {name: after})


def _compressed(state: State, base: Base, places: Places) -> Golden:
    flat = state["wide.weight"].flatten()[places.flat(state["wide.weight"].shape)]
    return _made(base, [_exact("wide.weight", state, places, _bumped(flat))])


def _low_rank(state: State, base: Base) -> Golden:
    """Factors of small whole numbers, so that their products are exact in whatever order they are added."""
    shapes = {"layer.weight": (8, 6), "wide.weight": (32, 40), "experts": (3, 8), "norm.bias": (5, 1)}
    types = {"layer.weight": torch.float32, "wide.weight": torch.bfloat16, "experts": torch.float16, "norm.bias": torch.float32}
    scales = {"layer.weight": 0.125, "wide.weight": -2.0, "experts": 0.5, "norm.bias": 3.0}
    changes, expected = {}, {}
    for name, (rows, columns) in shapes.items():
        rank = 1 if name == "norm.bias" else 3
        B = (torch.arange(rows * rank) % 7 - 3.0).view(rows, rank)
        A = (torch.arange(rank * columns) % 5 - 2.0).view(rank, columns)
        low = LowRank(B.to(types[name]), A.to(types[name]), scales[name])
        tensor = state[name]
        changes[name] = low_rank(tensor.shape, tensor.dtype, lambda low=low: low, f"'{name}'")  # type: ignore[misc]
        tau = torch.tensor(
            [[sum(b * a for b, a in zip(row, A.T[c].tolist(), strict=True)) for c in range(columns)] for row in B.tolist()]
        )
        expected[name] = (tensor.float() + scales[name] * tau.view(tensor.shape)).to(tensor.dtype)
    return Golden(TaskVector(changes, base), expected)


def _sharded(state: State, base: Base) -> Golden:
    return _exact_places(state, base)._replace(options={"shard_bytes": 40})


GOLDEN: dict[str, Callable[[State, Base], Golden]] = {
    "exact": _exact_all,
    "exact-places": _exact_places,
    "new": _new,
    "tied": _tied,
    "removed": _removed,
    "parts": _parts,
    "prefix": _prefix,
    "sharded": _sharded,
    "low-rank": _low_rank,
    "compressed-dense": partial(_compressed, places=Everywhere(1280)),
    "compressed-mask": partial(_compressed, places=Scattered(torch.tensor([i for i in range(1280) if i % 9 in (0, 4)]))),
    "half-mask": partial(_compressed, places=Scattered(torch.tensor([i for i in range(1280) if i % 9 < 5]))),
    "compressed-gaps": partial(_compressed, places=Scattered(torch.tensor([*range(5, 45), 1201, 1279]))),
} | {f"real-{values}": partial(_reals, values=values) for values in ("fp32", "bf16", "fp16", *SCALES)}


def path_of(name: str) -> Path:
    return HERE / f"{name}.delta{'' if name == 'sharded' else '.safetensors'}"


def options_of(name: str) -> dict[str, Any]:
    """How ``save_delta`` wrote it."""
    state = load_file(HERE / "base.safetensors")
    return GOLDEN[name](state, base_of(MemorySource(state))).options


def _example() -> Golden:
    """The file in docs/format.md: a base of one tensor, two entries of which move to the next number, up and down."""
    state = {"w": torch.arange(1.0, 7.0).view(2, 3).bfloat16()}
    places = Scattered(torch.tensor([1, 5]))
    made = exact_change(
        torch.tensor([2.0, 6.0]).bfloat16(), torch.tensor([2.015625, 5.96875]).bfloat16(), places, state["w"].shape
    )
    save_file(state, HERE / "example-base.safetensors")
    return Golden(TaskVector({"w": ready(made)}, base_of(MemorySource(state))), {})


def main() -> None:
    (HERE / "expected").mkdir(exist_ok=True)
    if not (HERE / "base.safetensors").exists():
        save_file(base_state(), HERE / "base.safetensors")
    state = load_file(HERE / "base.safetensors")
    base = base_of(MemorySource(state), origin="golden")
    with fixed_tool():
        for name, make in GOLDEN.items():
            if not path_of(name).exists():
                golden = make(state, base)
                files.save_delta(golden.vector, path_of(name), **golden.options)
                save_file(golden.expected, HERE / "expected" / f"{name}.safetensors")
        if not path_of("example").exists():
            files.save_delta(_example().vector, path_of("example"))


if __name__ == "__main__":
    main()
