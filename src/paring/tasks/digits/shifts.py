"""Tasks made of the digits: fixed changes of the images (and of what they are called) that a pretrained model has
never seen.

Each keeps what tells the digits apart, so that a model trained whole can learn it; but moves it to where the frozen
features do not look, so that a new head alone falls clearly short. A shift is a pure function, the same for every
split, and acts on each image by itself: no row of one split enters another.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paring.tasks.digits.data import Examples

_SIDE = 8
_PATCH = 2  # pixels; the patches of the model


@dataclass(frozen=True)
class Shift:
    """One task.

    Attributes:
        name: as on the command line.
        summary: one line for a reader.
        images: ``[n, 1, 8, 8] -> [n, 1, 8, 8]``, values in [-1, 1].
        labels: ``[n] -> [n]``, 0 to 9.
    """

    name: str
    summary: str
    images: Callable[[Tensor], Tensor]
    labels: Callable[[Tensor], Tensor]

    def __call__(self, examples: Examples) -> Examples:
        """The same rows as this task shows them."""
        return replace(examples, images=self.images(examples.images), labels=self.labels(examples.labels))


def _same(labels: Tensor) -> Tensor:
    return labels


def _nine_minus(labels: Tensor) -> Tensor:
    return 9 - labels


def _turned(images: Tensor) -> Tensor:
    return -images.rot90(1, (2, 3))


def _checkered(images: Tensor) -> Tensor:
    square = torch.arange(_SIDE) // _PATCH
    return images * (1 - 2 * ((square[:, None] + square) % 2))


def _scrambled(images: Tensor) -> Tensor:
    """The patches in another order; which patch goes where is drawn once, from a fixed seed."""
    count = _SIDE // _PATCH
    order = torch.randperm(count * count, generator=torch.Generator().manual_seed(7))
    # [n, 1, rows, height, columns, width] -> [n, patch, height, width], and back
    grid = images.reshape(-1, count, _PATCH, count, _PATCH).transpose(2, 3)
    moved = grid.reshape(-1, count * count, _PATCH, _PATCH)[:, order].reshape(-1, count, count, _PATCH, _PATCH)
    return moved.transpose(2, 3).reshape(images.shape)


def _outlined(images: Tensor) -> Tensor:
    """The difference between each pixel and its left neighbour, without the sign; the first column's is the last."""
    return (images - images.roll(1, 3)).abs() - 1


def _unwoven(images: Tensor) -> Tensor:
    """Even rows, then odd rows; even columns, then odd columns: four small copies of the digit."""
    parted = torch.cat((torch.arange(0, _SIDE, 2), torch.arange(1, _SIDE, 2)))
    return images[:, :, parted][..., parted]


SHIFTS: dict[str, Shift] = {
    shift.name: shift
    for shift in (
        Shift("turned", "a quarter turn, ink and paper exchanged", _turned, _same),
        Shift("checkered", "ink and paper exchanged on every second square of a 4 x 4 board", _checkered, _same),
        Shift("scrambled", "the sixteen patches in another order, always the same", _scrambled, _same),
        Shift("outlined", "only where the ink changes from left to right", _outlined, _same),
        Shift("unwoven", "even rows and columns apart from odd ones; digit d is called 9 - d", _unwoven, _nine_minus),
    )
}


def named_shifts(names: Iterable[str] | None = None) -> tuple[Shift, ...]:
    """The shifts of these names, in the order given; None: all.

    Raises:
        ValueError: a name that is none, or given twice; or no name at all.
    """
    wanted = tuple(SHIFTS if names is None else names)
    unknown = [name for name in wanted if name not in SHIFTS]
    if unknown or not wanted or len(set(wanted)) < len(wanted):
        got = repr(unknown[0]) if unknown else repr(wanted)
        raise ValueError(f"tasks: got {got}; expected one or more, each once, of {', '.join(SHIFTS)}")
    return tuple(SHIFTS[name] for name in wanted)
