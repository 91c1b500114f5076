"""Memory that ran out, by the errors it raises."""

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether the machine has no more memory, or the accelerator: another time the same may go."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in said or "out of memory" in said)  # PyTorch's: CPU, MPS
