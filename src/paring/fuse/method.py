"""A merge method as data: its function, its parameters, what it needs, where it is from."""

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import torch
from torch import Tensor

from paring.fuse.inputs import Cuts, FuseError, Inputs, Value

REQUIRED: Final = "required"
SCOPES = ("tensor", "global")


@dataclass(frozen=True)
class Parameter:
    """One setting of a method.

    Attributes:
        default: None: not set; ``REQUIRED``: there is none.
        about: what it is, with its unit or range in words.
        kind: float, int or bool.
        per_model: one value a model, or one for all.
        low, high: bounds; ``open_low``, ``open_high``: without the bound itself.
        remedy: said where the value is out of bounds.
    """

    name: str
    default: Value
    about: str
    kind: type = float
    per_model: bool = False
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    remedy: str = ""

    @property
    def range(self) -> str:
        """As mathematicians write it, or the kind where there are no bounds."""
        if self.kind is bool:
            return "true or false"
        number = "a whole number" if self.kind is int else "a number"
        if math.isinf(self.low) and math.isinf(self.high):
            return number
        left = "(" if self.open_low or math.isinf(self.low) else "["
        right = ")" if self.open_high or math.isinf(self.high) else "]"
        return f"{number} in {left}{self.low:g}, {self.high:g}{right}"

    def check(self, value: Any, where: str) -> Value:
        """``value`` as this parameter's kind.

        Args:
            where: said in front of an error: the method and the model.

        Raises:
            FuseError: of another kind, or out of bounds.
        """
        if value is None and self.default is None:
            return None
        remedy = f": {self.remedy}" if self.remedy else ""
        if self.kind is bool:
            if not isinstance(value, bool):
                raise FuseError(f"{where}{self.name} is {value!r}; expected {self.range}")
            return value
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole and not (self.kind is float and isinstance(value, float) and math.isfinite(value)):
            raise FuseError(f"{where}{self.name} is {value!r}; expected {self.range}{remedy}")
        if whole and self.kind is float and abs(value) > sys.float_info.max:
            raise FuseError(f"{where}{self.name} is a number of {value.bit_length()} bits; expected {self.range}{remedy}")
        low = value > self.low if self.open_low else value >= self.low
        high = value < self.high if self.open_high else value <= self.high
        if not (low and high):
            raise FuseError(f"{where}{self.name} is {value!r}; expected {self.range}{remedy}")
        return self.kind(value)


Settings = Mapping[str, Value]


@dataclass(frozen=True)
class Ranking:
    """Numbers of one tensor that are ranked by size: a model's differences, say.

    Attributes:
        read: entries ``start:end:step``; flat, fp32, none negative.
        counts: of how many of the largest the end is asked for, of n numbers of which some are not zero.
        of_nonzero: whether these matter.
        model: the only one that is read; None: all may be.
    """

    read: Callable[[int, int, int], Tensor]
    counts: Callable[[int, int], Sequence[int]]
    of_nonzero: bool = False
    model: int | None = None


Stage = Callable[[Inputs, Cuts], Sequence[Ranking]]  # given what the stages before found


@dataclass(frozen=True)
class Resolved:
    """Parameters with every key there, checked; they go into ``Inputs``."""

    parameters: Settings
    per_model: tuple[Settings, ...]


