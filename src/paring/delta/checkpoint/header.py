"""The header of a safetensors file, read without trust and written.

    8 bytes      little-endian length of the header
    header       JSON: {"__metadata__": {str: str}, name: {"dtype": "F32", "shape": [..], "data_offsets": [start, stop]}, ..},
                 with spaces after it to a multiple of 8
    data         the tensors one after the other, row major, little-endian, from the first byte to the last, no hole

The rules are those of the safetensors library, and two more: no name twice, and no shape torch could not hold. They are
checked here rather than by opening the file with the library, because what is read later must be what was checked: one
open file, whose offsets are known, that can be read into a given buffer.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paring.delta.checkpoint.strict import MOST_BYTES, parsed
from paring.delta.checkpoint.tensorinfo import DTYPES, TensorInfo, dtype_name
from paring.delta.errors import DeltaError

METADATA = "__metadata__"
_AGAIN = "the file is damaged or was cut off: fetch or write it again"
_MOST_DIMENSIONS = 64  # torch's kernels go no further; a header could claim millions


_Span = tuple[TensorInfo, int, int]  # and where it begins and ends in the data


@dataclass(frozen=True)
class Header:
    """Tensors in stored order, each with the position of its first byte in the file."""

    infos: dict[str, TensorInfo]
    starts: dict[str, int]
    metadata: dict[str, str]


def read_header(path: Path, fd: int) -> Header:
    """The header of the open file ``fd``; ``path`` names it in errors.

    Raises:
        DeltaError: it breaks a rule of the format, or the file ends too early or too late.
    """
    size = os.fstat(fd).st_size
    if size < 8:
        raise DeltaError(f"{path} is {size} bytes, expected a safetensors file of at least 8; {_AGAIN}")
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    if length > min(MOST_BYTES, size - 8):
        raise DeltaError(
            f"{path} claims a header of {length:,} bytes in a file of {size:,}, expected at most "
            f"{min(MOST_BYTES, size - 8):,}; it is no safetensors file, or {_AGAIN}"
        )
    raw = os.pread(fd, length, 8)
    if not raw.startswith(b"{") or len(raw) < length:
        raise DeltaError(f"{path} has a header that begins with {raw[:1]!r}, expected b'{{'; {_AGAIN}")
    entries = parsed(f"{path}: the header", raw)
    metadata = _metadata(path, entries.pop(METADATA, {}))
    spans = {name: _span(f"{path}: tensor {name!r}", name, entry) for name, entry in entries.items()}
    return _laid_out(path, spans, metadata, 8 + length, size)


def make_header(tensors: Sequence[tuple[str, TensorInfo]], metadata: Mapping[str, str]) -> bytes:
    """Length and header of a file that holds ``tensors`` in this order.

    Raises:
        DeltaError: a dtype that safetensors does not know, metadata that are no texts, or more than a header may hold.
    """
    entries: dict[str, Any] = {}
    if metadata:
        entries[METADATA] = _metadata(Path("the new checkpoint"), dict(metadata))
    start = 0
    for name, info in tensors:
        _refuse_no_unicode(f"tensor {name!r}", name)
        shape = list(info.shape)
        kind = dtype_name(info.dtype)
        if kind == "F4":
            if not shape:
                raise DeltaError(
                    f"tensor {name!r} is a single {info.dtype}, two numbers that have no shape in the format; reshape it"
                )
            shape[-1] *= 2
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, start + info.nbytes]}
        start += info.nbytes
    raw = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    if len(raw) > MOST_BYTES:
        raise DeltaError(
            f"{len(tensors):,} tensors take a header of {len(raw):,} bytes, expected {MOST_BYTES:,}: use more shards"
        )
    return len(raw).to_bytes(8, "little") + raw


def _metadata(path: Path, found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(v, str) and isinstance(k, str) for k, v in found.items()):
        raise DeltaError(f"{path}: {METADATA} holds something else than texts, expected text names with text values; {_AGAIN}")
    return found


def _span(where: str, name: str, entry: Any) -> _Span:
    """What one tensor is, and where it claims to begin and end in the data."""
    _refuse_no_unicode(where[:300], name)
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise DeltaError(f"{where}: got {ascii(entry)[:100]}, expected dtype, shape and data_offsets; {_AGAIN}")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise DeltaError(f"{where} has the dtype {str(kind)[:100]!r}, expected one of {', '.join(DTYPES)}; convert the file")
    if not _are_counts(shape) or len(shape) > _MOST_DIMENSIONS:
        raise DeltaError(
            f"{where} has the shape {ascii(shape)[:100]}, expected at most {_MOST_DIMENSIONS} whole numbers from 0; {_AGAIN}"
        )
    if kind == "F4":
        if not shape or shape[-1] % 2:
            raise DeltaError(f"{where} is F4 of shape {shape}, expected an even last dimension: two numbers share a byte")
        shape = [*shape[:-1], shape[-1] // 2]
    extent = DTYPES[kind].itemsize
    for dim in shape:
        extent *= max(dim, 1)  # what torch's strides would come to, also beside a dimension of 0
    if extent >= 2**63:
        raise DeltaError(
            f"{where} has the shape {ascii(shape)[:100]}, which no memory holds, expected less than 2**63 bytes; {_AGAIN}"
        )
    info = TensorInfo(DTYPES[kind], torch.Size(shape))
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != info.nbytes:
        raise DeltaError(
            f"{where} has data_offsets {ascii(offsets)[:100]}, expected two that span {info.nbytes:,} bytes "
            f"({kind} of shape {entry['shape']}); {_AGAIN}"
        )
    return info, offsets[0], offsets[1]


def _refuse_no_unicode(where: str, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:  # a lone surrogate, which no other program could read
        raise DeltaError(f"{where}: the name is no valid Unicode; rename it") from None


def _are_counts(found: Any) -> bool:
    return isinstance(found, list) and all(type(n) is int and n >= 0 for n in found)


def _laid_out(path: Path, spans: dict[str, _Span], metadata: dict[str, str], data: int, size: int) -> Header:
    """The tensors in stored order, which together are the whole data: no hole, no overlap, nothing before or after."""
    order = sorted(spans, key=lambda name: spans[name][1:])
    position = 0
    for name in order:
        _, start, stop = spans[name]
        if start != position:
            raise DeltaError(
                f"{path}: tensor {name!r} begins at byte {start:,} of the data, expected {position:,}, where the one before "
                f"it ends; {_AGAIN}"
            )
        position = stop
    if data + position != size:
        raise DeltaError(f"{path} is {size:,} bytes long, expected {data + position:,} as its header says; {_AGAIN}")
    return Header({n: spans[n][0] for n in order}, {n: data + spans[n][1] for n in order}, metadata)
