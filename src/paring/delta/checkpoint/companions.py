"""The files that make a folder of weights a model: configuration, tokenizer, preprocessor, code, model card.

Models of sentence-transformers have more of them in folders of their modules (``1_Pooling/config.json``), which
``modules.json`` names.
"""

import json
import re
import warnings
from collections.abc import Sequence
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
_MODULES, _MODULE_FOLDER = "modules.json", re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_TEXTS = {".json", ".txt", ".md"}
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
    return _small(source, [p for p in sorted(source.iterdir()) if p.is_file() and p.name[0] != "." and not is_weights(p)])


def in_modules(source: Path) -> list[Path]:
    """The texts (``.json``, ``.txt``, ``.md``) in the folders of a sentence-transformers model's modules, sorted by name.

    What else is in them is left out, with a warning: weights of a module of its own (``2_Dense``) are no part of the
    checkpoint that the folder is.

    Raises:
        DeltaError: ``modules.json`` is none; or a link leads out of the folder.
    """
    found = []
    for folder in module_folders(source):
        inner = [p for p in sorted(folder.iterdir()) if p.name[0] != "."]
        texts = [p for p in inner if is_text(p)]
        found += _small(source, texts)
        if more := [p.name for p in inner if p not in texts]:
            warnings.warn(f"{folder} holds {', '.join(map(ascii, more[:5]))}, which is not copied: no text", stacklevel=3)
    return found


def module_folders(source: Path) -> list[Path]:
    """The folders directly in ``source`` that its ``modules.json`` names. DeltaError: it is none."""
    path = source / _MODULES
    if not path.is_file():
        return []
    if (size := path.stat().st_size) > MOST_BYTES:
        raise DeltaError(f"{path} is {size:,} bytes, expected at most {MOST_BYTES:,}; it is no list of modules")
    try:
        modules = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DeltaError(f"{path} is no JSON: {str(error)[:200]}") from None
    names = (
        [m["path"] for m in modules if isinstance(m, dict) and isinstance(m.get("path"), str)]
        if isinstance(modules, list)
        else []
    )
    if not isinstance(modules, list) or len(names) < len(modules):
        raise DeltaError(f"{path} is no list of modules with a path each; repair it, or take it away")
    if wrong := [name for name in names if name and not _MODULE_FOLDER.fullmatch(name)]:
        raise DeltaError(f"{path}: path escape: a module is said to be in {wrong[0][:200]!r}, expected a folder beside it")
    return [source / name for name in sorted(set(names)) if name and (source / name).is_dir()]


def _small(source: Path, files: Sequence[Path]) -> list[Path]:
    found = []
    for path in files:
        if not inside(source, path):
            raise DeltaError(f"path escape: {path} is a link to {path.resolve()}, outside its folder; put the file there")
        size = path.stat().st_size
        if size > MOST_BYTES:
            warnings.warn(
                f"{path} is {size:,} bytes, more than a configuration or tokenizer has, and is not copied", stacklevel=4
            )
        else:
            found.append(path)
    return found


def is_text(path: Path) -> bool:
    """By the name: a configuration or a note."""
    return path.is_file() and path.suffix in _TEXTS and not is_weights(path)


def is_weights(path: Path) -> bool:
    """By the name: weights, an index of them, or what a training run keeps beside them."""
    return path.suffix in _WEIGHTS or path.name.endswith(".index.json")
