"""A delta as one safetensors file: for each changed tensor its new values, and what the base must be.

    tensors    name -> the values of its blocks one after the other, flat, in the tensor's own dtype
    metadata   "paring" -> JSON: {"format": 1, "tensors": {name: {"shape": [..], "dtype": "bfloat16", "encoding": "blocks",
               "rects": [[row, row_stop, column, column_stop], ..], "base": hash of what stood there before}},
               "fresh": [names of tensors that were not pretrained], "facts": {..}}

What stood there before is not in the file: it is read from the base when the delta is loaded, and its hash must agree.
Reading runs no code, and no length in the file is trusted.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from paring.delta.blocks import Block, Delta, Rect, matrix_shape, read
from paring.delta.hashing import digest
from paring.delta.names import ModelTensors
from paring.files import replacing

FORMAT = 1
_KEY = "paring"


def save_delta(delta: Delta, path: str | Path, facts: Mapping[str, Any] | None = None) -> int:
    """Writes ``delta`` to ``path``, whole or not at all.

    Args:
        delta: from ``session.delta()``.
        path: usually ``….delta.safetensors``.
        facts: plain values to be kept beside it (how it was made), under "facts".

    Returns:
        The size of the file in bytes.
    """
    path = Path(path)
    manifest: dict[str, Any] = {"format": FORMAT, "tensors": {}, "fresh": sorted(delta.fresh), "facts": dict(facts or {})}
    values: dict[str, Tensor] = {}
    for name, blocks in delta.blocks.items():
        values[name] = torch.cat([b.after.reshape(-1) for b in blocks])
        manifest["tensors"][name] = {
            "shape": list(delta.shapes[name]),
            "dtype": _dtype_name(values[name].dtype),
            "encoding": "blocks",
            "rects": [[b.rect.row, b.rect.row_stop, b.rect.column, b.rect.column_stop] for b in blocks],
            "base": "" if name in delta.fresh else digest(b.before for b in blocks),
        }
    with replacing(path) as temporary:
        save_file(values, temporary, {_KEY: json.dumps(manifest)})
    return path.stat().st_size


def load_delta(path: str | Path, base: nn.Module) -> Delta:
    """The delta in ``path``, for the model ``base`` it was made on; nothing is changed: see ``Delta.apply``.

    Raises:
        ValueError: the file is no delta, or a damaged one; or ``base`` is another model. FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no delta file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            manifest = _manifest(path, file.metadata())
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or a damaged one: {error}") from None
    tensors = ModelTensors(base)
    entries, fresh = manifest["tensors"], frozenset(manifest["fresh"])
    if set(entries) != set(values):
        raise ValueError(
            f"{path} is damaged: its manifest names {len(entries)} tensors, it holds {len(values)}, and they differ"
        )
    blocks: dict[str, tuple[Block, ...]] = {}
    for name, entry in entries.items():
        where = f"{path}: '{name}'"
        rects = _rects(where, entry, values[name])
        if name not in tensors:
            raise ValueError(f"{where} is no tensor of this {type(base).__name__}; the delta was made on another model")
        tensor = tensors[name].detach()
        if list(tensor.shape) != entry["shape"] or tensor.dtype != values[name].dtype:
            raise ValueError(
                f"{where} was made on {entry['shape']} {values[name].dtype}, here it is {list(tensor.shape)} {tensor.dtype}"
            )
        before = [read(tensor, rect).cpu() for rect in rects]
        if name not in fresh and digest(before) != entry["base"]:
            raise ValueError(
                f"{where} was made on other values than this model's; load the base it was made on, without another delta on it"
            )
        after = values[name].split([r.shape[0] * r.shape[1] for r in rects])
        blocks[name] = tuple(Block(r, b, a.view(r.shape)) for r, b, a in zip(rects, before, after, strict=True))
    return Delta(blocks, {name: torch.Size(entry["shape"]) for name, entry in entries.items()}, fresh)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _manifest(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    try:
        manifest = json.loads((metadata or {})[_KEY])
        number = manifest["format"]
        assert isinstance(manifest["tensors"], dict) and isinstance(manifest["fresh"], list)
    except (KeyError, TypeError, ValueError, AssertionError):
        raise ValueError(f"{path} is no delta: its metadata has no manifest of paring's") from None
    if number != FORMAT:
        raise ValueError(f"{path} has delta format {number!r}; this version reads format {FORMAT}: update paring")
    return dict(manifest)


def _rects(where: str, entry: Any, values: Tensor) -> list[Rect]:
    """The rectangles of one tensor, checked against its shape, each other and the number of values."""
    try:
        if entry["encoding"] != "blocks":
            raise ValueError(f"{where} has the encoding {entry['encoding']!r}; this version reads 'blocks': update paring")
        extents = matrix_shape(torch.Size(entry["shape"] or (1,)))
        rects = [Rect(*map(int, numbers)) for numbers in entry["rects"]]
        dtype, _ = entry["dtype"], entry["base"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where} is damaged: its manifest entry is incomplete ({error})") from None
    inside = all(0 <= r.row < r.row_stop <= extents[0] and 0 <= r.column < r.column_stop <= extents[1] for r in rects)
    size = sum(r.shape[0] * r.shape[1] for r in rects)
    if not inside or values.ndim != 1 or size != values.numel() or dtype != _dtype_name(values.dtype):
        raise ValueError(f"{where} is damaged: its blocks do not fit its shape {entry['shape']} or its {values.numel()} values")
    if _overlap(rects):
        raise ValueError(f"{where} is damaged: its blocks overlap")
    return rects


def _overlap(rects: list[Rect]) -> bool:
    """Whether any two share an entry: a sweep over the rows, with the column ranges open at each."""
    events = sorted(
        [(r.row, 1, r.column, r.column_stop) for r in rects] + [(r.row_stop, 0, r.column, r.column_stop) for r in rects]
    )
    open_: list[tuple[int, int]] = []
    for _, opens, start, stop in events:
        if not opens:
            open_.remove((start, stop))
        elif any(start < b and a < stop for a, b in open_):
            return True
        else:
            open_.append((start, stop))
    return False