@dataclass(frozen=True)
class Method:
    """A way to merge several models' tensors into one.

    Attributes:
        paper: where it is from.
        function: writes the merged tensor into its second argument, whatever its type.
        base: "required"; "optional": used where there is one; "unused": a base that shall take part is one of the models.
        min_models, max_models: besides the base; None: any number.
        needs_data: calibration data.
        exclusive: no two models may change the same entry.
        per_task_state: beside the merged tensor there is a mask and a scale for each task (``paring.fuse.emr``).
        work_bytes: given a tensor's shape and the parameters (all models', each one's), the most memory that it takes beside
            the output, as measured, but for pieces that stay in the cache; 0: it goes entry by entry.
        stages: what it ranks before it merges, for thresholds; a later stage may need what an earlier one found.
        check: what must hold between parameters; raises FuseError with the method's name in front.
    """

    name: str
    paper: str
    about: str
    function: Callable[[Inputs, Tensor], None]
    parameters: tuple[Parameter, ...] = ()
    base: str = "required"
    min_models: int = 1
    max_models: int | None = None
    needs_data: bool = False
    exclusive: bool = False
    per_task_state: bool = False
    work_bytes: Callable[[torch.Size, Settings, Sequence[Settings]], int] = lambda shape, parameters, per_model: 0
    stages: tuple[Stage, ...] = ()
    check: Callable[[Settings, Sequence[Settings]], str | None] = lambda parameters, per_model: None

    @property
    def needs_base(self) -> bool:
        return self.base == "required"

    @property
    def scopes(self) -> tuple[str, ...]:
        """Where its thresholds can be taken: in each tensor, or over all of them."""
        return SCOPES if self.stages else SCOPES[:1]

    def resolve(
        self, parameters: Mapping[str, Any], per_model: Sequence[Mapping[str, Any]], *, has_base: bool = True
    ) -> Resolved:
        """Parameters checked and completed with defaults.

        Args:
            parameters: for all models; one that is ``per_model`` may stand here too, for every model that has none itself.
            per_model: one mapping a model, the base not among them; in the models' order.
            has_base: whether there is a base.

        Raises:
            FuseError: an unknown parameter (the nearest is named), a wrong value, one that is missing, no base where one is
                needed, too few or too many models, parameters that do not go together.
        """
        self.check_models(len(per_model), has_base)
        known = {p.name: p for p in self.parameters}
        for where, given in [("", parameters), *((_of(i), one) for i, one in enumerate(per_model))]:
            for key in given:
                if key not in known:
                    raise FuseError(f"{self.name}: {where}unknown parameter {key!r}{self._nearest(key)}")
                if where and not known[key].per_model:
                    raise FuseError(f"{self.name}: {where}{key!r} is one for all models; expected it beside them, not in one")
        shared: dict[str, Value] = {}
        own: list[dict[str, Value]] = [{} for _ in per_model]
        for p in self.parameters:
            default = parameters.get(p.name, p.default)
            if not p.per_model:
                shared[p.name] = self._value(p, default, "")
                continue
            for i, one in enumerate(per_model):
                own[i][p.name] = self._value(p, one.get(p.name, default), _of(i))
        wrong = self.check(shared, own)
        if wrong:
            raise FuseError(f"{self.name}: {wrong}")
        return Resolved(shared, tuple(own))

    def check_models(self, count: int, has_base: bool) -> None:
        """That there are as many models (without the base) as it merges, and a base where it needs one."""
        if self.needs_base and not has_base:
            raise FuseError(f"{self.name}: no base; expected the pretrained model that all models were tuned from (base_model)")
        most = math.inf if self.max_models is None else self.max_models
        if not self.min_models <= count <= most:
            number = f"at least {self.min_models}" if self.max_models is None else f"{self.min_models}"
            if self.max_models not in (None, self.min_models):
                number += f" to {self.max_models}"
            beside = "" if self.base == "unused" else " (beside the base)"
            raise FuseError(f"{self.name}: {count} models{beside}; expected {number}")

    def __call__(self, inputs: Inputs, out: Tensor | None = None) -> Tensor:
        """The merged tensor.

        Args:
            inputs: see there; with the parameters of ``resolve``.
            out: where to write it: of the models' shape, contiguous, any float type (rounded to nearest); None: new, fp32.

        Raises:
            FuseError: a value is not finite (also of the result), or what the method says.
        """
        self.check_models(len(inputs.models), inputs.base is not None)
        if inputs.cuts is not None and "global" not in self.scopes:
            raise FuseError(f"{self.name}: no threshold to take over all tensors; expected scope: tensor")
        if out is None:
            out = torch.empty(inputs.shape, dtype=torch.float32, device=inputs.device)
        if out.shape != inputs.shape or not out.is_contiguous():
            raise FuseError(f"'{inputs.name}': the output is {list(out.shape)}; expected {list(inputs.shape)}, contiguous")
        if inputs.numel:
            with torch.no_grad():
                self.function(inputs, out)
        return out

    def _value(self, p: Parameter, value: Any, where: str) -> Value:
        if isinstance(value, str) and value == REQUIRED:
            remedy = "; expected one for each model" if p.per_model else ""
            raise FuseError(f"{self.name}: {where}no {p.name}{remedy} ({p.about})")
        return p.check(value, f"{self.name}: {where}")

    def _nearest(self, key: str) -> str:
        names = [p.name for p in self.parameters]
        near = get_close_matches(key, names, n=1, cutoff=0.5)
        if near:
            return f"; the nearest is {near[0]!r}"
        return f"; expected one of {', '.join(names)}" if names else "; it has none"


def _of(i: int) -> str:
    return f"model {i + 1}: "


OF_MODEL = re.compile(r"\bmodel (\d+): ")  # how errors tell of one: from 1, the base not counted
