"""Delta files made wrong: in their bytes, their JSON, and in stored parts whose hashes are then made right again.

``mutated(random, ...)`` gives the bytes of a file (or the files of a set) and says what was done to it. The same random
stream gives the same bytes.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import zstandard
from blake3 import blake3

from paring.delta.checkpoint.fingerprint import total

DEEP = "@deep@"  # stands for very deep nesting, which json.dumps cannot write
NAMES = [
    "",
    "a",
    "w:values",
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    "C:\\a",
    "a\x00b",
    "\x1b[2J",
    "\ud800",
    "a\udcffb",
    "é" * 300,
]
NAMES += [
    "n" * 5000,
    "embed.weight",
    "model.embed.weight",
    "experts",
    "experts[1]",
    "experts[01]",
    "experts[999999999]",
    "old.bias",
]
NAMES += [
    "experts[0][1]",
    "classifier.weight",
    "delta-00001-of-00003.safetensors",
    "a.safetensors",
    "__metadata__",
    "paring.delta",
]
WORDS = [
    "exact",
    "real",
    "new",
    "dense",
    "blocks",
    "mask",
    "gaps",
    "plain",
    "bits8",
    "bits16",
    "bits32",
    "bits64",
    "fp32",
    "bf16",
]
WORDS += [
    "lowrank",
    "left",
    "right",
    "fp16",
    "int8",
    "int4",
    "sign",
    "none",
    "zstd",
    "float32",
    "bfloat16",
    "float16",
    "complex64",
    "complex128",
    "bool",
]
WORDS += [
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
    "quint8",
    "half",
    "load",
    "__class__",
    "F32",
    "BF16",
    "U8",
    "F4",
    "C64",
    "0" * 32,
]
NUMBERS: list[Any] = [0, 1, 2, 3, 7, 8, 16, 17, 64, 255, 256, 1280, 2**24, 2**31 - 1, 2**31, 2**32, 2**48, 2**48 + 1, 2**63 - 1]
NUMBERS += [2**63, 2**64, 10**30, 10**400, -1, -8, -(2**31), -(2**63), 0.0, 1.0, -0.0, 1.5, 1e308, float("nan"), float("inf")]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [0], [1, 2], [0, 0, 0, 0], {"a": 1}, [2**24, 2**24], [0] * 70, DEEP]
HOSTILE = NAMES + WORDS + NUMBERS + OTHERS


@dataclass
class File:
    """A delta file taken apart: its manifest, and (type, shape, bytes) of each stored tensor."""

    manifest: Any
    stored: dict[str, tuple[Any, Any, bytes]]

    @staticmethod
    def parse(content: bytes) -> "File":
        length = int.from_bytes(content[:8], "little")
        header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
        manifest = json.loads(header.pop("__metadata__")["paring.delta"])
        return File(manifest, {n: (e["dtype"], e["shape"], data[slice(*e["data_offsets"])]) for n, e in header.items()})

    def copy(self) -> "File":
        return File(json.loads(json.dumps(self.manifest)), dict(self.stored))

    def signed(self) -> "File":
        """With every hash made right, as far as there are fields to hold them."""
        for name, entry in _items(self.manifest, "tensors"):
            for part, packed in _items(entry, "parts"):
                if f"{name}:{part}" in self.stored and isinstance(packed, list) and len(packed) == 3:
                    packed[2] = blake3(self.stored[f"{name}:{part}"][2]).hexdigest(16)
        try:
            base = self.manifest["base"]
            base["total"] = total({n: (d, s, h) for n, (d, s, h) in base["tensors"].items()})
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
            pass
        return self

    def header(self) -> dict[str, Any]:
        header: dict[str, Any] = {"__metadata__": {"paring.delta": _dumps(self.manifest)}}
        start = 0
        for name, (dtype, shape, raw) in self.stored.items():
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + len(raw)]}
            start += len(raw)
        return header

    def build(self, header: dict[str, Any] | None = None, edit: Callable[[str], str] = str) -> bytes:
        text = edit(_dumps(self.header() if header is None else header)).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(text)) + text + b"".join(raw for _, _, raw in self.stored.values())


def _dumps(value: Any) -> str:
    return json.dumps(value).replace(f'"{DEEP}"', "[" * 100_000)


def _items(value: Any, field: str) -> list[tuple[str, Any]]:
    inner = value.get(field) if isinstance(value, dict) else None
    return list(inner.items()) if isinstance(inner, dict) else []


# Bytes and JSON.


def bytes_changed(random: Random, content: bytes) -> bytes:
    at, size = random.randrange(len(content)), random.choice([1, 1, 2, 8, 100])
    if random.random() < 0.4:  # in the header, where more is told
        at = random.randrange(min(len(content), 8 + int.from_bytes(content[:8], "little")))
    some = random.choice([b"\0" * size, b"\xff" * size, random.randbytes(size), content[:size]])
    return random.choice(
        [
            content[:at],
            content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :],
            content[:at] + some + content[at + size :],
            content[:at] + some + content[at:],
            content[:at] + content[at + size :],
            content + some,
            struct.pack("<Q", random.choice([0, 1, 8, len(content), 2**31, 2**63, 2**64 - 1])) + content[8:],
        ]
    )


def tree_changed(random: Random, root: Any) -> Any:
    """A JSON value with one node replaced, removed, doubled, renamed or exchanged with another."""
    nodes: list[tuple[Any, Any]] = []
    todo = [root]
    while todo:
        value = todo.pop()
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            nodes.append((value, key))
            if isinstance(value[key], dict | list):
                todo.append(value[key])
    if not nodes:
        return random.choice(HOSTILE)
    home, key = random.choice(nodes)
    action = random.choice(["hostile", "hostile", "near", "near", "remove", "swap", "name", "double", "root"])
    if action == "root" and random.random() < 0.05:
        return random.choice(HOSTILE)
    if action == "near" and type(home[key]) is int:
        home[key] = random.choice([home[key] + 1, home[key] - 1, 2 * home[key], -home[key], home[key] + 2**32, 8 * home[key]])
    elif action == "remove":
        del home[key]
    elif action == "swap":
        other, where = random.choice(nodes)
        home[key], other[where] = json.loads(json.dumps(other[where])), json.loads(json.dumps(home[key]))
    elif action == "name" and isinstance(home, dict):
        home[random.choice(NAMES)] = home.pop(key)
    elif action == "double" and isinstance(home, list):
        home.insert(key, home[key])
    else:
        home[key] = random.choice(HOSTILE)
    return root


def text_changed(random: Random, text: str) -> str:
    """JSON text with a token in the wrong place: names twice, numbers that are none, brackets without end."""
    at = random.randrange(len(text))
    tokens = [
        '"',
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\\",
        "NaN",
        "-Infinity",
        "1e999",
        "-",
        "0",
        "00",
        "null",
        "[" * 5000,
        '{"a":' * 5000,
    ]
    tokens += ["\ud800", "\\ud800", "\x00", "9" * 5000, "//", "\ufeff", " "]
    if random.random() < 0.4:
        field = random.choice(["tensors", "format", "parts", "kind", "base", "w", "dtype", "shape", "facts", "count"])
        quote = '\\"' if random.random() < 0.7 else '"'
        return text.replace(f"{quote}{field}{quote}:", f"{quote}{field}{quote}:{random.randrange(3)},{quote}{field}{quote}:", 1)
    return text[:at] + random.choice(tokens) + text[at + random.randrange(2) :]


# Stored parts, whose hashes are then right.


def part_changed(random: Random, file: File) -> None:
    """Another payload for one part, packed in one way or another."""
    changed = [(n, e) for n, e in file.manifest["tensors"].items() if e["parts"]]
    name, entry = random.choice(changed)
    part = random.choice(list(entry["parts"]))
    compression, raw_bytes, _ = entry["parts"][part]
    dtype, shape, raw = file.stored[f"{name}:{part}"]
    if compression == "zstd":
        raw = zstandard.ZstdDecompressor().decompress(raw)
    payload = _payload(random, raw, part == "scales")
    if entry["kind"] == "new" or part == "scales":
        width = max(1, len(raw) // (shape[0] if shape and shape[0] else 1))
        same = len(payload) == len(raw) and random.random() < 0.8
        dtype = dtype if same else random.choice([dtype, "F16", "U8", "I8", "BOOL", "F8_E4M3"])
        shape = shape if same else random.choice([[len(payload)], [len(payload) // width], [1, len(payload)], shape])
        file.stored[f"{name}:{part}"] = dtype, shape, payload
        entry["parts"][part] = [random.choice(["none"] * 5 + ["zstd"]), random.choice([len(payload), raw_bytes]), ""]
        return
    stored, how = _packed(random, payload)
    claimed = random.choice([len(payload)] * 4 + [raw_bytes, len(stored), len(payload) + 1, 2**40, 0])
    entry["parts"][part] = [how, claimed, ""]
    file.stored[f"{name}:{part}"] = random.choice([("U8", [len(stored)], stored)] * 12 + [("I8", [1, len(stored)], stored)])


def _payload(random: Random, raw: bytes, scales: bool) -> bytes:
    size = len(raw)
    if scales and random.random() < 0.7:
        numbers = [0x7F80, 0x7FC0, 0xFF80, 0x8000, 0xBF80, 0x7F7F, 0x0001, 0x0000, 0x3F80]
        return b"".join(struct.pack("<H", random.choice(numbers)) for _ in range(size // 2))
    flipped = bytearray(raw)
    for _ in range(random.choice([1, 1, 2, 5])):
        if flipped:
            flipped[random.randrange(size)] ^= 1 << random.randrange(8)
    first = bytes([random.choice([0, 1, 2, 7, 8, 31, 47, 48, 49, 63, 64, 255])]) + raw[1:]
    return random.choice(
        [
            bytes(flipped),
            bytes(flipped),
            random.randbytes(size),
            b"\0" * size,
            b"\xff" * size,
            first,
            raw[:-1],
            raw + b"\0",
            raw + b"\xff" * random.choice([1, 500, 5000]),
            raw[::-1],
            b"",
        ]
    )


def _packed(random: Random, payload: bytes) -> tuple[bytes, str]:
    kind = random.randrange(16)
    if kind < 8:
        return payload, "none"
    frame = zstandard.ZstdCompressor(
        level=random.choice([1, 19]), write_content_size=kind != 8, write_checksum=kind == 9
    ).compress(payload or b"\0")
    if kind == 10:  # a claim of much more
        frame = b"\x28\xb5\x2f\xfd" + bytes([0xE0]) + struct.pack("<Q", random.choice([2**20, 2**30, 2**40, 2**63])) + frame[6:]
    elif kind == 11:
        frame = zstandard.ZstdCompressor().compress(b"\0" * random.choice([1 << 20, 40 << 20]))
    elif kind == 12:
        frame = random.choice([frame + frame, b"\x50\x2a\x4d\x18\4\0\0\0abcd" + frame, frame + b"\x50\x2a\x4d\x18\0\0\0\0"])
    elif kind == 13:  # a window of 2**28 bytes; a dictionary
        size = struct.pack("<Q", len(payload))
        frame = b"\x28\xb5\x2f\xfd" + random.choice([b"\xc0\x90" + size, b"\xc1\x40\x07" + size]) + frame[6:]
    elif kind == 14:
        frame = bytes_changed(random, frame)
    return frame, random.choice(["zstd"] * 6 + ["none"])


def bomb(random: Random, file: File) -> None:
    """A tensor that claims to be large, by itself without contradiction."""
    old = [(n, e) for n, e in file.manifest["tensors"].items() if n in file.manifest["base"]["tensors"]]
    if not old:
        return
    name, entry = random.choice(old)
    numel = random.choice([2**16, 2**20, 2**22, 2**26, 2**34, 2**48])
    facts = file.manifest["base"]["tensors"][name]
    facts[1] = random.choice([[numel], [2**8, numel >> 8], [1, numel], [numel, 1, 1]])
    facts[0] = random.choice([facts[0], "float32"])
    raw_bytes, places = numel // 8, random.choice(["mask", "dense", "gaps"])
    frame = _zeros(min(raw_bytes, 1 << 23))
    for part in list(entry["parts"]):
        del file.stored[f"{name}:{part}"]
    new: dict[str, Any] = {"kind": "real", "places": places, "values": "sign", "parts": {}}
    parts = {"scales": b"\x80\x3f", "values": frame}
    if places != "dense":
        new["count"] = random.choice([numel, 8, 0])
        parts["places"] = frame
    for part, raw in parts.items():
        file.stored[f"{name}:{part}"] = ("BF16", [1], raw) if part == "scales" else ("U8", [len(raw)], raw)
        new["parts"][part] = ["none", 2, ""] if part == "scales" else ["zstd", raw_bytes, ""]
    file.manifest["tensors"][name] = new


_FRAMES: dict[int, bytes] = {}


def _zeros(size: int) -> bytes:
    return _FRAMES.setdefault(size, zstandard.ZstdCompressor(level=1).compress(b"\0" * size))


def rects_changed(random: Random, file: File) -> None:
    """Other rectangles, the values being as many as these take."""
    base = file.manifest["base"]["tensors"]
    exact = [(n, e) for n, e in file.manifest["tensors"].items() if e["kind"] == "exact" and n in base]
    if not exact:
        return
    name, entry = random.choice(exact)
    shape = file.manifest["base"]["tensors"][name][1]
    rows, columns = (shape or [1])[0], 1
    for n in shape[1:]:
        columns *= n
    rects = []
    for _ in range(random.choice([1, 2, 2, 3, 8])):
        row, column = random.randrange(rows), random.randrange(columns)
        rects.append([row, random.randint(row, rows + 1), column, random.randint(column, columns + 1)])
    count = sum(max(0, b - a) * max(0, d - c) for a, b, c, d in rects)
    for part in list(entry["parts"]):
        del file.stored[f"{name}:{part}"]
    raw = bytes(count * int(entry["values"].removeprefix("bits")) // 8)
    file.stored[f"{name}:values"] = "U8", [len(raw)], raw
    entry.pop("count", None)
    entry |= {"places": "blocks", "rects": rects, "parts": {"values": ["none", len(raw), ""]}}


def renamed(random: Random, file: File) -> None:
    """One tensor under another name, everywhere it is named."""
    old, new = random.choice(list(file.manifest["tensors"])), random.choice(NAMES)
    for home in (file.manifest["tensors"], file.manifest["base"]["tensors"]):
        if old in home:
            home[new] = home.pop(old)
    file.stored = {(f"{new}:{n.rpartition(':')[2]}" if n.rpartition(":")[0] == old else n): t for n, t in file.stored.items()}


def mixed(random: Random, file: File) -> None:
    """Stored tensors, or what is said of them, in each other's place."""
    a, b = random.choice(list(file.stored)), random.choice(list(file.stored))
    file.stored[a], file.stored[b] = file.stored[b], file.stored[a]
    if random.random() < 0.5:
        x, y = random.choice(list(file.manifest["tensors"])), random.choice(list(file.manifest["tensors"]))
        tensors = file.manifest["tensors"]
        tensors[x], tensors[y] = tensors[y], tensors[x]


