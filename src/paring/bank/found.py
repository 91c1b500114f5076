"""Which deltas lie in a folder."""

from pathlib import Path

from paring.bank.masked import SHARED
from paring.bank.masked import SUFFIX as _MASKED
from paring.delta.errors import DeltaError
from paring.delta.files import INDEX

_SUFFIX = ".delta.safetensors"


def find_deltas(folder: str | Path) -> dict[str, Path]:
    """The deltas in a folder by name: ``NAME.delta.safetensors``, folders of shards, and masks of a shared vector."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of deltas {folder}")
    inside = sorted(folder.iterdir())
    found: dict[str, Path] = {}
    masks = any(p.name.endswith(_MASKED) for p in inside)
    for p in inside:
        if p.is_dir() and (p / INDEX).is_file() and not (masks and p.name == SHARED):
            name = p.name.removesuffix(".delta")
        elif p.is_file() and p.name.endswith((_SUFFIX, _MASKED)):
            name = p.name.removesuffix(_SUFFIX).removesuffix(_MASKED)
        else:
            continue
        if name in found:
            raise DeltaError(f"{folder} holds two deltas named {name!r}: {found[name].name} and {p.name}")
        found[name] = p
    return dict(sorted(found.items()))
