"""How many weights a task needs: those of NPS's subspaces, found by gradient where CMA-ES cannot search so many.

    kind                a weight for each kind of tensor (attention, MLP ...)
    tensor              one for each tensor
    magnitude*tensor    eight for each tensor: its entries that are kept, cut by magnitude into equal parts
    row                 one for each row of each matrix

The entries are those of `fitted`, and so are rows, distance, steps, the start and the rate of factors; there every entry has a
weight of its own.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from paring.delta.taskvector import TaskVector
from paring.slim.lesson import Lesson, endless, gradients
from paring.slim.refit import FACTOR_RATE, Refit, nearest_multiple, restoring
from paring.slim.student import Student
from paring.slim.subspaces import KINDS, kind_of

PARTS = 8

# Of a tensor's name and shape, and the positions and values of its entries that are kept: which of its weights each has.
Cut = Callable[[str, torch.Size, Tensor, Tensor], Tensor]


def _by_magnitude(name: str, shape: torch.Size, at: Tensor, values: Tensor) -> Tensor:
    return values.abs().argsort(stable=True).argsort(stable=True) * PARTS // max(1, values.numel())


def _by_row(name: str, shape: torch.Size, at: Tensor, values: Tensor) -> Tensor:
    return at // shape[1:].numel() if len(shape) > 1 else torch.zeros_like(at)


CUTS: dict[str, Cut] = {
    "kind": lambda name, shape, at, values: torch.full_like(at, KINDS.index(kind_of(name, shape))),
    "tensor": lambda name, shape, at, values: torch.zeros_like(at),
    "magnitude*tensor": _by_magnitude,
    "row": _by_row,
}


def weighted(pruned: TaskVector, tuned: TaskVector, model: nn.Module, lesson: Lesson, cut: str, how: Refit) -> TaskVector:
    """``pruned`` with the values of its subspaces times weights above zero; its facts have their number, ``num_weights``.

    Args:
        pruned, tuned, model, lesson: as ``paring.slim.refit.refit`` takes them.
        cut: of ``CUTS``. how: its steps, mix and seed count.
    """
    teacher = copy.deepcopy(model).eval()
    student = Student(pruned, model, teacher, lesson)
    labels, num_weights = _labels(pruned, student.kept, cut)
    with tuned.apply(teacher), student.placing, gradients(student.parameters, student.take, model):
        start = nearest_multiple(student, restoring(pruned, tuned), student.distance(student.kept)).values
        logarithms = torch.zeros(num_weights)

        def values() -> dict[str, Tensor]:
            return {n: v * logarithms[labels[n]].exp() for n, v in start.items()}

        adam = torch.optim.Adam([logarithms], lr=FACTOR_RATE)
        batches = endless(lesson, how.mix, torch.Generator().manual_seed(how.seed))
        for step in range(how.steps):
            adam.param_groups[0]["lr"] = FACTOR_RATE * (1 - step / how.steps)
            tried = values()
            _, gradient = student.gradient(tried, next(batches))
            logarithms.grad = torch.zeros_like(logarithms)
            for n, g in gradient.items():
                logarithms.grad.index_add_(0, labels[n], g * tried[n])
            adam.step()
        changes = {**pruned.changes, **student.changes(values())}
    return TaskVector(changes, pruned.base, pruned.removed, {**pruned.facts, "num_weights": num_weights})


def _labels(pruned: TaskVector, kept: Mapping[str, Tensor], cut: str) -> tuple[dict[str, Tensor], int]:
    """The number of each entry's weight, by tensor, and how many weights there are."""
    found, first = [], 0
    for n, v in kept.items():
        change = pruned.change(n)
        own = CUTS[cut](n, change.shape, change.places.flat(change.shape), v)
        found.append(own + first)
        if cut != "kind" and own.numel():  # which tensors share
            first += int(own.max()) + 1
    used, numbers = torch.cat(found).unique(return_inverse=True)
    return dict(zip(kept, numbers.split([v.numel() for v in kept.values()]), strict=True)), used.numel()