PARTS = {"part": part_changed, "bomb": bomb, "rects": rects_changed, "renamed": renamed, "mixed": mixed}
KINDS = ("bytes", "header", "header text", "manifest", "signed manifest", "two in the manifest", *PARTS)
_WEIGHTS = (16, 10, 8, 8, 18, 6, 22, 2, 4, 3, 3)


def mutated(random: Random, file: File) -> tuple[str, bytes]:
    """What was done, and the file."""
    kind = random.choices(KINDS, _WEIGHTS)[0]
    file = file.copy()
    if kind == "bytes":
        content = file.build()
        for _ in range(random.choice([1, 1, 2])):
            content = bytes_changed(random, content) or b"\0"
        return kind, content
    if kind == "header":
        header = tree_changed(random, file.header())
        return kind, file.build(header)
    if kind == "header text":
        return kind, file.build(edit=lambda text: text_changed(random, text))
    if kind in PARTS:
        PARTS[kind](random, file)
        return kind, file.signed().build()
    for _ in range(2 if kind.startswith("two") else 1):
        file.manifest = tree_changed(random, file.manifest) if isinstance(file.manifest, dict | list) else file.manifest
    return kind, (file if kind == "manifest" else file.signed()).build()


def index_mutated(random: Random, index: dict[str, Any]) -> bytes:
    """The index of a set, made wrong."""
    action = random.randrange(3)
    if action == 0:
        return bytes_changed(random, json.dumps(index).encode())
    if action == 1:
        return text_changed(random, json.dumps(index)).encode("utf-8", "surrogatepass")
    return _dumps(tree_changed(random, json.loads(json.dumps(index)))).encode()
