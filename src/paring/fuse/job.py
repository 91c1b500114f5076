"""One tensor of a merge's output as data: what it is made of, and how."""

from dataclasses import dataclass
from typing import NamedTuple

from paring.delta.checkpoint.tensorinfo import TensorInfo
from paring.fuse.config import Reference
from paring.fuse.method import Resolved


class Origin(NamedTuple):
    """A tensor of a model: which model, and the model's own name for it."""

    model: Reference
    name: str


@dataclass(frozen=True)
class Job:
    """One tensor of the output.

    Attributes:
        info: type and shape in the output.
        sources: what is merged; base: beside what.
        settings: of the method; None: a buffer, which is copied: of whole numbers, the same in all sources; of floats and
            counters, the base's (first model's).
        keys: what the models are called, for seeds.
        aliases: further names in the output.
        vocabulary: whether it has a row for each entry of the vocabulary, to be aligned.
    """

    name: str
    info: TensorInfo
    sources: tuple[Origin, ...]
    base: Origin | None
    settings: Resolved | None
    keys: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    vocabulary: bool = False

    @property
    def origins(self) -> tuple[Origin, ...]:
        return (*self.sources, self.base) if self.base else self.sources
