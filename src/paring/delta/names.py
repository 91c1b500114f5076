"""The tensors of a model by name, and one expert's matrix in a fused tensor: ``….experts.gate_up_proj[3]``."""

import re
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

_PART = re.compile(r"(.+)\[(\d+)\]")


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
        found = _PART.fullmatch(name)
        if found is None or found[1] not in self._tensors:
            raise KeyError(name)
        whole, index = self._tensors[found[1]].detach(), int(found[2])
        if whole.ndim != 3 or index >= whole.shape[0]:
            raise KeyError(name)
        return whole[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
