"""Probes: the claims of the SliceFine paper, each as a measurement that anyone can run on a model of their own.

    from paring.probe import run

    result = run("spectra", "my-model", out="spectra")  # paring probe spectra my-model --out spectra
    print(result.verdict.sentence)

Numbers are made here (``spectra``, ``gradient``, ``energy``, ``complexity``: pure functions on tensors), pictures in ``plots``
alone. A *kind* of probe is a list of cells, how a cell is measured, and what follows from all of them: a verdict with its
confidence interval, tables, a figure. How to add one: docs/probe.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "KINDS": "paring.probe.registry",
    "Cell": "paring.probe.kind",
    "Kind": "paring.probe.kind",
    "Plan": "paring.probe.kind",
    "Subject": "paring.probe.subject",
    "Verdict": "paring.probe.kind",
    "run": "paring.probe.runner",
}
__all__ = ["KINDS", "Cell", "Kind", "Plan", "Subject", "Verdict", "run"]

if TYPE_CHECKING:
    from paring.probe.kind import Cell, Kind, Plan, Verdict
    from paring.probe.registry import KINDS
    from paring.probe.runner import run
    from paring.probe.subject import Subject


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'paring.probe' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
