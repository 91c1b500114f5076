"""The configuration of a merge with rows: which tasks it has, where their weights begin, and it with others.

What is found is a configuration, too: ``with_weights`` writes it, and ``paring fuse`` of that makes the same merge again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from paring.fuse.as_bank import task_names
from paring.fuse.config import Config, Reference, parse_config
from paring.fuse.inputs import FuseError
from paring.fuse.settings import Setting
from paring.fusion.coefficients import LAMBDA, WEIGHT, searchable
from paring.fusion.groups import Group

NPS, SUM = "nps", "task_arithmetic"  # what remains of the first when all is pruned is the second


@dataclass(frozen=True)
class Weights:
    """What a search found, as a configuration says it.

    Attributes:
        of: by task, a weight for each group; none: the configuration's stay. groups: of layers.
        factor: lambda; None: as it was.
    """

    of: Mapping[str, Sequence[float]]
    groups: Sequence[Group]
    factor: float | None = None
    models: Mapping[str, str] = field(default_factory=dict)  # by task: what takes a model's place


def tasks_of(config: Config, *, searched: bool = True) -> dict[str, Reference]:
    """The models by the names of their tasks, in order; the base is none.

    Args:
        searched: whether weights are searched; else values are fitted alone.

    Raises:
        ConfigError: two have one name, or that cannot be done for such a configuration.
    """
    done, way = ("weights are searched", "a search") if searched else ("values are fitted", "a fit")
    if not config.whole:
        raise config.error("slices", f"{done} for whole models; expected the key models in place of slices")
    if config.base is None:
        raise config.error("merge_method", f"{way} puts merges on the base; expected base_model")
    if config.base.adapter:
        raise config.error("base_model", f"{way} puts merges on the base, and {config.base} is no checkpoint; write it first")
    for key in ("tokenizer_source", "tokenizer"):
        if key in config.lines:
            raise config.error(key, f"{done} for models of one vocabulary; leave {key} out, or fuse without {way}")
    if config.method.per_task_state:
        raise config.error("merge_method", f"{config.method.name} writes a bank, and {done} for one merged model")
    if searched:
        try:
            searchable(config.method)
        except FuseError as error:
            raise config.error("merge_method", str(error)) from None
    return {name: reference for reference, name in task_names(config).items()}


def settled(config: Config) -> bool:
    """Whether the configuration is one merge: it gives weights, or the method has none. (nps has its search beside them.)"""
    if config.method.name == NPS:
        return False
    if not any(p.name == WEIGHT and p.per_model for p in config.method.parameters):
        return True
    return WEIGHT in config.parameters or any(WEIGHT in source.parameters for source in config.slices[0].sources)


def configured(config: Config) -> list[float] | None:
    """The weight of each task; None: the configuration gives none.

    Raises:
        ConfigError: some have none, or one has several (for layers, or with filters), where a search needs one to begin with.
    """
    found: list[float | None] = []
    for source in config.slices[0].sources:
        if source.model == config.base:
            continue
        setting = source.parameters.get(WEIGHT) or config.parameters.get(WEIGHT)
        found.append(None if setting is None else _single(config, setting))
    given = [w for w in found if w is not None]
    if given and len(given) < len(found):
        raise config.error(
            "models", "some models have a weight and others none; a search begins with all weights, or needs none"
        )
    return given or None


def with_weights(config: Config, weights: Weights, remark: str = "") -> Config:
    """The same configuration with other weights, checked.

    Args:
        remark: lines of text in front, as a comment.
    """
    plain: dict[str, Any] = yaml.safe_load(config.text)
    plain["merge_method"] = SUM if config.method.name == NPS else config.method.name
    shared = dict(plain.get("parameters") or {})
    if weights.of:
        shared.pop(WEIGHT, None)
    if weights.factor is not None:
        shared[LAMBDA] = weights.factor
    if shared:
        plain["parameters"] = shared
    else:
        plain.pop("parameters", None)
    names = {reference: task for task, reference in tasks_of(config, searched=bool(weights.of)).items()}
    for entry, source in zip(plain["models"], config.slices[0].sources, strict=True):
        if (task := names.get(source.model)) is None:
            continue
        if task in weights.models:
            entry["model"] = weights.models[task]
        if weights.of:
            entry["parameters"] = {**(entry.get("parameters") or {}), WEIGHT: _value(weights.groups, weights.of[task])}
    body = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)
    return parse_config("".join(f"# {line}\n" for line in remark.splitlines()) + body, config.path)


def _value(groups: Sequence[Group], weights: Sequence[float]) -> Any:
    """A weight as YAML says it: a number, or one for each filter."""
    if len(groups) == 1:
        return weights[0]
    choices: list[dict[str, Any]] = [
        {"filter": f, "value": w} for group, w in zip(groups, weights, strict=True) for f in group.filters
    ]
    choices += [{"value": w} for group, w in zip(groups, weights, strict=True) if not group.filters]
    return choices if "filter" not in choices[-1] else [*choices, {"value": 1.0}]  # of what no task changes


def _single(config: Config, setting: Setting) -> float:
    (choice, *others), values = setting.choices, setting.choices[0].values
    if others or choice.filter is not None or len(values) > 1:
        raise config.error_at(
            setting.line, "weight has several values; a search begins with one for each model, or without any"
        )
    return float(values[0])
