"""The tensors of a model by name, and one expert's matrix in a fused tensor: ``….experts.gate_up_proj[3]``."""

import re
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

_PART = re.compile(r"(.+)\[(\d{1,9})\]")


def split_part(name: str) -> tuple[str, int]:
    """``("…gate_up_proj", 3)`` of ``"…gate_up_proj[3]"``; ``(name, -1)`` of the name of a whole tensor."""
    found = _PART.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, -1)


class ModelTensors(Mapping[str, Tensor]):
    """Parameters and buffers of ``model``, detached, in place; a tied tensor under each of its names.

    ``name[i]`` is entry i of the first dimension of the tensor ``name`` of three dimensions.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        self._tensors |= dict(model.named_buffers(remove_duplicate=False))

    def __getitem__(self, name: str) -> Tensor:
        if name in self._tensors:
            return self._tensors[name].detach()
        whole, index = split_part(name)
        if index < 0 or whole not in self._tensors:
            raise KeyError(name)
        tensor = self._tensors[whole].detach()
        if tensor.ndim != 3 or index >= tensor.shape[0]:
            raise KeyError(name)
        return tensor[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
