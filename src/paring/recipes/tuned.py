"""The model that a delta belongs to: what the delta says of it, its configuration, and the base made ready for it.

A delta of ``paring tune`` brings the configuration and the settings it was tuned with; for any other one the configuration
is found as ``paring export`` finds it, and the task is read from it or given.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paring.delta.card import hub_name
from paring.delta.errors import DeltaError
from paring.delta.taskvector import TaskVector
from paring.neighbours.layers import find_config
from paring.recipes.models import CLASSES, Loaded, processor
from paring.recipes.quiet import quiet
from paring.recipes.settings import Task, TuneSettings, from_mapping
from paring.tasks.extras import require

_ENDINGS: dict[Task, tuple[str, ...]] = {  # of the classes in a configuration's architectures
    "text-classification": ("ForSequenceClassification",),
    "image-classification": ("ForImageClassification",),
    "causal-lm": ("ForCausalLM", "LMHeadModel"),
}
_TRAVELLING = ("task", "text_column", "label_column", "max_length", "new_head")


def base_of(vector: TaskVector, given: str | None, what: str) -> str:
    """The folder or the name on the hub of a delta's base.

    Raises:
        DeltaError: it was not given, and the delta does not say.
    """
    found = given or hub_name(vector)
    if found is None:
        raise DeltaError(f"{what} needs the model that the delta was made on; give its folder with --base BASE")
    return found


def config_of(vector: TaskVector, delta: Path, given: str | None, base: str) -> dict[str, Any]:
    """The tuned model's configuration, without code of its own."""
    return {k: v for k, v in find_config(vector, delta, given, base).items() if k != "auto_map"}


def settings_of(vector: TaskVector, config: Mapping[str, Any], base: str, given: Mapping[str, Any]) -> TuneSettings:
    """The settings that say how rows become inputs: those given, else the delta's, else what the configuration tells.

    Args:
        given: task, text_column, label_column, max_length; None: not given.

    Raises:
        ValueError: the task is unknown, or the delta's settings are none of ``paring tune``.
    """
    own = vector.facts.get("settings")
    known = {k: v for k, v in own.items() if k in _TRAVELLING} if isinstance(own, dict) else {}
    if not isinstance(known.get("new_head", False), bool):
        known.pop("new_head")
    task = given.get("task") or known.get("task") or _task_of(config)
    if task is None:
        raise ValueError(
            f"the delta does not say what it is for, and neither does its configuration (architectures: "
            f"{config.get('architectures')!r}); give it with --task ({', '.join(CLASSES)})"
        )
    # Rows of one task have columns that those of another have not.
    known = known if known.get("task") == task else {}
    values = known | {k: v for k, v in given.items() if v is not None}
    return from_mapping({"data": "-", "out": "-", **values, "task": task, "model": base}, "the delta's settings")


def load_tuned(settings: TuneSettings, config: Mapping[str, Any]) -> Loaded:
    """The base, in evaluation mode, with the tuned model's configuration; what the base lacks (a head) is new.

    Raises:
        ValueError: transformers does not know the configuration. OSError: there is no such base, or it has no tokenizer.
    """
    transformers = require("transformers", "scoring a delta on data")
    model = load_model(settings, config)
    try:
        ready = processor(transformers, settings, model)
    except (OSError, ValueError) as error:
        raise OSError(f"--base: {settings.model} has no tokenizer that could be read: {str(error).splitlines()[0]}") from None
    return Loaded(model, ready, ())


def load_model(settings: TuneSettings, config: Mapping[str, Any]) -> Any:
    """See ``load_tuned``; without what turns rows into inputs."""
    transformers = require("transformers", "scoring a delta on data")
    if Path(settings.model).is_file():
        raise ValueError(
            f"--base: {settings.model} is a file; to score on data, give the model's folder (with its config.json)"
        )
    values = dict(config)
    kind = values.pop("model_type", None)
    try:
        made = transformers.AutoConfig.for_model(kind, **values)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the configuration is not one that transformers can read: {str(error).splitlines()[0]}") from None
    if settings.task != "causal-lm":
        made.label2id = {name: i for i, name in made.id2label.items()}
    with quiet():  # transformers would say that the head is new: the delta brings it
        try:
            model = getattr(transformers, CLASSES[settings.task]).from_pretrained(
                settings.model, config=made, ignore_mismatched_sizes=settings.new_head, dtype="auto"
            )
        except RuntimeError as error:  # other shapes
            raise ValueError(
                f"--base: {settings.model} does not fit the tuned model's configuration: {str(error).splitlines()[0]}; "
                "give the model that the delta was made on"
            ) from None
    return model.eval()


def outputs(model: Any) -> tuple[str, ...]:
    """The names of a classifier's outputs, in order."""
    return tuple(str(model.config.id2label[i]) for i in sorted(model.config.id2label))


def _task_of(config: Mapping[str, Any]) -> Task | None:
    architectures = config.get("architectures")
    for name in architectures if isinstance(architectures, list) else ():
        for task, endings in _ENDINGS.items():
            if str(name).endswith(endings):
                return task
    return None
