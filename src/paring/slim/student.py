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
        heads: whether its new tensors, which are stored whole, are tuned, too.

    Attributes:
        kept: the values as they were pruned; of a new tensor all entries, as what is added to the fine-tune's: zeros.
        heads: names of the new tensors among them.
        parameters: those of the model that hold an entry.

    Raises:
        DeltaError: nothing is kept in a parameter.
    """

    def __init__(
        self,
        pruned: TaskVector,
        model: nn.Module,
        teacher: nn.Module,
        lesson: Lesson,
        stored: str = "fp32",
        group: int = 0,
        *,
        heads: bool = False,
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
        found = self.placing.parameters(pruned.new if heads else ())
        first = {id(p): n for n, p in reversed(found.items())}  # of a tensor that has two names
        self._twins = {n: first[id(p)] for n, p in found.items() if first[id(p)] != n}
        new = {n: p for n, p in found.items() if n not in self._twins}
        self.heads = tuple(new)  # in one order: a sum over them is the same in any process
        at |= {n: torch.arange(p.numel(), device=on) for n, p in new.items()}
        numbers |= {n: torch.zeros(p.numel(), device=on) for n, p in new.items()}
        self.parameters |= new
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
        out: dict[str, Lazy] = {}
        for name, value in values.items():
            change = self._pruned.change(name)
            to = wide(change.dtype)
            found = value.detach().cpu().to(to)
            if name in self.heads:
                found = (change.values.to(to) + found).to(change.dtype)
            out[name] = ready(replace(change, values=found))
        return out | {
            twin: ready(replace(self._pruned.change(twin), values=out[n].load().values)) for twin, n in self._twins.items()
        }

    def rms(self) -> float:
        """The root mean square of the values that were kept."""
        return rms(v for n, v in self.kept.items() if n not in self.heads)

    def rms_of_heads(self) -> float:
        """The root mean square of the new tensors' entries, as the fine-tune has them; 0: none is tuned."""
        return rms(self._pruned.change(name).values for name in self.heads)

    def _entries(self, values: Values) -> list[Entries]:
        coded = ((n, v.detach() if n in self.heads else self._comes_back(v.detach())) for n, v in values.items())
        return [*self._fixed, *((n, self._at[n], v) for n, v in coded)]

    def _comes_back(self, values: Tensor) -> Tensor:
        """What a file gives back of values that are coded coarsely; others as they are, and what cannot be coded."""
        if self._stored not in LARGEST or not bool(values.isfinite().all()):
            return values
        raw, scales = quantise(values.cpu(), self._stored, self._group)
        return dequantise(raw, self._stored, values.numel(), self._group, scales, "a refit").to(values.device)
