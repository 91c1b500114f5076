"""The manifest of a delta file: JSON under the metadata key "paring.delta" (docs/format.md is its specification).

Everything in it may be a lie. ``parse`` checks types, names and numbers against each other before anything is read or
allocated: what it returns is consistent in itself, and bounds all that is decoded afterwards.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

import paring
from paring.delta.base import Base, TensorFacts, dtype_name
from paring.delta.blocks import Rect
from paring.delta.change import Kind
from paring.delta.codec.positions import CODINGS
from paring.delta.codec.values import KINDS
from paring.delta.errors import DeltaError
from paring.delta.places import Blocks

KEY, FORMAT = "paring.delta", 1
_MOST_ENTRIES = 1 << 48  # of one tensor: positions and byte counts then fit 64 bits with room
_PARTS = ("values", "places", "scales")


@dataclass(frozen=True)
class Part:
    """One stored tensor: how it is compressed, its bytes before, and a hash of those stored (32 hexadecimal digits)."""

    compression: str
    raw_bytes: int
    hash: str


@dataclass(frozen=True)
class Entry:
    """What the manifest says of one changed tensor.

    Attributes:
        kind, dtype, shape: as in ``Change``.
        places: "dense", "blocks", or how positions are coded.
        count: number of values.
        rects: of "blocks".
        values: how values are coded; "plain" for a new tensor, stored as it is.
        group: values that share a scale; 0: all.
        parts: by name.
    """

    kind: Kind
    dtype: torch.dtype
    shape: torch.Size
    places: str
    count: int
    values: str
    group: int = 0
    rects: tuple[Rect, ...] = ()
    parts: Mapping[str, Part] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    base: Base
    entries: Mapping[str, Entry]
    removed: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    tool: str = f"paring {paring.__version__}"


def stored_name(name: str, part: str) -> str:
    """The name in the file of a part of a tensor's change."""
    return f"{name}:{part}"


def dump(manifest: Manifest) -> str:
    base = manifest.base
    entries = {}
    for name, e in manifest.entries.items():
        entry: dict[str, Any] = {"kind": e.kind, "places": e.places, "values": e.values}
        if e.kind == "new":
            entry |= {"dtype": dtype_name(e.dtype), "shape": list(e.shape)}
        if e.rects:
            entry["rects"] = [list(r.bounds) for r in e.rects]
        if e.places not in ("dense", "blocks"):
            entry["count"] = e.count
        if e.group:
            entry["group"] = e.group
        entries[name] = entry | {"parts": {k: [p.compression, p.raw_bytes, p.hash] for k, p in e.parts.items()}}
    content = {
        "format": FORMAT,
        "tool": manifest.tool,
        "base": {
            "total": base.total,
            "origin": base.origin,
            "tensors": {n: [f.dtype, list(f.shape), f.hash] for n, f in base.tensors.items()},
            "tied": dict(base.tied),
        },
        "tensors": entries,
        "removed": list(manifest.removed),
        "facts": dict(manifest.facts),
    }
    return json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)


