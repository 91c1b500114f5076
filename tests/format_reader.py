"""A second reader of delta files, written from docs/format.md alone, to test that it says enough. It trusts the file."""

import json
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zstandard

Array = np.ndarray[Any, Any]
WIDTHS = {"BOOL": 1, "U8": 1, "F8_E4M3": 1, "F16": 2, "BF16": 2, "F32": 4, "I64": 8}
NAMES = {"bool": "BOOL", "uint8": "U8", "int64": "I64", "float16": "F16", "bfloat16": "BF16", "float32": "F32"}
NAMES |= {"float8_e4m3fn": "F8_E4M3"}


class Stored(NamedTuple):
    kind: str
    bits: Array  # as integers of its width


def read_safetensors(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        bits = np.frombuffer(data[start:stop], f"<i{WIDTHS[entry['dtype']]}").reshape(entry["shape"])
        tensors[name] = Stored(entry["dtype"], bits)
    return tensors, metadata


def read_delta(path: Path, base: dict[str, Stored]) -> dict[str, Stored]:
    index = path / "delta.safetensors.index.json"
    opened = [read_safetensors(path / n) for n in (json.loads(index.read_text())["shards"] if path.is_dir() else [""])]
    manifests = [json.loads(metadata["paring.delta"]) for _, metadata in opened]
    listed, tied = manifests[0]["base"]["tensors"], manifests[0]["base"]["tied"]
    prefix, longer = _prefix(set(listed), set(base))
    after = {name: tensor for name, tensor in base.items() if name not in manifests[0]["removed"]}
    for (stored, _), manifest in zip(opened, manifests, strict=True):
        for name, entry in manifest["tensors"].items():
            if entry["values"] == "lowrank":
                left, right = (_numbers(*reversed(stored[f"{name}:{side}"])) for side in ("left", "right"))
                parts = {"product": (np.float32(entry["scale"]) * (left @ right)).astype(np.float32).tobytes()}
            else:
                parts = {part: _payload(stored[f"{name}:{part}"], packed) for part, packed in entry["parts"].items()}
            if entry["kind"] == "new":
                after[name] = stored[f"{name}:values"]
                continue
            found = re.fullmatch(r"(.+)\[(\d{1,9})\]", name)
            whole, index = (found[1], int(found[2])) if found and name not in listed else (name, None)
            there = prefix + whole if longer else whole.removeprefix(prefix)
            if there not in base:
                there = next(alias for alias, to in tied.items() if to == whole)
            kind, bits = NAMES[listed[whole][0]], after[there].bits.copy()
            part = bits if index is None else bits[index]
            part[...] = _changed(kind, part, entry, parts)
            after[there] = Stored(kind, bits)
    return after


def _prefix(names: set[str], there: set[str]) -> tuple[str, bool]:
    tried = [("", True)] + [(n.split(".")[0] + ".", True) for n in sorted(there) if "." in n]
    tried += [(n.split(".")[0] + ".", False) for n in sorted(names) if "." in n]
    counts = [
        sum((p + n in there) if longer else (n.startswith(p) and n[len(p) :] in there) for n in names) for p, longer in tried
    ]
    return tried[counts.index(max(counts))]


def _payload(stored: Stored, packed: list[Any]) -> bytes:
    raw = stored.bits.tobytes()
    if packed[0] == "zstd":
        raw = zstandard.ZstdDecompressor().decompress(raw)
    assert len(raw) == packed[1]
    return raw


def _changed(kind: str, before: Array, entry: dict[str, Any], parts: dict[str, bytes]) -> Array:
    at = _positions(entry, parts, before.shape)
    out = before.reshape(-1).copy()
    if entry["kind"] == "exact":
        z = _planes(parts["values"], at.size, out.itemsize)
        d = (z.view(f"u{z.itemsize}") >> 1).view(z.dtype) ^ -(z & 1)
        out[at] = _turned(_turned(out[at], kind) + d, kind)
    else:
        out[at] = _rounded(_numbers(out[at], kind) + _values(entry, parts, at.size), kind)
    return out.reshape(before.shape)


def _turned(bits: Array, kind: str) -> Array:
    last = 8 * bits.itemsize - 1
    return bits ^ ((bits >> last) & np.array(2**last - 1, bits.dtype)) if kind[0] in "FB" and kind != "BOOL" else bits


def _positions(entry: dict[str, Any], parts: dict[str, bytes], shape: tuple[int, ...]) -> Array:
    numel = int(np.prod(shape))
    if entry["places"] == "dense":
        return np.arange(numel)
    if entry["places"] == "blocks":
        grid = np.arange(numel).reshape(shape[0] if shape else 1, -1)
        return np.concatenate([grid[a:b, c:d].reshape(-1) for a, b, c, d in entry["rects"]])
    if entry["places"] == "mask":
        return np.flatnonzero(_bits(parts["places"])[:numel])
    raw, count = parts["places"], entry["count"]
    low, row = raw[0], -(-count // 8)
    gaps = sum((_bits(raw[1 + b * row :][:row])[:count].astype(np.int64) << b for b in range(low)), np.zeros(count, np.int64))
    numbers, high = [], 0
    for byte in raw[1 + low * row :]:
        high += byte
        if byte < 255:
            numbers.append(high)
            high = 0
    return np.cumsum(gaps + (np.array(numbers, np.int64) << low) + 1) - 1


def _values(entry: dict[str, Any], parts: dict[str, bytes], n: int) -> Array:
    if entry["values"] == "lowrank":
        return np.frombuffer(parts["product"], np.float32)
    kind, raw = entry["values"], parts["values"]
    if kind in ("fp32", "bf16", "fp16"):
        return _numbers(_planes(raw, n, 4 if kind == "fp32" else 2), {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}[kind])
    if kind == "int8":
        q = np.frombuffer(raw, np.int8)
    elif kind == "int4":
        both = np.frombuffer(raw, np.uint8)
        q = np.stack([both & 15, both >> 4], 1).reshape(-1)[:n].astype(np.int8)
        q = np.where(q > 7, q - 16, q)
    else:
        q = 1 - 2 * _bits(raw)[:n].astype(np.int8)
    scales = _numbers(np.frombuffer(parts["scales"], "<i2"), "BF16")
    return q.astype(np.float32) * scales[np.arange(n) // entry.get("group", max(n, 1))]


def _bits(raw: bytes) -> Array:
    return np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")


def _planes(raw: bytes, n: int, width: int) -> Array:
    return np.frombuffer(np.frombuffer(raw, np.uint8).reshape(width, n).T.tobytes(), f"<i{width}")


def _numbers(bits: Array, kind: str) -> Array:
    if kind == "BF16":
        return (bits.astype(np.int32) << 16).view(np.float32)
    return bits.view({"F16": np.float16, "F32": np.float32}[kind]).astype(np.float32)


def _rounded(total: Array, kind: str) -> Array:
    if kind == "BF16":  # to nearest, ties to even
        bits = total.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(np.int16)
    return total.astype({"F16": np.float16, "F32": np.float32}[kind]).view({"F16": np.int16, "F32": np.int32}[kind])
