"""What a task vector is known by in the records of searches: all that it does to a model, new tensors (a head) included."""

import json

from blake3 import blake3

from paring.delta.checkpoint.tensorinfo import raw_bytes
from paring.delta.taskvector import TaskVector
from paring.slim.pruners import flat


def digest(vector: TaskVector) -> str:
    """32 hexadecimal digits; the same however the changes are stored.

    Args:
        vector: with its base at hand, where its differences are exact.

    Raises:
        DeltaError: a difference is not finite.
    """
    found = blake3(json.dumps(sorted(vector.removed)).encode())
    for name in sorted(vector.changes):
        lazy = vector.changes[name]
        new = lazy.kind == "new"
        found.update(json.dumps([name, list(lazy.shape), str(lazy.dtype), new]).encode())
        tensor = vector.change(name).values if new else flat(vector, name)
        found.update(raw_bytes(tensor.detach().cpu().contiguous()))
    return str(found.hexdigest(16))
