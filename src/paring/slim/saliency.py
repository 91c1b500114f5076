"""How much an entry matters: the mean square of the gradient at it, on the way from the base to the fine-tune.

What pruning an entry costs grows with the square of its value times the curvature there, for which the squared gradient (the
diagonal of the empirical Fisher matrix) stands in: as in optimal brain damage (LeCun et al. 1990) and Fisher merging (Matena
and Raffel 2022, arXiv 2111.09832). The gradient is that of the distance to the whole fine-tune (``lesson``), which is zero at
the fine-tune itself; hence the points on the way.
"""

import copy
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from paring.delta.taskvector import TaskVector
from paring.slim.lesson import Lesson, gradients, parts
from paring.slim.placing import Placing

POINTS = (0.1, 0.4, 0.7)
_ROWS = 16  # of one gradient: the square of a mean over many rows forgets those on which they disagree


def saliency(vector: TaskVector, model: nn.Module, lesson: Lesson, points: Sequence[float] = POINTS) -> dict[str, Tensor]:
    """The mean squared gradient of every entry of the tensors that are parameters, by name, flat, fp32, on the CPU.

    Takes as long as about ten evaluations on the lesson's rows, and the memory of two more models.

    Args:
        vector: of the fine-tune. model: its base, bitwise as before in the end.
        lesson: rows of the calibration set.
        points: shares of ``vector`` at which gradients are taken, in [0, 1).

    Raises:
        DeltaError: the model is another base.
    """
    teacher = copy.deepcopy(model)
    with Placing(model, vector) as placing, ExitStack() as stack:
        parameters = placing.parameters(vector.names)
        total = {name: torch.zeros(p.numel(), device=p.device) for name, p in parameters.items()}

        def take(name: str, gradient: Tensor) -> None:
            flat = gradient.reshape(-1).float()
            total[name].addcmul_(flat, flat)

        stack.enter_context(vector.apply(teacher))
        teacher.eval()
        count = 0
        for point in points:
            with (vector.only(*parameters) * point).apply(model), gradients(parameters, take, model):
                for batch in lesson.batches:
                    for part in parts(batch, _ROWS):
                        lesson.distance(model, teacher, part).backward()
                        count += 1
    return {name: (t / count).cpu() for name, t in total.items()}
