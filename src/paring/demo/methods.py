"""The ways to tune that the demo compares. Each takes the one pretrained model and hands it back bitwise as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from paring.delta.diff import diff
from paring.delta.taskvector import TaskVector
from paring.tune.config import SliceConfig
from paring.tune.session import sliced

_HEAD = "classifier"
# The patch embedding is left alone: it has four inputs, so a slice would be all of it.
_STATIC = SliceConfig(rank=8, modes=("column",), move_steps=None, exclude=("patch_embeddings.projection",))
_MOVING = SliceConfig(rank=8, modes=("column",), move_steps=25, exclude=("patch_embeddings.projection",))


@dataclass(frozen=True)
class Tuning:
    """A model made ready to be tuned.

    Attributes:
        parameters: what the optimizer gets.
        after_step: to be called after every optimizer step; None: nothing.
        num_trainable: entries trained at any one time.
        learnt: what the tuning has added to the base; asked after training.
    """

    parameters: list[nn.Parameter]
    after_step: Callable[[], None] | None
    num_trainable: int
    learnt: Callable[[], TaskVector]


@dataclass(frozen=True)
class Method:
    """One way to tune.

    Attributes:
        name: in the JSON file. label: for a reader.
        rate: learning rate; the best of a few on the validation splits of the five tasks.
        config: of the slices; None: whole tensors are trained.
        prefix: without slices, what is trained: parameters whose name starts so.
    """

    name: str
    label: str
    rate: float
    config: SliceConfig | None = None
    prefix: str = ""

    @contextmanager
    def prepare(self, model: nn.Module) -> Iterator[Tuning]:
        """The model ready to be tuned this way; on leaving, also by an exception, as it was before."""
        with _slices(model, self.config) if self.config else _whole(model, self.prefix) as tuning:
            yield tuning


METHODS = {
    method.name: method
    for method in (
        Method("head", "head only", rate=3e-1, prefix=_HEAD),
        Method("static", "static slices", rate=1e-2, config=_STATIC),
        Method("moving", "moving slices", rate=2e-2, config=_MOVING),
        Method("full", "full fine-tuning", rate=2e-3),
    )
}


@contextmanager
def _slices(model: nn.Module, config: SliceConfig) -> Iterator[Tuning]:
    """Slices of every layer, and the head."""
    session = sliced(model, config, verbose=False)
    try:
        with session:
            yield Tuning(session.parameters(), session.step, session.num_trainable, session.delta)
    finally:
        session.revert()


@contextmanager
def _whole(model: nn.Module, prefix: str) -> Iterator[Tuning]:
    """Every parameter whose name starts with ``prefix``; its bytes are kept as a copy meanwhile."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    trained = [parameter for name, parameter in model.named_parameters() if name.startswith(prefix)]
    num_trainable = sum(parameter.numel() for parameter in trained)
    try:
        model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        yield Tuning(trained, None, num_trainable, lambda: diff(before, model))
    finally:
        model.load_state_dict(before)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
