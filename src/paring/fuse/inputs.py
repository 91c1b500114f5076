"""What a merge method is given of one tensor, and how it reads it: in pieces that stay in the cache.

The models' tensors come as they are stored (bf16 from a memory map, say) and are turned into fp32 piece by piece, so that
merging n models needs no fp32 copy of any of them: beside the output a method holds a few pieces of ``PIECE`` entries.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import hardshrink

PIECE = 1 << 18  # entries: a megabyte of fp32; less costs calls, for which threads wait for one another; more leaves the cache
_DEVICE_PIECE = 1 << 24  # where a call costs more than what it moves

Value = float | int | bool | str | None


class FuseError(ValueError):
    """Tensors or parameters that cannot be merged; the message names them, what was found, what was expected, the remedy."""


@dataclass(frozen=True)
class Cut:
    """Which entries of one tensor are among the largest: those above a magnitude, and of that magnitude the first ones.

    Attributes:
        magnitude: fp32; negative: every entry is in.
        end: of entries that have this very magnitude, those before this place (of the flat tensor) are in.
    """

    magnitude: float
    end: int

    def keep(self, piece: Tensor, start: int) -> Tensor:
        """A piece that begins at ``start``, with zeros for what is not in; flat, fp32."""
        stop = start + piece.numel()
        if self.end >= stop:
            return hardshrink(piece, _below(self.magnitude))
        if self.end <= start:
            return hardshrink(piece, self.magnitude)
        head = self.end - start
        return torch.cat([hardshrink(piece[:head], _below(self.magnitude)), hardshrink(piece[head:], self.magnitude)])


def _below(magnitude: float) -> float:
    """The fp32 number before it, so that "above it" means "not below ``magnitude``"."""
    return float(np.nextafter(np.float32(magnitude), np.float32(-np.inf)))


class Turned:
    """A tensor of three or more dimensions as if dimension 1 were its last: flat, in pieces of whole rows, without a copy."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.view(tensor.shape[0], tensor.shape[1], -1)

    def __getitem__(self, piece: slice) -> Tensor:
        return torch.cat([part.T.reshape(-1) for part in self._parts(piece)])

    def __setitem__(self, piece: slice, values: Tensor) -> None:
        start = 0
        for part in self._parts(piece):
            part.T.copy_(values[start : start + part.numel()].view(-1, part.shape[0]))
            start += part.numel()

    def _parts(self, piece: slice) -> Iterator[Tensor]:
        _, row, inner = self._tensor.shape
        assert piece.step in (None, 1) and piece.start % row == 0 == piece.stop % row, piece
        at, end = piece.start // row, piece.stop // row
        while at < end:
            outer, first = divmod(at, inner)
            last = min(inner, first + end - at)
            yield self._tensor[outer, :, first:last]
            at += last - first


Cuts = tuple[tuple[Cut, ...], ...]  # of every ranking that a method makes, in its order


