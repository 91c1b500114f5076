"""The entries that a pruned task vector keeps, on its base: other values for them are tried beside the whole fine-tune."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from paring.delta.change import wide
from paring.delta.codec.quantise import LARGEST, dequantise, quantise
from paring.delta.errors import DeltaError
from paring.delta.places import Scattered
from paring.delta.taskvector import Lazy, TaskVector, ready
from paring.slim.lesson import Batch, Lesson, rms
from paring.slim.placing import Entries, Placing

Values = Mapping[str, Tensor]  # of the entries, by tensor; fp32, on the model's device


class Student:
    """Works while ``placing`` is open and gradients go to ``take`` (``paring.slim.lesson.gradients``).

    Args:
        pruned: as the pruners give it. model: its base.
        teacher: the fine-tune. lesson: what is compared.
        stored, group: the type that values will be stored in (``save_delta``); on the model is what comes back of them.

    Attributes:
        kept: the values as they were pruned.
        parameters: those of the model that hold an entry.

    Raises:
        DeltaError: nothing is kept in a parameter.
    """

    def __init__(
        self, pruned: TaskVector, model: nn.Module, teacher: nn.Module, lesson: Lesson, stored: str = "fp32", group: int = 0
    ) -> None:
        self._pruned, self._model, self._teacher, self._lesson = pruned, model, teacher, lesson
        self._stored, self._group = stored, group
        self.placing = Placing(model, pruned)
        changes = {n: c for n in pruned.names if isinstance((c := pruned.change(n)).places, Scattered)}
        self.parameters = self.placing.parameters(changes)
        if not self.parameters:
            raise DeltaError("no entry that is kept lies in a parameter of the model, so there is none to refit")
        on = next(model.parameters()).device
        at = {n: c.places.flat(c.shape).to(on) for n, c in changes.items()}
        numbers = {n: c.difference(f"'{n}'").to(on, torch.float32) for n, c in changes.items()}
        self._at = {n: at[n] for n in self.parameters}
        self.kept: Values = {n: numbers[n] for n in self.parameters}
        self._fixed = [(n, at[n], numbers[n]) for n in changes if n not in self.parameters]
        self._gradients: dict[str, Tensor] = {}

    def take(self, name: str, gradient: Tensor) -> None:
        """Of a parameter's gradient, what belongs to its entries."""
        self._gradients[name] = gradient.reshape(-1)[self._at[name]].float()

    def gradient(self, values: Values, batch: Batch) -> tuple[float, Values]:
        """The distance to the fine-tune on a batch, and its gradient by the values (of coarse ones straight through); tensors
        that the distance does not depend on have none."""
        self._gradients = {}
        with self.placing.candidate(self._entries(values)):
            distance = self._lesson.distance(self._model, self._teacher, batch)
            distance.backward()
        found, self._gradients = self._gradients, {}
        return float(distance.detach()), found

    @torch.no_grad()
    def distance(self, values: Values) -> float:
        """The mean over the lesson's batches as they are."""
        with self.placing.candidate(self._entries(values)):
            found = [float(self._lesson.distance(self._model, self._teacher, batch)) for batch in self._lesson.batches]
        return sum(found) / len(found)

    def changes(self, values: Values) -> dict[str, Lazy]:
        """The task vector's tensors that have other values now."""
        found = {name: (self._pruned.change(name), value.detach().cpu()) for name, value in values.items()}
        return {name: ready(replace(change, values=v.to(wide(change.dtype)))) for name, (change, v) in found.items()}

    def rms(self) -> float:
        """The root mean square of the values that were kept."""
        return rms(self.kept.values())

    def _entries(self, values: Values) -> list[Entries]:
        return [*self._fixed, *((n, self._at[n], self._comes_back(v.detach())) for n, v in values.items())]

    def _comes_back(self, values: Tensor) -> Tensor:
        """What a file gives back of values that are coded coarsely; others as they are, and what cannot be coded."""
        if self._stored not in LARGEST or not bool(values.isfinite().all()):
            return values
        raw, scales = quantise(values.cpu(), self._stored, self._group)
        return dequantise(raw, self._stored, values.numel(), self._group, scales, "a refit").to(values.device)
