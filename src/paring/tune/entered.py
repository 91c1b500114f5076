"""A model's parameters as they were when a session was entered: what freezing must restore, what training relies on.

A working copy stands for entries of one Parameter of one type and shape. ``model.bfloat16()`` changes the type under
it, ``load_state_dict(assign=True)`` puts another Parameter in its place, which no optimizer knows. Neither can be
followed, so both are noticed. Moving a model to another device keeps its Parameters and is followed.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn


class _Record(NamedTuple):
    module: nn.Module
    attribute: str
    name: str
    parameter: nn.Parameter
    requires_grad: bool
    dtype: torch.dtype
    shape: torch.Size


class Change(NamedTuple):
    """What became of one parameter; ``writable``: its working copy still fits, if by rounding."""

    parameter: nn.Parameter
    text: str
    writable: bool


class Entered:
    """The parameters of ``model`` under every module that holds them, as they are now."""

    def __init__(self, model: nn.Module) -> None:
        self._records = [
            _Record(m, attribute, f"{prefix}.{attribute}" if prefix else attribute, p, p.requires_grad, p.dtype, p.shape)
            for prefix, m in model.named_modules()
            for attribute, p in m._parameters.items()
            if p is not None
        ]
        self._watched: list[_Record] = []
        self.num_entries = sum(p.numel() for p in model.parameters())

    def freeze(self) -> None:
        for record in self._records:
            record.parameter.requires_grad_(False)

    def restore(self) -> None:
        """``requires_grad`` of every parameter as before, of one that took its place too.

        Raises:
            RuntimeError: torch refuses some (it has become an integer, say); all others are restored then.
        """
        failed: list[tuple[str, Exception]] = []
        for record in self._records:
            now = record.module._parameters.get(record.attribute)
            for parameter in (record.parameter, now):
                try:
                    if isinstance(parameter, nn.Parameter):
                        parameter.requires_grad_(record.requires_grad)
                except RuntimeError as error:
                    failed.append((record.name, error))
        for name, reason in failed[:1]:
            raise RuntimeError(
                f"requires_grad of '{name}' could not be set back to what it was before the session; everything else is "
                f"as before: {reason}"
            ) from reason

    def watch(self, trained: Iterable[nn.Parameter]) -> None:
        """Names the parameters that ``changes`` looks at."""
        wanted = {id(p) for p in trained}
        self._watched = [record for record in self._records if id(record.parameter) in wanted]

    def changes(self) -> list[Change]:
        """What became of the watched parameters that no working copy can follow."""
        out = []
        for module, attribute, name, parameter, _, dtype, shape in self._watched:
            now = module._parameters.get(attribute)
            if now is not parameter:
                out.append(Change(parameter, f"'{name}' is another Parameter", False))
            elif now.shape != shape:
                out.append(Change(parameter, f"'{name}' was {list(shape)}, now it is {list(now.shape)}", False))
            elif now.dtype != dtype:
                out.append(Change(parameter, f"'{name}' was {dtype}, now it is {now.dtype}", True))
        return out


def refusal(changes: list[Change]) -> RuntimeError:
    """The error for changes found in an open session."""
    more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
    return RuntimeError(
        f"{changes[0].text}{more}: changed while the session was open, as by model.bfloat16() or "
        "load_state_dict(assign=True), where its working copy cannot follow. What was written into the weights so far is "
        "there; leave the session (its with block), change the model outside, and open a new session"
    )
