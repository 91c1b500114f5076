"""What a record says of how it came about: settings, versions, machine."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import paring

_PACKAGES = ("torch", "transformers", "safetensors")


def made_with(settings: Mapping[str, Any], leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """For the end of a record.

    Args:
        settings: plain values. leave_out: names of those that say where on this machine something lies.
    """
    return {
        "settings": {k: _plain(v) for k, v in settings.items() if k not in leave_out},
        "versions": {"paring": paring.__version__, **{p: found for p in _PACKAGES if (found := _version(p))}},
        "machine": platform.platform(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # not all are needed for everything
        return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