@dataclass(frozen=True, eq=False)
class Inputs:
    """One tensor of several models.

    Attributes:
        name: of the tensor; with ``seed`` and a model's key it seeds what is drawn at random.
        models: of one shape, any float type, on one device; only read.
        base: the pretrained model's tensor, or None where there is none.
        parameters, per_model: resolved (``Method.resolve``): every key is there.
        keys: what the models are called in messages and in seeds, whatever their order; default: "0", "1" ...
        differences: which of ``models`` are differences from the base instead of weights; default: none.
        seed: of methods that draw.
        cuts: of ``scope: global`` (``paring.fuse.scope``): where the thresholds fall in this tensor; None: they are found
            in this tensor alone.
        rows: the dimension along which a row is: -1, or 1, of tensors of three or more dimensions; pieces are those of the
            tensors with this dimension last.

    Raises:
        FuseError: shapes differ, a type is not a float type, or a difference has no base.
    """

    name: str
    models: tuple[Tensor, ...]
    base: Tensor | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict)
    per_model: tuple[Mapping[str, Value], ...] = ()
    keys: tuple[str, ...] = ()
    differences: tuple[bool, ...] = ()
    seed: int = 0
    cuts: Cuts | None = None
    rows: int = -1
    _flat: tuple[Tensor | Turned, ...] = field(init=False, repr=False)
    _last: dict[tuple[int, int, int], Tensor] = field(init=False, repr=False, default_factory=dict)
    _finite: set[tuple[int, int, int, int]] = field(init=False, repr=False, default_factory=set)  # pieces that were looked at

    def __post_init__(self) -> None:
        n = len(self.models)
        for attribute, default in (("keys", tuple(str(i) for i in range(n))), ("differences", (False,) * n)):
            object.__setattr__(self, attribute, getattr(self, attribute) or default)
        if n == 0:
            raise FuseError(f"'{self.name}': no model; expected at least one")
        if len(self.keys) != n or len(self.differences) != n or len(set(self.keys)) != n:
            raise FuseError(f"'{self.name}': {n} models, with keys {list(self.keys)}; expected one of its own for each")
        if any(self.differences) and self.base is None:
            raise FuseError(f"'{self.name}': model '{self._difference()}' is a difference; expected its base beside it")
        flat = tuple(self.flat(t) for t in (*self.models, *(() if self.base is None else (self.base,))))
        object.__setattr__(self, "_flat", flat)
        first = self.models[0] if self.base is None else self.base
        whose = f"model '{self.keys[0]}'" if self.base is None else "the base"
        for key, tensor in [("", first), *zip(self.keys, self.models, strict=True)]:
            what = f"model '{key}'" if key else whose
            if not tensor.is_floating_point():
                raise FuseError(
                    f"'{self.name}' of {what} is {tensor.dtype}; expected a float type (copy other tensors as they are)"
                )
            if tensor.shape != first.shape:
                raise FuseError(
                    f"'{self.name}' of {what} has shape {list(tensor.shape)}, of {whose} {list(first.shape)}; "
                    "expected one shape: merge models of one architecture and vocabulary"
                )

    @property
    def shape(self) -> torch.Size:
        return self.models[0].shape

    @property
    def numel(self) -> int:
        return self.models[0].numel()

    @property
    def device(self) -> torch.device:
        return self.models[0].device

    def flat(self, tensor: Tensor) -> Tensor | Turned:
        """A tensor of their shape as pieces index it; to be written to where it is contiguous."""
        return tensor.reshape(-1) if self.rows == -1 else Turned(tensor.contiguous())

    def values(self, parameter: str) -> list[float]:
        """One parameter of every model."""
        return [float(one[parameter]) for one in self.per_model]  # type: ignore[arg-type]

    def ranges(self, multiple: int = 1) -> Iterator[tuple[int, int]]:
        """Beginnings and ends of pieces; each but the last a multiple of ``multiple`` entries long (whole rows)."""
        size = PIECE if self.device.type == "cpu" else _DEVICE_PIECE
        size = max(1, size // multiple) * multiple
        for start in range(0, self.numel, size):
            yield start, min(start + size, self.numel)

    def weights(self, i: int, start: int, end: int, step: int = 1) -> Tensor:
        """A piece of a model: flat, fp32, finite; the caller's own, to be overwritten at will.

        Args:
            step: every step-th entry of it.
        """
        piece = self._read(i, start, end, step)
        return piece.add_(self.base_piece(start, end, step)) if self.differences[i] else piece

    def difference(self, i: int, start: int, end: int, step: int = 1, base: Tensor | None = None) -> Tensor:
        """A piece of a model minus the base: flat, fp32, finite; the caller's own.

        Args:
            step: every step-th entry of it.
            base: the base's piece, where it is at hand.
        """
        piece = self._read(i, start, end, step)
        return piece if self.differences[i] else piece.sub_(self._shared(start, end, step) if base is None else base)

    def base_piece(self, start: int, end: int, step: int = 1) -> Tensor:
        """A piece of the base: flat, fp32, finite; the caller's own."""
        assert self.base is not None
        return self._read(len(self.models), start, end, step)

    def _shared(self, start: int, end: int, step: int) -> Tensor:
        """A piece of the base, not to be written to: the last one, where it is asked for again, as for the next model."""
        if self._last.get((start, end, step)) is None:
            self._last.clear()
            self._last[start, end, step] = self.base_piece(start, end, step)
        return self._last[start, end, step]

    def _read(self, i: int, start: int, end: int, step: int) -> Tensor:
        piece = self._flat[i][start:end:step].to(torch.float32, copy=True)
        if (i, start, end, step) in self._finite:
            return piece
        if not math.isfinite(float(piece.sum())) and not bool(piece.isfinite().all()):  # the sum may overflow by itself
            at = int((~piece.isfinite()).nonzero()[0, 0])
            whose = "the base" if i == len(self.models) else f"model '{self.keys[i]}'"
            raise FuseError(
                f"'{self.name}' of {whose} holds {float(piece[at])} at entry {start + at * step:,} of {self.numel:,}; "
                "expected finite numbers: take another checkpoint of it, or leave the model out"
            )
        self._finite.add((i, start, end, step))
        return piece

    def _difference(self) -> str:
        return self.keys[self.differences.index(True)]
