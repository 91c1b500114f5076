"""The target matrices of a checkpoint on disk, each read by itself.

Which tensors are layers' weights only the model's class says: it is built from ``config.json`` without weights, and layers
are selected as for tuning. Where there is no such class, or the checkpoint's tensors have other names, they are told by their
names: every tensor ``….weight`` of two and more dimensions, but for embeddings and output heads.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paring.delta.align import align
from paring.delta.checkpoint.read import Checkpoint
from paring.delta.errors import DeltaError
from paring.neighbours.layers import read_config, skeleton
from paring.patterns import expression
from paring.probe.subject import Subject
from paring.tune.config import SliceConfig
from paring.tune.kinds import FusedExperts
from paring.tune.targets import Layer, select

_EMBEDDING = re.compile(r"(?:^|\.)(?:wte|wpe|shared|relative_attention_bias|[a-z_]*embed[a-z_]*)(?:\.|$)")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|classifier|score|qa_outputs|embed_out)(?:\.|$)")


@dataclass(frozen=True)
class StoredMatrix:
    """One matrix ``[out, inp]``.

    Attributes:
        layer: its name, ``….experts.gate_up_proj[3]`` for one of fused experts.
        tensor: the name of the stored tensor.
        transposed: it is stored ``[in, out]``.
        expert: its index in a tensor ``[experts, …]``; None: the tensor is the matrix.
    """

    layer: str
    tensor: str
    out: int
    inp: int
    transposed: bool = False
    expert: int | None = None

    def read(self, checkpoint: Checkpoint) -> Tensor:
        """``[out, inp]`` as it is stored, in memory."""
        if self.expert is not None:
            stored = checkpoint.mapped(self.tensor)[self.expert].clone()  # not the other experts
        else:
            stored = checkpoint.tensor(self.tensor)
        matrix = stored.flatten(1)
        return matrix.t() if self.transposed else matrix


def stored_matrices(checkpoint: Checkpoint, subject: Subject) -> tuple[list[StoredMatrix], tuple[str, ...]]:
    """The matrices, in the order of the model, and sentences for the user.

    Raises:
        ValueError: there is none, a pattern matches none, or one is quantised.
    """
    try:
        found = _by_class(checkpoint, subject)
        notes: tuple[str, ...] = ()
        if isinstance(found, str):
            found, notes = _by_name(checkpoint, subject, found)
    except RecursionError:
        raise ValueError(f"model: the configuration of {subject.model} could not be read") from None
    for matrix in found:
        dtype = checkpoint.info(matrix.tensor).dtype
        if not dtype.is_floating_point or dtype.itemsize < 2:
            raise ValueError(
                f"tensor {matrix.tensor!r} of {subject.model} is {dtype} (quantised); expected float32, float64, bfloat16 or "
                "float16: take the checkpoint that is not quantised, or exclude the layer"
            )
    return found, notes


def _by_class(checkpoint: Checkpoint, subject: Subject) -> list[StoredMatrix] | str:
    """The matrices, or why the class does not tell."""
    try:
        config = read_config(checkpoint.folder)
        if config is None:
            return "there is no config.json beside the weights"
        model = skeleton(config)
    except (DeltaError, ImportError) as error:
        return str(error).splitlines()[0]
    _without_memory(model)
    settings = SliceConfig(rank=1, modes=("row",), move_steps=None, targets=subject.targets, exclude=subject.exclude)
    chosen = select(model, settings).layers
    stored = align([_tensor(layer) for layer in chosen], checkpoint.names)
    found: list[StoredMatrix] = []
    for layer in chosen:
        name = stored.get(_tensor(layer))
        if name is None:
            return f"{_tensor(layer)!r} of {type(model).__name__} is not in it"
        if checkpoint.info(name).shape != layer.module.weight.shape:
            return f"{name!r} has the shape {list(checkpoint.info(name).shape)}, not {list(layer.module.weight.shape)}"
        found += _matrices_of(layer, name)
    return found


def _matrices_of(layer: Layer, name: str) -> Iterator[StoredMatrix]:
    out, inp, transposed = layer.matrix.out, layer.matrix.inp, layer.kind.transposed
    if isinstance(layer.module, FusedExperts):
        for i in range(layer.module.weight.shape[0]):
            yield StoredMatrix(f"{layer.name}[{i}]", name, out, inp, transposed, i)
    else:
        yield StoredMatrix(layer.name, name, out, inp, transposed)


def _tensor(layer: Layer) -> str:
    return layer.name if isinstance(layer.module, FusedExperts) else f"{layer.name}.weight"


def _without_memory(model: nn.Module) -> None:
    """Gives every parameter its shape on the CPU with one entry of memory: selecting asks for weights that have data."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    entry = torch.zeros(1, dtype=parameter.dtype).expand(parameter.shape)
                    made[id(parameter)] = nn.Parameter(entry, requires_grad=False)
                module._parameters[name] = made[id(parameter)]


def _by_name(checkpoint: Checkpoint, subject: Subject, why: str) -> tuple[list[StoredMatrix], tuple[str, ...]]:
    all_layers = {
        name.removesuffix(".weight"): name
        for name in sorted(checkpoint.names, key=_natural)
        if name.endswith(".weight") and len(checkpoint.info(name).shape) >= 2
    }
    left_out = [n for n in all_layers if _EMBEDDING.search(n) or _HEAD.search(n)]
    if subject.targets is None:
        names = [n for n in all_layers if n not in left_out]
    else:
        names = _matching(subject.targets, list(all_layers), "targets")
    if subject.exclude:
        gone = set(_matching(subject.exclude, list(all_layers), "exclude"))
        names = [n for n in names if n not in gone]
    if not names:
        raise ValueError(
            f"{subject.model} has no target matrices: none of its {len(checkpoint.names)} tensors is a weight of two and more "
            "dimensions that is no embedding and no output head (and left by targets and exclude)"
        )
    skipped = f"; left out as embeddings and heads: {', '.join(left_out)}" if left_out and subject.targets is None else ""
    note = f"layers are told by the names of their tensors, [out, in] as stored, since {why}{skipped}"
    found = []
    for name in names:
        shape = checkpoint.info(all_layers[name]).shape
        found.append(StoredMatrix(name, all_layers[name], shape[0], shape[1:].numel()))
    return found, (note,)


def _matching(patterns: Sequence[str], names: list[str], setting: str) -> list[str]:
    wanted: set[str] = set()
    for pattern in patterns:
        try:
            found = {n for n in names if expression(pattern).fullmatch(n)}
        except re.error as error:
            raise ValueError(f"{setting}: {pattern!r} is no regular expression: {error}") from None
        if not found:
            raise ValueError(
                f"{setting}: {pattern!r} matches no matrix of the checkpoint; it has, e.g., {', '.join(names[:3])}"
            )
        wanted |= found
    return [n for n in names if n in wanted]


def _natural(name: str) -> list[tuple[int, str]]:
    """Block 2 before block 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
