"""One change to what is stored of it, and back; which codec takes which part."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paring.delta.blocks import Rect
from paring.delta.change import SCATTERED_BELOW, Change
from paring.delta.checkpoint.fingerprint import tensor_hash
from paring.delta.codec.compression import pack
from paring.delta.codec.positions import decode_positions, encode_positions, unpack_mask
from paring.delta.codec.values import KINDS, decode_values, encode_values
from paring.delta.codec.zeros import with_zeros, without_zeros
from paring.delta.errors import DeltaError
from paring.delta.factors import LowRank
from paring.delta.manifest import Entry, Part
from paring.delta.places import Blocks, Everywhere, Places, Scattered

_MASKED_BELOW = 0.8  # of exact differences everywhere, the share that is not zero below which zeros are left out of a file
_MASKED_FROM = 4096  # entries: with fewer, what the file's header says of the mask costs more


@dataclass(frozen=True)
class Encoded:
    """What the manifest says of a change, and its stored tensors by part."""

    entry: Entry
    stored: Mapping[str, Tensor]

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.itemsize for t in self.stored.values())


def at_positions(changed: int, numel: int) -> bool:
    """Whether an exact difference that is to be stored is better kept, on the way, at positions than whole with its zeros.

    From 5 % on a mask is made of the zeros, in a third of the time; but small tensors have none.
    """
    return changed < (0.05 if numel >= _MASKED_FROM else SCATTERED_BELOW) * numel


def encode(change: Change, values: str, group: int, where: str, compression: str = "zstd") -> Encoded:
    """Codes a change.

    Args:
        values, group: how differences in numbers are stored, see ``save_delta``; exact and new ones have their own.
        where: names the tensor in errors.
        compression: "none": nothing is compressed, and of exact differences everywhere zeros are not left out either.
    """
    stored: dict[str, Tensor] = {}
    parts: dict[str, Part] = {}

    def keep(part: str, tensor: Tensor, used: str, raw_bytes: int) -> None:
        stored[part] = tensor
        parts[part] = Part(used, raw_bytes, tensor_hash([tensor]))

    places: str = "dense"
    rects: tuple[Rect, ...] = ()
    count, numbers = change.places.count, change.values
    if isinstance(change.places, Blocks):
        places, rects = "blocks", change.places.rects
    elif isinstance(change.places, Scattered):
        coded = encode_positions(change.places.positions, change.shape.numel(), compression)
        places = coded.coding
        keep("places", torch.from_numpy(coded.stored), coded.compression, coded.raw_bytes)
    elif compression != "none" and _mostly_zero(change):
        mask, numbers = without_zeros(numbers.cpu())
        places, count = "mask", numbers.numel()
        stored_mask, used = pack(mask)
        keep("places", torch.from_numpy(stored_mask), used, mask.size)
    if change.kind == "new":
        keep(
            "values", change.values.view(change.shape).contiguous().cpu(), "none", change.values.numel() * change.dtype.itemsize
        )
        values, group = "plain", 0
    else:
        if change.kind == "exact":
            values = f"bits{8 * change.dtype.itemsize}"
        group = group if values in KINDS and KINDS[values].scaled else 0
        made = encode_values(numbers, values, group, where=where, compression=compression)
        keep("values", torch.from_numpy(made.stored), made.compression, made.raw_bytes)
        if made.scales is not None:
            keep("scales", made.scales, "none", made.scales.numel() * made.scales.itemsize)
    entry = Entry(change.kind, change.dtype, change.shape, places, count, values, group, rects, parts)
    return Encoded(entry, stored)


def _mostly_zero(change: Change) -> bool:
    """Whether an exact change, of all entries, is smaller with a mask of those that change."""
    if change.kind != "exact" or change.values.numel() < _MASKED_FROM:
        return False
    return bool(np.count_nonzero(change.values.cpu().numpy()) < _MASKED_BELOW * change.values.numel())


def decode(entry: Entry, stored: Mapping[str, Tensor], where: str) -> Change:
    """The change that ``entry`` and its stored tensors say.

    Raises:
        DeltaError: a hash is wrong, or the two contradict each other. Nothing large is allocated on a claim alone.
    """
    _check_stored(entry, stored, where)
    if entry.kind == "new":
        values = stored["values"]
        if values.dtype != entry.dtype or values.shape != entry.shape:
            raise DeltaError(f"{where}: the stored tensor is {list(values.shape)} {values.dtype}, the manifest says otherwise")
        return Change(entry.shape, entry.dtype, "new", Everywhere(entry.count), values.view(-1))
    coded = entry.parts["values"]
    values = decode_values(
        entry.values,
        _raw(stored["values"], "values", where),
        coded.compression,
        coded.raw_bytes,
        entry.count,
        entry.group,
        stored.get("scales"),
        where,
    )
    numel = entry.shape.numel()
    if entry.kind == "exact" and entry.places == "mask" and entry.count >= SCATTERED_BELOW * numel:
        packed = entry.parts["places"]
        mask = unpack_mask(_raw(stored["places"], "places", where), packed.compression, packed.raw_bytes, numel, where)
        return Change(entry.shape, entry.dtype, "exact", Everywhere(numel), with_zeros(mask, values, numel, where))
    return Change(entry.shape, entry.dtype, entry.kind, _places(entry, stored, where), values)


def encode_factors(low: LowRank, shape: torch.Size, dtype: torch.dtype, where: str) -> Encoded:
    """Factors as they are."""
    low.check(shape, where)
    stored = {part: tensor.cpu().contiguous() for part, tensor in (("left", low.B), ("right", low.A))}
    parts = {part: Part("none", t.numel() * t.itemsize, tensor_hash([t])) for part, t in stored.items()}
    entry = Entry("real", dtype, shape, "dense", shape.numel(), "lowrank", parts=parts, rank=low.rank, scale=low.scale)
    return Encoded(entry, stored)


def decode_factors(entry: Entry, stored: Mapping[str, Tensor], where: str) -> LowRank:
    """The factors that ``entry`` and its stored tensors say. Raises as ``decode``."""
    _check_stored(entry, stored, where)
    low = LowRank(stored["left"], stored["right"], entry.scale)
    if stored["right"].ndim != 2 or low.rank != entry.rank:
        raise DeltaError(f"{where}: its right factor is {list(stored['right'].shape)}; expected rank {entry.rank}")
    low.check(entry.shape, where)
    return low


def _check_stored(entry: Entry, stored: Mapping[str, Tensor], where: str) -> None:
    for part, tensor in stored.items():
        claimed = entry.parts[part]
        if tensor_hash([tensor]) != claimed.hash:
            raise DeltaError(f"{where}: the stored {part} are damaged (their hash differs); fetch or write the file again")
        size = tensor.numel() * tensor.itemsize
        if claimed.compression == "none" and claimed.raw_bytes != size:
            raise DeltaError(f"{where}: {size:,} bytes of {part} are stored, the manifest says {claimed.raw_bytes:,}")


def _places(entry: Entry, stored: Mapping[str, Tensor], where: str) -> Places:
    if entry.places == "dense":
        return Everywhere(entry.count)
    if entry.places == "blocks":
        return Blocks(entry.rects)
    part = entry.parts["places"]
    return Scattered(
        decode_positions(
            entry.places,
            _raw(stored["places"], "places", where),
            part.compression,
            part.raw_bytes,
            entry.count,
            entry.shape.numel(),
            where,
        )
    )


def _raw(tensor: Tensor, part: str, where: str) -> memoryview:
    if tensor.dtype != torch.uint8 or tensor.ndim != 1:
        raise DeltaError(f"{where}: the stored {part} are {list(tensor.shape)} {tensor.dtype}; expected bytes in a row")
    return tensor.numpy().data
