"""Every result of the demo once more, from its file: one model in memory, swapped from delta to delta."""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

from paring.bank.bank import Bank
from paring.demo.tuning import TaskResults, score
from paring.tasks.digits import Shift, one_thread


def banked(model: nn.Module, shifts: Sequence[Shift], done: Sequence[TaskResults], folder: Path) -> dict[str, Any]:
    """How many of the deltas in ``folder`` give the accuracy that they had, what they take, and how long a swap takes."""
    of = [(one.delta, one.test_accuracy, s) for d, s in zip(done, shifts, strict=True) for one in d.results]
    of += [(d.slim.delta, d.slim.test_accuracy, s) for d, s in zip(done, shifts, strict=True)]
    results = {name: (reached, shift) for name, reached, shift in of}
    same, swaps = 0, []
    with Bank(model) as bank, one_thread():
        for name in results:
            bank.add(name, folder / f"{name}.delta.safetensors")
        for name, (reached, shift) in results.items():
            bank.activate(name)
            same += score(model, shift) == reached
        for name in results:  # now that all are in memory
            start = time.perf_counter()
            bank.activate(name)
            swaps.append(time.perf_counter() - start)
    checkpoint = sum(tensor.numel() * tensor.itemsize for tensor in model.state_dict().values())
    return {
        "num_deltas": len(results),
        "same_accuracy": same,
        "bytes": checkpoint + sum((folder / f"{name}.delta.safetensors").stat().st_size for name in results),
        "checkpoint_bytes": checkpoint * len(results),
        "median_swap_seconds": median(swaps),
    }
