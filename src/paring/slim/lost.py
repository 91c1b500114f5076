"""What a pruned task vector keeps of the whole one, and how large it is as a file."""

import tempfile
from pathlib import Path

from paring.delta.files import load_delta, save_delta
from paring.delta.places import Scattered
from paring.delta.sums import dot
from paring.delta.taskvector import TaskVector
from paring.slim.pruners import flats


def kept_energy(vector: TaskVector, pruned: TaskVector) -> float:
    """The share of the squared L2 norm of ``vector`` that its entries at the places kept in ``pruned`` carry, 0 to 1.

    It says which entries stayed, not what became of their values; 1 where ``vector`` is zero.
    """
    total = left = 0.0
    for name, tau in flats(vector):
        total += dot(tau, tau)
        if name in pruned:
            places = pruned.change(name).places
            there = (
                tau[places.positions] if isinstance(places, Scattered) else places.gather(tau.view(vector.changes[name].shape))
            )
            left += dot(there, there)
    return left / total if total else 1.0


def as_stored(vector: TaskVector, values: str, group: int) -> tuple[TaskVector, int]:
    """A task vector as it comes back from a file that ``save_delta`` writes of it, in memory; and the file's bytes."""
    with tempfile.TemporaryDirectory(prefix="paring-") as folder:
        path = Path(folder) / "stored.delta.safetensors"
        size = save_delta(vector, path, values=values, group=group)
        return load_delta(path).in_memory(), size
