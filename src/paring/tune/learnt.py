"""What a session has learnt, as a task vector: the blocks it touched against the base that its undo log remembers."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from paring.delta.base import base_of
from paring.delta.blocks import Rect, read, same_bits, write
from paring.delta.change import Change, exact_change
from paring.delta.checkpoint.fingerprint import module_hash
from paring.delta.names import split_part
from paring.delta.places import Blocks, Everywhere
from paring.delta.sources import MemorySource
from paring.delta.taskvector import Lazy, TaskVector, ready
from paring.tune.undo import UndoLog


class _Originals(MemorySource):
    """The model as it was: the hash of a tensor that was touched is that of its original."""

    def __init__(self, model: nn.Module, log: UndoLog) -> None:
        super().__init__(model)
        self.called = f"the {type(model).__name__} before"
        self._log = log
        self._touched: dict[str, list[tuple[str, int]]] = {}
        for name in log:
            whole, index = split_part(name)
            self._touched.setdefault(self.tied().get(whole, whole), []).append((name, index))

    def hash(self, name: str) -> str:
        tensor = self.tensor(name)
        if name in self._touched:
            tensor = tensor.cpu().clone()  # one tensor at a time
            for touched, index in self._touched[name]:
                for rect, before in self._log.originals(touched):
                    write(tensor if index < 0 else tensor[index], rect, before)
        return module_hash(tensor)


def task_vector(model: nn.Module, log: UndoLog, tensors: Mapping[str, Tensor], fresh: Collection[str]) -> TaskVector:
    """The difference of ``model`` to what ``log`` remembers.

    Args:
        tensors: the model's, by every name that the log has.
        fresh: names of tensors that are not pretrained.
    """
    originals = _Originals(model, log)
    changes: dict[str, Lazy] = {}
    for touched in log:
        part, index = split_part(touched)
        part = originals.tied().get(part, part)
        name = part if index < 0 else f"{part}[{index}]"
        if name in changes:
            continue  # a tied tensor, kept under each of its names
        blocks = [(rect, before, read(tensors[touched], rect).cpu()) for rect, before in log.originals(touched)]
        if touched in fresh:
            changes[name] = ready(_new(tensors[touched], blocks))
            continue
        blocks = [block for block in blocks if not same_bits(block[1], block[2])]
        if blocks:
            rects, befores, afters = zip(*blocks, strict=True)
            before, after = (torch.cat([t.view(-1) for t in side]) for side in (befores, afters))
            changes[name] = ready(exact_change(before, after, Blocks(rects), tensors[touched].shape))
    new = {n for n, c in changes.items() if c.kind == "new"}
    return TaskVector(changes, base_of(originals, without=new, origin=originals.origin))


def _new(tensor: Tensor, blocks: list[tuple[Rect, Tensor, Tensor]]) -> Change:
    (_, before, after), *rest = blocks
    assert not rest and after.numel() == tensor.numel(), "a fresh tensor is kept whole"
    return Change(tensor.shape, tensor.dtype, "new", Everywhere(after.numel()), after.view(-1), lambda: before.view(-1))
