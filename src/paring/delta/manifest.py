"""The manifest of a delta file: JSON under the metadata key "paring.delta" (docs/format.md is its specification).

Everything in it may be a lie. ``parse`` checks types, names and numbers against each other before anything is read or
allocated: what it returns is consistent in itself, and bounds all that is decoded afterwards.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

import paring
from paring.delta.base import Base, TensorFacts, dtype_name
from paring.delta.blocks import Rect
from paring.delta.change import Kind
from paring.delta.checkpoint.strict import parsed
from paring.delta.checkpoint.tensorinfo import DTYPES
from paring.delta.codec.positions import CODINGS, MOST_ENTRIES
from paring.delta.codec.values import KINDS
from paring.delta.errors import DeltaError
from paring.delta.names import split_part
from paring.delta.places import Blocks

KEY, FORMAT = "paring.delta", 1
_PARTS = ("values", "places", "scales", "left", "right")
_DTYPES = {dtype_name(dtype): dtype for dtype in DTYPES.values()}
_NO_NUMBERS = ("complex64", "float4_e2m1fn_x2", "float8_e8m0fnu")  # exact differences alone
_MOST_DIMENSIONS, _MOST_NESTING, _LONGEST = 16, 64, 1024
_NO_TEXT = "\x00-\x1f\x7f-\x9f\ud800-\udfff"  # control characters and lone surrogates
_TEXT = re.compile(f"[^{_NO_TEXT}]{{0,{_LONGEST}}}")


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
        values: how values are coded; "plain" for a new tensor, stored as it is; "lowrank" for factors.
        group: values that share a scale; 0: all.
        parts: by name.
        rank, scale: of "lowrank".
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
    rank: int = 0
    scale: float = 1.0


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
    """The manifest as text.

    Raises:
        DeltaError: ``parse`` would refuse it; so no file is written that cannot be read.
    """
    base = manifest.base
    entries = {}
    for name, e in manifest.entries.items():
        entry: dict[str, Any] = {"kind": e.kind, "places": e.places, "values": e.values}
        if e.kind == "new":
            entry |= {"dtype": dtype_name(e.dtype), "shape": list(e.shape)}
        if e.rects:
            entry["rects"] = [list(r.bounds) for r in e.rects]
        if e.places in CODINGS:
            entry["count"] = e.count
        if e.group:
            entry["group"] = e.group
        if e.rank:
            entry |= {"rank": e.rank, "scale": e.scale}
        entries[name] = entry | {"parts": {k: [p.compression, p.raw_bytes, p.hash] for k, p in e.parts.items()}}
    content = {
        "format": FORMAT,
        "tool": manifest.tool,
        "base": {
            "total": base.total,
            "origin": re.sub(f"[{_NO_TEXT}]", "\ufffd", base.origin)[:_LONGEST],  # a folder may have any name
            "tensors": {n: [f.dtype, list(f.shape), f.hash] for n, f in base.tensors.items()},
            "tied": dict(base.tied),
        },
        "tensors": entries,
        "removed": list(manifest.removed),
        "facts": dict(manifest.facts),
    }
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    parse(text, "the new delta")
    return text


def parse(text: str | None, where: str) -> Manifest:
    """The manifest in ``text``.

    Raises:
        DeltaError: there is none, it is of another format version, or it contradicts itself.
    """
    if text is None:
        raise DeltaError(f"{where} is no delta: its metadata has no manifest of paring's; make one with `paring diff`")
    content = parsed(f"{where}: the manifest", text.encode("utf-8", "surrogatepass"))
    number = content.get("format")
    if type(number) is not int or number != FORMAT:
        raise DeltaError(f"{where} has delta format {number!r:.50}; this version reads format {FORMAT}: update paring")
    try:
        base = _base(content["base"])
        if content["base"]["total"] != base.total:
            raise DeltaError(f"{where} is damaged: the hash of its base's table is not the one it states")
        tensors, removed, facts, tool = (content[k] for k in ("tensors", "removed", "facts", "tool"))
        _expect(isinstance(tensors, dict) and isinstance(facts, dict) and _is_text(tool), "the top level")
        _expect_only(content, {"format", "tool", "base", "tensors", "removed", "facts"}, "the top level")
        _expect(isinstance(removed, list) and all(map(_is_name, removed)) and len(removed) == len(set(removed)), "'removed'")
        _expect(is_plain(facts), "'facts'")
        entries = {name: _entry(name, value, base) for name, value in tensors.items()}
        if twice := changed_twice(entries):
            raise _WrongError(f"'{twice}' is changed as a whole and in part")
    except KeyError as error:
        raise DeltaError(f"{where} is damaged: its manifest lacks {error}") from None
    except _WrongError as error:
        raise DeltaError(f"{where} is damaged: in its manifest, {error}") from None
    return Manifest(base, entries, tuple(removed), facts, tool)


def changed_twice(names: Iterable[str]) -> str | None:
    """The first tensor that is named both whole and in part (``x`` and ``x[0]``), if any."""
    every = set(names)
    return min((whole for whole, index in map(split_part, every) if index >= 0 and whole in every), default=None)


def is_plain(value: Any, nesting: int = _MOST_NESTING) -> bool:
    """Whether a value of ``facts`` is as every JSON reader has it: finite numbers, valid Unicode, not too deeply nested."""
    if isinstance(value, str):
        return not any("\ud800" <= c <= "\udfff" for c in value)
    if isinstance(value, dict):
        return nesting > 0 and all(is_plain(k) and is_plain(v, nesting - 1) for k, v in value.items())
    if isinstance(value, list):
        return nesting > 0 and all(is_plain(v, nesting - 1) for v in value)
    return not isinstance(value, float) or math.isfinite(value)


class _WrongError(Exception):
    """What in the manifest is wrong."""


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise _WrongError(f"{what} is not as the format has it")


def _expect_only(value: dict[str, Any], known: set[str], what: str) -> None:
    """No field that may mean something we do not know of."""
    if more := value.keys() - known:
        raise _WrongError(f"{what} has the field {min(more)!r:.50}, which format {FORMAT} has not")


def _base(value: Any) -> Base:
    _expect(isinstance(value, dict) and isinstance(value["tensors"], dict) and isinstance(value["tied"], dict), "'base'")
    _expect(_is_text(value["origin"]) and _is_hash(value["total"]), "'base'")
    _expect_only(value, {"total", "origin", "tensors", "tied"}, "'base'")
    tensors = {}
    for name, facts in value["tensors"].items():
        what = f"base {_shown(name)}"
        _expect(_is_name(name) and isinstance(facts, list) and len(facts) == 3, what)
        dtype, shape, digest = facts
        _expect(_is_name(dtype) and _is_hash(digest), what)
        tensors[name] = TensorFacts(dtype, tuple(_shape(shape, what)), digest)
    tied = value["tied"]
    _expect(all(_is_name(alias) and isinstance(n, str) and n in tensors for alias, n in tied.items()), "'tied'")
    return Base(tensors, tied, value["origin"])


def _entry(name: str, value: Any, base: Base) -> Entry:
    what = _shown(name)
    _expect(_is_name(name) and isinstance(value, dict), what)
    kind, places, values = value["kind"], value["places"], value["values"]
    _expect(kind in ("exact", "real", "new") and isinstance(places, str) and isinstance(values, str), what)
    facts = _facts(name, value, base, what)
    if facts.dtype not in _DTYPES:
        raise _WrongError(f"{what}: {facts.dtype!r:.50} is no tensor type of a delta; expected one of {', '.join(_DTYPES)}")
    dtype, shape = _DTYPES[facts.dtype], torch.Size(facts.shape)
    rects: tuple[Rect, ...] = ()
    if places == "blocks":
        rects = _rects(value["rects"], shape, what)
        count = Blocks(rects).count
    elif places == "dense":
        count = shape.numel()
    else:
        _expect(places in CODINGS, f"the coding {places!r:.50} of {what}")
        count = value["count"]
        _expect(_is_count(count) and count <= shape.numel(), f"the count of {what}")
    expected = {"new": "plain", "exact": f"bits{8 * dtype.itemsize}"}.get(kind)
    low_rank = values == "lowrank" and places == "dense"
    known = low_rank or (values in KINDS and not values.startswith("bits"))
    _expect(values == expected if expected else known, f"the value type of {what}")
    _expect(kind != "real" or facts.dtype not in _NO_NUMBERS, f"a difference in numbers of {what}, {facts.dtype},")
    _expect(kind != "new" or places == "dense", what)
    scaled = values in KINDS and KINDS[values].scaled
    group = value.get("group", 0)
    _expect(_is_count(group) and (group > 0 or "group" not in value) and (scaled or not group), f"the group of {what}")
    rank, scale = _rank_and_scale(value, what) if low_rank else (0, 1.0)
    entry = Entry(kind, dtype, shape, places, count, values, group, rects, _parts(value["parts"], what), rank, scale)
    wanted = {"values"} | ({"places"} if places in CODINGS else set()) | ({"scales"} if scaled else set())
    _expect(set(entry.parts) == ({"left", "right"} if low_rank else wanted), f"the parts of {what}")
    plain = [p for name, p in entry.parts.items() if name == "scales" or kind == "new" or low_rank]
    _expect(all(p.compression == "none" for p in plain), f"the compression of {what}")
    fields = {"kind", "places", "values", "parts"} | ({"dtype", "shape"} if kind == "new" else set())
    fields |= {"group"} if scaled else {"rank", "scale"} if low_rank else set()
    _expect_only(value, fields | ({"rects"} if rects else {"count"} if places in CODINGS else set()), what)
    return entry


def _rank_and_scale(value: dict[str, Any], what: str) -> tuple[int, float]:
    rank, scale = value["rank"], value["scale"]
    _expect(_is_count(rank) and rank > 0, f"the rank of {what}")
    # A whole number may be too large for a float.
    _expect(type(scale) is float or (type(scale) is int and abs(scale) <= 2**53), f"the scale of {what}")
    _expect(math.isfinite(scale), f"the scale of {what}")
    return rank, float(scale)


def _facts(name: str, value: Any, base: Base, what: str) -> TensorFacts:
    """Type and shape of a changed tensor, or part of one; of a new one as it says itself."""
    whole, index = split_part(name)
    try:
        there = base.facts(name)
    except KeyError:
        there = None
    part = index >= 0 and name not in base.tensors and whole in base.tensors
    if value["kind"] == "new":
        _expect(not part and isinstance(value["dtype"], str), what)
        return TensorFacts(value["dtype"], tuple(_shape(value["shape"], what)), "")
    if there is None:
        raise _WrongError(f"{what} is no tensor of its base")
    _expect(not part or name == f"{whole}[{index}]", f"the number of {what}")  # x[01] would be x[1] once more
    return there


def _rects(value: Any, shape: torch.Size, what: str) -> tuple[Rect, ...]:
    _expect(isinstance(value, list) and len(value) > 0, f"a block of {what}")
    for bounds in value:
        _expect(isinstance(bounds, list) and len(bounds) == 4 and all(map(_is_count, bounds)), f"a block of {what}")
    rects = tuple(Rect(*bounds) for bounds in value)
    try:
        Blocks(rects).check(shape, what)
    except DeltaError as error:
        raise _WrongError(str(error)) from None
    return rects


def _parts(value: Any, what: str) -> dict[str, Part]:
    _expect(isinstance(value, dict), what)
    parts = {}
    for name, part in value.items():
        _expect(name in _PARTS and isinstance(part, list) and len(part) == 3, f"part {name!r:.50} of {what}")
        compression, raw_bytes, digest = part
        _expect(compression in ("none", "zstd") and _is_count(raw_bytes) and _is_hash(digest), f"part {name!r} of {what}")
        parts[name] = Part(compression, raw_bytes, digest)
    return parts


def _shape(value: Any, what: str) -> list[int]:
    what = f"the shape of {what}"
    _expect(isinstance(value, list) and len(value) <= _MOST_DIMENSIONS and all(map(_is_count, value)), what)
    _expect(math.prod(max(n, 1) for n in value) <= MOST_ENTRIES, what)  # its strides, too, beside a dimension of 0
    return value


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST_ENTRIES


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and _TEXT.fullmatch(value) is not None


def _shown(name: str) -> str:
    """For messages: as it is, unless it could not be printed."""
    return f"'{name:.200}'" if _is_text(name) else f"{name!a:.200}"


def _is_name(value: Any) -> bool:
    return _is_text(value) and value != ""


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 32 and set(value) <= set("0123456789abcdef")
