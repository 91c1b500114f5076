"""The files that make a folder of weights a model: configuration, tokenizer, preprocessor, code, model card."""

import warnings
from pathlib import Path

from paring.delta.checkpoint.find import inside
from paring.delta.errors import DeltaError

MOST_BYTES = 64 << 20  # the largest tokenizers are half of that
_MARKS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "adapter_config.json",
)
_WEIGHTS = {
    ".bin",
    ".ckpt",
    ".gguf",
    ".h5",
    ".msgpack",
    ".npy",
    ".npz",
    ".onnx",
    ".ot",
    ".pb",
    ".pt",
    ".pth",
    ".safetensors",
    ".tflite",
}


def companions(source: Path) -> list[Path]:
    """Every regular file in the folder ``source`` that is neither weights nor hidden, sorted by name.

    Empty where the folder holds no configuration or tokenizer: then it is a place where weights lie among other things. A
    file of more than 64 MiB is left out with a warning.

    Raises:
        DeltaError: a link leads out of the folder; copying it could take along what is nobody else's business.
    """
    if not any((source / mark).is_file() for mark in _MARKS):
        return []
    found = []
    for path in sorted(source.iterdir()):
        if not path.is_file() or path.name.startswith(".") or is_weights(path):
            continue
        if not inside(source, path):
            raise DeltaError(f"path escape: {path} is a link to {path.resolve()}, outside its folder; put the file there")
        size = path.stat().st_size
        if size > MOST_BYTES:
            warnings.warn(
                f"{path} is {size:,} bytes, more than a configuration or tokenizer has, and is not copied", stacklevel=3
            )
        else:
            found.append(path)
    return found


def is_weights(path: Path) -> bool:
    """By the name: weights, an index of them, or what a training run keeps beside them."""
    return path.suffix in _WEIGHTS or path.name.endswith(".index.json")
