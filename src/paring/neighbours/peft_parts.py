"""What an adapter's file holds for each tensor of the model: low-rank factors, a summand, or the tensor itself.

base_model.model.M.lora_A.weight [r, in], M.lora_B.weight [out, r]      M.weight changes by scale B A, transposed where it
                                                                        is [in, out]; of a convolution, flattened
base_model.model.M.lora_embedding_A [r, entries], …_B [width, r]        M.weight changes by scale (B A)^T
base_model.model.M.lora_B.bias [out]                                    M.bias changes by scale times it
base_model.model.M.base_layer.T, base_model.model.T                     M.T, or T, is this
"""

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paring.delta.checkpoint.read import Checkpoint
from paring.delta.errors import DeltaError
from paring.delta.factors import FACTOR_DTYPES, LowRank
from paring.neighbours.peft_config import LoraSettings

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")
_BIAS = re.compile(r"(.+)\.lora_B\.bias")
_EMBEDDING = re.compile(r"(.+)\.lora_embedding_([AB])")
_OTHER = re.compile(r".*\.(lora_\w+|token_adapter|modules_to_save|parametrizations)(\.|$).*")


@dataclass(frozen=True)
class Part:
    """What the adapter holds for one tensor; keys are names in its file.

    Attributes:
        scale: of ``A``, ``B`` and ``summand``.
        A, B: keys of the factors.
        embedding: whether these are an embedding's.
        summand: key of what is added, times ``scale``.
        whole: key of the tensor itself; the others are added to it.
    """

    scale: float = 1.0
    A: str = ""
    B: str = ""
    embedding: bool = False
    summand: str = ""
    whole: str = ""

    @property
    def adds(self) -> bool:
        return bool(self.A or self.summand)


def parts_of(checkpoint: Checkpoint, settings: LoraSettings) -> dict[str, Part]:
    """What is in an adapter's file, by the names of the model's tensors.

    Raises:
        DeltaError: a key that is not listed above, a factor without the other one, or factors of another rank than the
            settings say.
    """
    parts: dict[str, Part] = {}
    for key in checkpoint.names:
        if not key.startswith(_PREFIX):
            raise DeltaError(f"{checkpoint.files[0]}: '{key}' does not start with '{_PREFIX}', as all of a LoRA adapter's do")
        name = key.removeprefix(_PREFIX)
        if found := _FACTOR.fullmatch(name) or _EMBEDDING.fullmatch(name):
            tensor, side = f"{found[1]}.weight", found[2]
            part = replace(parts.get(tensor, Part()), scale=settings.scale_of(found[1]), embedding="lora_embedding" in name)
            parts[tensor] = replace(part, A=key) if side == "A" else replace(part, B=key)
        elif found := _BIAS.fullmatch(name):
            tensor = f"{found[1]}.bias"
            parts[tensor] = replace(parts.get(tensor, Part()), scale=settings.scale_of(found[1]), summand=key)
        elif _OTHER.fullmatch(name):
            raise DeltaError(
                f"{checkpoint.files[0]}: '{key}' belongs to a kind of adapter that a difference of weights cannot express; "
                "merge it with PEFT (merge_and_unload) and take `paring diff` of the result"
            )
        else:
            tensor = re.sub(r"\.base_layer\.(\w+)$", r".\1", name)
            parts[tensor] = replace(parts.get(tensor, Part()), whole=key)
    for tensor, part in parts.items():
        _check(checkpoint, tensor, part, settings)
    return parts


def low_rank(checkpoint: Checkpoint, part: Part, shape: torch.Size, transposed: bool | None, where: str) -> LowRank:
    """``scale B A`` of a tensor of ``shape``, in the adapter's types. Shapes are checked before anything is read.

    Args:
        transposed: whether the tensor is [in, out]; None: by its shape.

    Raises:
        DeltaError: it has another shape, or is not finite.
    """
    flip = check_shape(checkpoint, part, shape, transposed, where)
    A, B = (finite(checkpoint.tensor(key), where).flatten(1) for key in (part.A, part.B))
    A, B = (t if t.dtype in FACTOR_DTYPES else t.float() for t in (A, B))
    return LowRank(A.T.contiguous(), B.T.contiguous(), part.scale) if flip else LowRank(B, A, part.scale)


def check_shape(checkpoint: Checkpoint, part: Part, shape: torch.Size, transposed: bool | None, where: str) -> bool:
    """Whether ``B @ A`` is to be transposed to have ``shape``; see ``low_rank``."""
    a, b = (checkpoint.info(key).shape for key in (part.A, part.B))
    made = torch.Size((b[0], *a[1:]))
    flip = part.embedding or transposed or (transposed is None and made != shape)
    made = torch.Size(reversed(made)) if flip else made
    if made != shape:
        raise DeltaError(f"{where}: the adapter's factors give {list(made)}, the base has {list(shape)}")
    return bool(flip)


def finite(tensor: Tensor, where: str) -> Tensor:
    """The tensor. DeltaError: it holds NaN or infinity."""
    if not bool(tensor.isfinite().all()):
        raise DeltaError(f"{where}: the adapter holds NaN or infinity, or its product is infinite; repair it first")
    return tensor


def _check(checkpoint: Checkpoint, tensor: str, part: Part, settings: LoraSettings) -> None:
    where = f"{checkpoint.files[0]}: '{tensor}'"
    if bool(part.A) != bool(part.B):
        raise DeltaError(f"{where} has only one of its two factors; the file is not whole")
    if part.A:
        a, b = checkpoint.info(part.A).shape, checkpoint.info(part.B).shape
        rank = settings.rank_of(tensor.removesuffix(".weight"))
        if (len(a), len(b)) not in ((2, 2), (4, 4)) or (len(b) == 4 and b[2:] != (1, 1)):
            raise DeltaError(
                f"{where}: its factors are {list(a)} and {list(b)}; expected two matrices, or two of a convolution"
            )
        if a[0] != rank or b[1] != rank:
            raise DeltaError(f"{where}: its factors are {list(a)} and {list(b)}, but adapter_config.json gives it rank {rank}")
