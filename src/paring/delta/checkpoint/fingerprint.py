"""Content hashes: of a tensor, of every tensor of a checkpoint (at disk speed, remembered), of all of them together."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from paring.delta.checkpoint.read import Checkpoint
from paring.delta.checkpoint.tensorinfo import raw_bytes
from paring.delta.checkpoint.torchfile import flat_pieces
from paring.delta.errors import DeltaError
from paring.files import cache_folder, write_bytes

_HASH_BYTES = 16
# Two threads: 7.5 GB/s against 4.8 with one, on two cores. Pieces of 2 and 4 MiB take 0.9 times as long as those of 1 MiB, in
# which more of the time goes to Python, and of 8 MiB, which leave the CPU's caches.
_PIECE_BYTES, _THREADS = 1 << 21, 2
_CACHE_FORMAT = 1

State = list[tuple[str, int, int, int]]  # of a checkpoint's files, see Checkpoint.state


def tensor_hash(pieces: Iterable[Tensor]) -> str:
    """A hash of a tensor's bytes, given in parts: the first 16 bytes of their BLAKE3, as 32 hexadecimal digits.

    The bytes are those a safetensors file has: row major, little-endian. How they are cut into parts makes no difference,
    nor do dtype and shape.
    """
    hasher = blake3()
    for piece in pieces:
        hasher.update(raw_bytes(piece))
    return str(hasher.hexdigest(_HASH_BYTES))


def hashed(pieces: Iterable[Tensor], done: Callable[[str], None]) -> Iterator[Tensor]:
    """The same pieces; when the last one has been used, ``done`` is told the ``tensor_hash`` of all."""
    hasher = blake3()
    for piece in pieces:
        hasher.update(raw_bytes(piece))
        yield piece
    done(str(hasher.hexdigest(_HASH_BYTES)))


def module_hash(tensor: Tensor) -> str:
    """``tensor_hash`` of a tensor in memory, of any strides and on any device, without a full copy of it.

    Raises:
        DeltaError: it is sparse, quantized, or on the meta device.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        what = "quantized" if tensor.is_quantized else f"of layout {tensor.layout} on {tensor.device}"
        raise DeltaError(f"a tensor {what} has no plain bytes to be known by; expected a dense one that holds values")
    return tensor_hash(flat_pieces(tensor.detach().resolve_conj().resolve_neg(), 4 * _PIECE_BYTES))


def total(entries: Mapping[str, tuple[str, Sequence[int], str]]) -> str:
    """One hash of names, dtypes, shapes and hashes of tensors: 32 hexadecimal digits.

    It is the first 16 bytes of the BLAKE3 of this text: the JSON array of ``[name, dtype, shape, hash]`` for every tensor,

    - in ascending order of the names' Unicode code points;
    - dtype: PyTorch's name without "torch." (``"bfloat16"``); shape: an array of integers; hash: that of ``tensor_hash``;
    - no spaces or line breaks between tokens;
    - in ASCII: ``"`` and ``\\`` are written ``\\"`` and ``\\\\``; backspace, form feed, line feed, carriage return and tab
      ``\\b \\f \\n \\r \\t``; every other character outside U+0020 … U+007E ``\\uXXXX`` with four lower-case hexadecimal
      digits, one above U+FFFF as its two UTF-16 surrogates.

    So ``total({})`` is that of ``[]``, and one scalar gives ``[["a","float32",[],"…32 digits…"]]``.

    Args:
        entries: name -> (dtype, shape, hash).
    """
    rows = [[name, dtype, [int(n) for n in shape], digest] for name, (dtype, shape, digest) in sorted(entries.items())]
    return str(blake3(json.dumps(rows, ensure_ascii=True, separators=(",", ":")).encode("ascii")).hexdigest(_HASH_BYTES))


def fingerprint(
    checkpoint: Checkpoint, *, cache: bool = True, known: Mapping[str, str] | None = None, since: State | None = None
) -> dict[str, str]:
    """The hash of every tensor, by name, in the order of the names.

    Args:
        cache: whether hashes are taken from, and put into, a file that is valid as long as the checkpoint's files have the
            same paths, sizes and times of change. A damaged one counts as none.
        known: hashes that were made while tensors were read for something else, ``since`` the files were in that state.
    """
    before = since or checkpoint.state()
    if cache and (found := remembered(checkpoint)) is not None:
        return found
    # The largest first, so that the two threads end at about the same time.
    hashes = dict(known or {})
    order = sorted((n for n in checkpoint.names if n not in hashes), key=lambda name: -checkpoint.info(name).nbytes)
    with ThreadPoolExecutor(_THREADS) as pool:
        found_now = pool.map(lambda name: tensor_hash(checkpoint.pieces(name, _PIECE_BYTES)), order)
        hashes |= dict(zip(order, found_now, strict=True))
    hashes = {name: hashes[name] for name in checkpoint.names}
    if cache:
        remember(checkpoint, hashes, before)
    return hashes


def remembered(checkpoint: Checkpoint) -> dict[str, str] | None:
    """What ``fingerprint`` would give, if it is known already."""
    state = checkpoint.state()
    return _cached(_cache_path(state), state, checkpoint.names)


def remember(checkpoint: Checkpoint, hashes: Mapping[str, str], before: State) -> None:
    """Keeps the hashes of all tensors for later; ``before``: the checkpoint's state before they were taken."""
    if checkpoint.state() != before:  # someone wrote to it meanwhile
        return
    content = {"format": _CACHE_FORMAT, "files": before, "hashes": {name: hashes[name] for name in checkpoint.names}}
    with suppress(OSError):  # a cache that cannot be written costs time, next time
        write_bytes(_cache_path(before), json.dumps(content).encode())


def _cache_path(state: State) -> Path:
    """By the paths alone: a checkpoint that changes has one file here, not one more each time."""
    key = blake3("\n".join(path for path, *_ in state).encode("utf-8", "surrogateescape")).hexdigest(_HASH_BYTES)
    return cache_folder() / "fingerprints" / f"{key}.json"


def _cached(path: Path, state: State, names: list[str]) -> dict[str, str] | None:
    try:
        content: Any = json.loads(path.read_bytes())
        if content["format"] != _CACHE_FORMAT or [tuple(f) for f in content["files"]] != state:
            return None
        hashes = content["hashes"]
        good = list(hashes) == names and all(len(bytes.fromhex(h)) == _HASH_BYTES for h in hashes.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return dict(hashes) if good else None
