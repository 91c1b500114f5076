"""Packages that only the tasks and the demo need: loaded on first use, and named with the remedy when missing."""

from importlib import import_module
from typing import Any

REMEDY = "pip install 'paring[train,plot]'"


def require(module: str, purpose: str) -> Any:
    """The module ``module``, imported now.

    Raises:
        ImportError: the package it belongs to is not installed; the message says what needs it and the remedy.
            A package that is there but fails to import raises what it raises.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ImportError(f"{purpose} needs the package {package!r}, which is not installed: {REMEDY}") from error
