"""The kinds of probes by name, each with the module that holds its ``KIND``; loaded when it is asked for."""

from difflib import get_close_matches
from importlib import import_module

from paring.probe.kind import Kind

KINDS: dict[str, str] = {
    "spectra": "paring.probe.kinds.spectra",  # spectral balance: SliceFine, Lemma 2.1
    "complexity": "paring.probe.kinds.complexity",  # Table 1 of the project page, counted
    "energy": "paring.probe.kinds.energy",  # high task energy
    "gradient": "paring.probe.kinds.gradient",  # local winners: SliceFine, definition of a winner
    "rank": "paring.probe.kinds.rank",  # Figure 2 (a); this one and those below train
    "position": "paring.probe.kinds.position",  # Figure 2 (b)
    "importance": "paring.probe.kinds.importance",  # Figure 2 (c)
    "tickets": "paring.probe.kinds.tickets",  # Figure 2 (d)
    "schedule": "paring.probe.kinds.schedule",  # moving slices
}


def kind_named(name: str) -> Kind:
    """A kind.

    Raises:
        ValueError: there is none of this name; names the nearest.
    """
    if name not in KINDS:
        near = get_close_matches(name, KINDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(KINDS)}"
        raise ValueError(f"there is no probe {name!r}; {hint}")
    found = import_module(KINDS[name]).KIND
    assert isinstance(found, Kind)
    return found
