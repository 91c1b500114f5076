"""Weights kept between runs: one safetensors file a recipe, in ``paring.files.cache_folder()``.

The file's name holds a hash of everything that makes the weights; its metadata a digest of them. A file that cannot be
read, holds other tensors, or whose bytes have changed counts as corrupt: it is made again, and a line says so.
"""

from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from paring.files import cache_folder, write_bytes

_DIGEST = "digest"


def load_or_make(model: nn.Module, file_name: str, make: Callable[[nn.Module], None]) -> None:
    """Fills ``model`` with the cached weights ``file_name``; or has ``make`` train it, and keeps what comes of that.

    A folder that cannot be written costs a printed line, not the weights.
    """
    path = cache_folder() / file_name
    if path.exists():
        problem = _load(model, path)
        if problem is None:
            return
        print(f"paring: the cached weights in {path} are corrupt ({problem}); making them again")
    make(model)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    try:
        write_bytes(path, save(weights, {_DIGEST: digest(weights)}))
    except OSError as error:
        print(f"paring: the weights could not be kept in {path} ({error}); the next run makes them again")


def digest(weights: dict[str, Tensor]) -> str:
    """A hash of names, types, shapes and bytes; equal for the same weights in any order."""
    sum_ = blake2b(digest_size=16)
    for name, tensor in sorted(weights.items()):
        sum_.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sum_.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sum_.hexdigest()


def _load(model: nn.Module, path: Path) -> str | None:
    """Fills the model from the file; or says what is wrong with the file, and leaves the model as it was."""
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            kept = (file.metadata() or {}).get(_DIGEST)
    except (SafetensorError, OSError) as error:
        return str(error)
    wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    if {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()} != wanted:
        return "its tensors are not the model's"
    if digest(weights) != kept:
        return "its bytes have changed since they were written"
    model.load_state_dict(weights)
    return None