def parse(text: str | None, where: str) -> Manifest:
    """The manifest in ``text``.

    Raises:
        DeltaError: there is none, it is of another format version, or it contradicts itself.
    """
    if text is None:
        raise DeltaError(f"{where} is no delta: its metadata has no manifest of paring's; make one with `paring diff`")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DeltaError(f"{where} is damaged: its manifest is no JSON ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        number = content.get("format") if isinstance(content, dict) else None
        raise DeltaError(f"{where} has delta format {number!r:.50}; this version reads format {FORMAT}: update paring")
    try:
        base = _base(content["base"], where)
        if content["base"]["total"] != base.total:
            raise DeltaError(f"{where} is damaged: the hash of its base's table is not the one it states")
        tensors, removed, facts, tool = (content[k] for k in ("tensors", "removed", "facts", "tool"))
        _expect(isinstance(tensors, dict) and isinstance(facts, dict) and isinstance(tool, str), "the top level")
        _expect(isinstance(removed, list) and all(isinstance(n, str) for n in removed), "'removed'")
        entries = {name: _entry(name, value, base) for name, value in tensors.items()}
    except KeyError as error:
        raise DeltaError(f"{where} is damaged: its manifest lacks {error}") from None
    except (TypeError, _WrongError) as error:
        raise DeltaError(f"{where} is damaged: in its manifest, {error}") from None
    return Manifest(base, entries, tuple(removed), facts, tool)


class _WrongError(Exception):
    """What in the manifest is wrong."""


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise _WrongError(f"{what} is not as the format has it")


def _base(value: Any, where: str) -> Base:
    _expect(isinstance(value, dict) and isinstance(value["tensors"], dict) and isinstance(value["tied"], dict), "'base'")
    _expect(isinstance(value["origin"], str), "'base'")
    tensors = {}
    for name, facts in value["tensors"].items():
        _expect(
            isinstance(facts, list) and len(facts) == 3 and isinstance(facts[0], str) and _is_hash(facts[2]), f"base '{name}'"
        )
        tensors[name] = TensorFacts(facts[0], tuple(_shape(facts[1], f"base '{name}'")), facts[2])
    _expect(all(isinstance(n, str) and n in tensors for n in value["tied"].values()), "'tied'")
    return Base(tensors, dict(value["tied"]), value["origin"])


def _entry(name: str, value: Any, base: Base) -> Entry:
    what = f"'{name}'"
    _expect(isinstance(value, dict), what)
    kind, places, values, group = value["kind"], value["places"], value["values"], value.get("group", 0)
    _expect(kind in ("exact", "real", "new") and isinstance(places, str) and isinstance(values, str), what)
    _expect(_is_count(group), what)
    if kind == "new":
        _expect(isinstance(value["dtype"], str), what)
        facts = TensorFacts(value["dtype"], tuple(_shape(value["shape"], what)), "")
    else:
        try:
            facts = base.facts(name)
        except KeyError:
            raise _WrongError(f"{what} is no tensor of its base") from None
    dtype, shape = facts.torch_dtype, torch.Size(facts.shape)
    rects = tuple(_rect(r, what) for r in value["rects"]) if places == "blocks" else ()
    _expect(places != "blocks" or bool(rects), what)
    if places == "blocks":
        Blocks(rects).check(shape, what)
        count = Blocks(rects).count
    elif places == "dense":
        count = shape.numel()
    else:
        _expect(places in CODINGS, f"the coding {places!r:.50} of {what}")
        count = value["count"]
        _expect(_is_count(count) and count <= shape.numel(), f"the count of {what}")
    expected = {"new": "plain", "exact": f"bits{8 * dtype.itemsize}"}.get(kind)
    _expect(values == expected if expected else values in KINDS and not values.startswith("bits"), f"the value type of {what}")
    _expect(kind != "new" or places == "dense", what)
    entry = Entry(kind, dtype, shape, places, count, values, group, rects, _parts(value["parts"], what))
    wanted = (
        {"values"}
        | ({"places"} if places in CODINGS else set())
        | ({"scales"} if values in KINDS and KINDS[values].scaled else set())
    )
    _expect(set(entry.parts) == wanted, f"the parts of {what}")
    return entry


def _parts(value: Any, what: str) -> dict[str, Part]:
    _expect(isinstance(value, dict), what)
    parts = {}
    for name, part in value.items():
        _expect(name in _PARTS and isinstance(part, list) and len(part) == 3, f"part {name!r:.50} of {what}")
        compression, raw_bytes, digest = part
        _expect(compression in ("none", "zstd") and _is_count(raw_bytes) and _is_hash(digest), f"part {name!r} of {what}")
        parts[name] = Part(compression, raw_bytes, digest)
    return parts


def _rect(value: Any, what: str) -> Rect:
    _expect(isinstance(value, list) and len(value) == 4 and all(_is_count(n) for n in value), f"a block of {what}")
    return Rect(*value)


def _shape(value: Any, what: str) -> list[int]:
    _expect(isinstance(value, list) and len(value) <= 16 and all(_is_count(n) for n in value), f"the shape of {what}")
    _expect(math.prod(n for n in value) <= _MOST_ENTRIES, f"the shape of {what}")
    return value


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST_ENTRIES


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 32 and set(value) <= set("0123456789abcdef")
