"""Task vectors: ``tau = theta_ft - theta_pre``, by tensor name, read when they are needed.

    tau = paring.diff("base", "finetuned")        # or session.delta(), or paring.load_delta(file, base=...)
    less = 0.5 * tau                              # nothing is read yet
    both = tau + other                            # of the same base, or an error
    tau["encoder.layer.0.output.dense.weight"]    # a tensor, fp32

    applied = tau.apply(model)                    # in place; applied.revert() gives back bitwise the base

Tensors that the base does not have (a new head) are in ``new``; they are no differences, and travel along unchanged.
(Task vectors: Ilharco et al. 2023, arXiv 2212.04089; SliceFine's and NPS's deltas are task vectors.)
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from re import error as PatternError
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from paring.delta import sums
from paring.delta.base import Base
from paring.delta.blocks import same_bits
from paring.delta.change import Change, Kind, wide
from paring.delta.errors import DeltaError
from paring.delta.factors import LowRank
from paring.delta.places import Everywhere, same_places
from paring.patterns import expression

if TYPE_CHECKING:
    from paring.delta.applied import Applied


@dataclass(frozen=True)
class Lazy:
    """The change of one tensor, read when it is needed.

    Attributes:
        shape, dtype, kind: as in ``Change``.
        load: gives it; nothing is kept.
        factors: where the difference is known as a product, gives its factors; ``load`` multiplies them.
    """

    shape: torch.Size
    dtype: torch.dtype
    kind: Kind
    load: Callable[[], Change]
    factors: Callable[[], LowRank] | None = None


def ready(change: Change) -> Lazy:
    """A change that is in memory."""
    return Lazy(change.shape, change.dtype, change.kind, lambda: change)


def low_rank(shape: torch.Size, dtype: torch.dtype, factors: Callable[[], LowRank], where: str) -> Lazy:
    """A difference that is a product of factors."""
    return Lazy(shape, dtype, "real", lambda: factors().change(shape, dtype, where), factors)


@dataclass(frozen=True, eq=False)
class TaskVector:
    """See above. ``len``, ``in`` and iteration are over the names of differences.

    Attributes:
        changes: by tensor name, differences and new tensors.
        base: what it was made on.
        removed: tensors of the base that the tuned model does not have; ``paring apply`` leaves them out.
        facts: plain values that travel with it (method, keep, calibration, licence).
    """

    changes: Mapping[str, Lazy]
    base: Base
    removed: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    _applied: "WeakKeyDictionary[nn.Module, Applied]" = field(default_factory=WeakKeyDictionary, repr=False)

    # What it holds.

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors that differ from the base's."""
        return tuple(n for n, c in self.changes.items() if c.kind != "new")

    @property
    def new(self) -> tuple[str, ...]:
        """Of the tensors that the base does not have."""
        return tuple(n for n, c in self.changes.items() if c.kind == "new")

    @property
    def exact(self) -> bool:
        """Whether base + delta is bitwise the fine-tune it was taken from."""
        return all(c.kind != "real" for c in self.changes.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the entries it changes, in the types of their tensors, without where they lie."""
        return sum(change.places.count * change.dtype.itemsize for _, change in self.load_all())

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.changes and self.changes[str(name)].kind != "new"

    def __getitem__(self, name: str) -> Tensor:
        """The difference of one tensor, ``after - before``: dense, fp32 (fp64 for fp64 tensors)."""
        return self.change(name).dense(f"'{name}'")

    def change(self, name: str) -> Change:
        """The change of one tensor as it is kept.

        Raises:
            KeyError: there is none of that name; the nearest are named.
        """
        if name not in self.changes:
            near = get_close_matches(name, self.changes, n=3)
            hint = f"; the nearest are {', '.join(map(repr, near))}" if near else ""
            raise KeyError(f"the task vector has no tensor '{name}'{hint}")
        return self.changes[name].load()

    def load_all(self) -> Iterator[tuple[str, Change]]:
        """Every change, one at a time."""
        for name, lazy in self.changes.items():
            yield name, lazy.load()

    def differences(self) -> Iterator[tuple[str, Tensor]]:
        """Every difference as flat numbers, one tensor at a time; entries that are not kept are left out."""
        for name in self.names:
            yield name, self.change(name).difference(f"'{name}'")

    # Algebra. Nothing is computed before it is read.

    def __mul__(self, factor: float) -> "TaskVector":
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            return NotImplemented
        if not math.isfinite(factor):
            raise ValueError(f"a task vector times {factor}: expected a finite number")

        def scaled(name: str, lazy: Lazy) -> Lazy:
            if (factors := lazy.factors) is not None:
                return low_rank(lazy.shape, lazy.dtype, lambda: factors().times(float(factor)), f"'{name}'")
            return replace(lazy, kind="real", load=lambda: lazy.load().real(f"'{name}'", float(factor)))

        changes = {n: c if c.kind == "new" else scaled(n, c) for n, c in self.changes.items()}
        return self._with(changes)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "TaskVector":
        return self * (1.0 / divisor)

    def __neg__(self) -> "TaskVector":
        return self * -1.0

    def __sub__(self, other: "TaskVector") -> "TaskVector":
        return self + -other if isinstance(other, TaskVector) else NotImplemented

    def __add__(self, other: "TaskVector") -> "TaskVector":
        """The sum, over the names of both.

        Raises:
            DeltaError: they have different bases, shapes or types, or different new tensors of one name.
        """
        if not isinstance(other, TaskVector):
            return NotImplemented
        self.base.refuse_other(other.base, "a sum of task vectors")
        changes = dict(self.changes)
        for name, theirs in other.changes.items():
            ours = changes.get(name)
            if ours is not None and (ours.shape, ours.dtype, ours.kind == "new") != (
                theirs.shape,
                theirs.dtype,
                theirs.kind == "new",
            ):
                raise DeltaError(
                    f"a sum of task vectors: '{name}' is {list(ours.shape)} {ours.dtype} ({ours.kind}) in one and "
                    f"{list(theirs.shape)} {theirs.dtype} ({theirs.kind}) in the other"
                )
            changes[name] = theirs if ours is None else _sum(name, ours, theirs)
        merged = Base({**other.base.tensors, **self.base.tensors}, {**other.base.tied, **self.base.tied}, self.base.origin)
        removed = tuple(n for n in self.removed if n in other.removed)
        return TaskVector(changes, merged, removed)

    def only(self, *patterns: str) -> "TaskVector":
        """Restricted to the tensors that match a name, a glob or ``re:…`` (as ``SliceConfig.targets``).

        Raises:
            ValueError: a pattern matches nothing.
        """
        chosen: set[str] = set()
        for pattern in patterns:
            try:
                found = {n for n in self.changes if expression(pattern).fullmatch(n)}
            except PatternError as error:
                raise ValueError(f"only: {pattern!r} is no regular expression: {error}") from None
            if not found:
                near = get_close_matches(pattern, self.changes, n=3, cutoff=0.3)
                raise ValueError(f"only: {pattern!r} matches no tensor; the nearest are {', '.join(map(repr, near))}")
            chosen |= found
        return self._with({n: c for n, c in self.changes.items() if n in chosen})

    def norm(self) -> float:
        """The L2 norm over all differences, summed in fp64."""
        return math.sqrt(sum(sums.dot(d, d) for _, d in self.differences()))

    def similarity(self, other: "TaskVector") -> float:
        """The cosine of the angle to another task vector of the same base; 0 where one of them is zero.

        Raises:
            DeltaError: as for ``+``.
        """
        self.base.refuse_other(other.base, "a similarity of task vectors")
        dot = 0.0
        for name in self.names:
            if name in other:
                a, b = self.change(name), other.change(name)
                if (a.shape, a.dtype) != (b.shape, b.dtype):
                    raise DeltaError(
                        f"a similarity of task vectors: '{name}' is {list(a.shape)} in one, {list(b.shape)} in the other"
                    )
                where = f"'{name}'"
                together = same_places(a.places, b.places)
                dot += sums.dot(*((x.difference(where) if together else x.dense(where)) for x in (a, b)))
        norms = self.norm() * other.norm()
        return dot / norms if norms else 0.0

    def in_memory(self) -> "TaskVector":
        """The same, read whole."""
        return self._with({name: ready(change) for name, change in self.load_all()})

    # On a model.

    def apply(self, model: nn.Module) -> "Applied":
        """Turns the base into the tuned model, in place.

        Args:
            model: holds this task vector's base (checked by hash), and room for its new tensors.

        Returns:
            The way back: ``revert()``, also by ``with``.

        Raises:
            DeltaError: the model is not the base, or has no room for a new tensor; nothing is changed then.
            RuntimeError: a session is open on the model or a part of it, and would overwrite the result.
        """
        from paring.delta.applied import apply

        applied = self._applied[model] = apply(self, model)
        return applied

    def applied_to(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tuned model's state dict from the base's, which stays as it is; tensors that do not change are shared.

        Raises:
            DeltaError: ``state`` is not this task vector's base.
        """
        from paring.delta.applied import state_with

        return state_with(self, state)

    def revert(self, model: nn.Module) -> None:
        """Turns the tuned model back into the base, in place and bitwise.

        It need not have been applied by this object when every change is exact (or was taken from this model by a
        session); new tensors then become what they were before the session, or stay where that is not known.

        Raises:
            DeltaError: the model is not base + this task vector; nothing is changed then. RuntimeError: as ``apply``.
        """
        from paring.delta.applied import take_back

        applied = self._applied.pop(model, None)
        if applied is None or applied.reverted:
            take_back(self, model)
            return
        try:
            applied.revert()
        except BaseException:
            self._applied[model] = applied
            raise

    def _with(self, changes: Mapping[str, Lazy]) -> "TaskVector":
        return TaskVector(changes, self.base, self.removed, self.facts)


def _sum(name: str, ours: Lazy, theirs: Lazy) -> Lazy:
    where = f"'{name}'"

    def load() -> Change:
        a, b = ours.load(), theirs.load()
        if ours.kind == "new":
            if not same_bits(a.values, b.values):
                raise DeltaError(
                    f"a sum of task vectors: both have a new tensor {where}, with other values; restrict one with only()"
                )
            return a
        a, b = a.real(where), b.real(where)
        if same_places(a.places, b.places):
            return replace(a, values=a.values + b.values)
        total = a.dense(where) + b.dense(where)
        return Change(ours.shape, ours.dtype, "real", Everywhere(total.numel()), total.to(wide(ours.dtype)).view(-1))

    return Lazy(ours.shape, ours.dtype, "new" if ours.kind == "new" else "real", load)
