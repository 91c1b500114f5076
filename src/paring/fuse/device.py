"""Where a merge is computed, known to work before anything is read."""

import torch


def usable(device: str | torch.device) -> torch.device:
    """A device by its name.

    Raises:
        ValueError: PyTorch knows none of that name, or cannot compute on it here.
    """
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is {str(device)!r}; expected cpu, cuda, cuda:1, mps or another that PyTorch knows") from None
    try:
        works = found.type != "meta" and float(torch.ones(1, device=found).sum()) == 1
    except (RuntimeError, AssertionError, ImportError) as error:  # the last but one: PyTorch built without it
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"device {str(device)!r}: nothing can be computed there: {said}; expected cpu, or one of this machine's"
        ) from None
    if not works:
        raise ValueError(f"device {str(device)!r} holds no values; expected cpu, or one of this machine's")
    return found
