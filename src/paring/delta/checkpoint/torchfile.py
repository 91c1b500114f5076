"""Files of ``torch.save``: only what needs no code to be run, mapped into memory rather than read."""

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paring.delta.errors import DeltaError

_NESTED = ("state_dict", "model")


def load(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, or of one that stands under ``state_dict`` or ``model``.

    What stands beside a nested one (an optimizer's state, a step) is no weight and stays unread.

    Raises:
        DeltaError: it needs code to be run, is damaged, or holds something else than tensors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of storage classes that were renamed
            loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0][:200]
        raise DeltaError(
            f"{path} holds something else than tensors, or is damaged, and reading it could run code, which is not done "
            f"({reason}); convert it to safetensors where you trust it"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes the reader raise nearly anything
        if "mmap can only be used" in str(error):
            raise DeltaError(
                f"{path} is damaged, or of PyTorch before 1.6, which cannot be mapped; fetch it, or save it, again"
            ) from None
        reason = str(error).split("\n")[0][:200]
        raise DeltaError(f"{path} is no file of torch.save, or a damaged one ({reason}); fetch or write it again") from None
    return {name: _checked(path, name, tensor.detach()) for name, tensor in _state_dict(path, loaded).items()}


def tied(tensors: dict[str, Tensor]) -> list[tuple[str, ...]]:
    """Groups of names that stand for one stored tensor."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in sorted(tensors.items()):
        if tensor.numel():
            groups.setdefault((tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()), []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def flat_pieces(tensor: Tensor, piece_bytes: int) -> Iterator[Tensor]:
    """The content of a tensor in stored order (row major), flat, in parts of at most ``piece_bytes`` (but one entry at least).

    Parts of a contiguous tensor are views; of another one copies, of a part at a time.
    """
    tensor = tensor.detach()
    num = max(1, piece_bytes // tensor.itemsize)
    if tensor.is_contiguous():
        flat = tensor.view(-1)
        for start in range(0, flat.numel(), num):
            yield flat[start : start + num]
    elif tensor[0].numel() > num:
        for part in tensor:
            yield from flat_pieces(part, piece_bytes)
    else:
        rows = num // max(1, tensor[0].numel())
        for start in range(0, tensor.shape[0], rows):
            yield tensor[start : start + rows].reshape(-1)


def _state_dict(path: Path, loaded: Any) -> dict[str, Tensor]:
    where = str(path)
    while isinstance(loaded, dict):
        nested = [key for key in _NESTED if isinstance(loaded.get(key), dict)]
        if not nested:
            break
        if len(nested) > 1:
            raise DeltaError(f"{where} has both of {' and '.join(nested)}; save the one you mean as a file of its own")
        where, loaded = f"{where}[{nested[0]!r}]", loaded[nested[0]]
    if not isinstance(loaded, dict):
        raise DeltaError(f"{where} is a {type(loaded).__name__}, expected a state dict; save model.state_dict()")
    wrong = [
        f"{name!r} ({type(v).__name__})" for name, v in loaded.items() if not (isinstance(name, str) and isinstance(v, Tensor))
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise DeltaError(f"{where} holds entries that are no tensors: {', '.join(wrong[:5])}{more}; save the weights alone")
    return loaded


def _checked(path: Path, name: str, tensor: Tensor) -> Tensor:
    where = f"{path}: tensor {name!r}"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        what = "quantized" if tensor.is_quantized else f"of layout {tensor.layout} on {tensor.device}"
        raise DeltaError(f"{where} is {what}, expected a plain tensor; convert it before saving")
    held = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.itemsize > held:  # a few bytes could claim to be terabytes
        raise DeltaError(
            f"{where} of shape {list(tensor.shape)} takes {tensor.numel() * tensor.itemsize:,} bytes, of which the file holds "
            f"{held:,}; save it with .contiguous()"
        )
    return tensor.resolve_conj().resolve_neg()
