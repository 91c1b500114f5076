"""A parameter as a configuration gives it: one value, a gradient over the layers, or several with filters on names.

    weight: 0.5                       a value
    weight: [0, 0.3, 1]               a gradient: interpolated at t, from 0 in the first layer to 1 in the last; texts and truth
                                      values are steps
    weight:                           the first whose filter is in the tensor's name, or that has none
      - {filter: mlp, value: 0.5}
      - value: 0

As mergekit reads them (its ``evaluate_setting``), with two differences: a filter that matches no tensor at all, and an empty
gradient, are errors.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from paring.fuse.inputs import FuseError
from paring.fuse.method import Parameter
from paring.fuse.yamlnodes import Scalar, Value

Numbers = tuple[Scalar, ...]


@dataclass(frozen=True)
class Choice:
    """Values from the first layer to the last, for tensors whose name contains ``filter`` (None: all)."""

    values: Numbers
    filter: str | None
    line: int

    def at(self, t: float) -> Scalar:
        if any(isinstance(v, bool | str) for v in self.values):
            return self.values[int(t * (len(self.values) - 1))]
        scaled = t * (len(self.values) - 1)
        first = int(scaled)
        second = min(first + 1, len(self.values) - 1)
        if first == second or self.values[first] == self.values[second]:
            return self.values[first]
        share = scaled - first
        return (1 - share) * float(self.values[first]) + share * float(self.values[second])


@dataclass(frozen=True)
class Setting:
    """One parameter in one place of a configuration."""

    choices: tuple[Choice, ...]
    line: int

    def at(self, name: str, t: float) -> Scalar | None:
        """The value for a tensor; None where no filter matches."""
        for choice in self.choices:
            if choice.filter in (None, "*") or str(choice.filter) in name:
                return choice.at(t)
        return None


Settings = Mapping[str, Setting]


def read_settings(value: Value, what: str, known: Mapping[str, Parameter]) -> dict[str, Setting]:
    """The settings under a key ``parameters``; every name and every value is checked.

    Args:
        what: the place, for errors.
        known: the method's parameters that may stand there.

    Raises:
        ConfigError: an unknown parameter, or a value that it cannot have.
    """
    return {name: _setting(found, known[name]) for name, found in value.mapping(what, known).items()}


def evaluate(places: Iterable[Settings], names: Iterable[str], name: str, t: float) -> dict[str, Scalar]:
    """Values by parameter: each from the first place that has one for this tensor.

    Args:
        places: from the one that counts most to the one that counts least.
        names: the parameters to look for.
    """
    found: dict[str, Scalar] = {}
    every = list(places)
    for parameter in names:
        for settings in every:
            if parameter in settings and (value := settings[parameter].at(name, t)) is not None:
                found[parameter] = value
                break
    return found


def _setting(value: Value, parameter: Parameter) -> Setting:
    items = value.items(parameter.name) if value.is_list else [value]
    if value.is_mapping or (items and items[0].is_mapping):
        return Setting(tuple(_choice(item, parameter) for item in items), value.line)
    return Setting((Choice(_numbers(value, parameter), None, value.line),), value.line)


def _choice(value: Value, parameter: Parameter) -> Choice:
    found = value.mapping(f"a choice of {parameter.name}", ("filter", "value"))
    if "value" not in found:
        raise value.error(f"{parameter.name}: a choice without a value; expected value: …, and filter: … before the last")
    text = found["filter"].text("filter") if "filter" in found else None
    return Choice(_numbers(found["value"], parameter), text, value.line)


def _numbers(value: Value, parameter: Parameter) -> Numbers:
    items = value.items(parameter.name) if value.is_list else [value]
    if not items:
        raise value.error(f"{parameter.name} is an empty list; expected a value, or several from the first layer to the last")
    return tuple(_checked(item, parameter) for item in items)


def _checked(value: Value, parameter: Parameter) -> Scalar:
    found = value.scalar(parameter.name)
    if isinstance(found, str) and parameter.kind in (int, float):
        with suppress(ValueError):
            found = parameter.kind(found)  # YAML takes 1e-3 for a text
    try:
        checked = parameter.check(found, "")
    except FuseError as error:
        raise value.error(str(error)) from None
    assert checked is not None
    return checked
