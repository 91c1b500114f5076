"""The pretrained model of a run, with a head that fits the labels, and what turns rows into its inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from paring.recipes.settings import Task, TuneSettings
from paring.tasks.extras import require

CLASSES: dict[Task, str] = {
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "causal-lm": "AutoModelForCausalLM",
}


@dataclass(frozen=True)
class Loaded:
    """A model and its tokenizer or image processor; ``notes`` are sentences for the user."""

    model: nn.Module
    processor: Any
    notes: tuple[str, ...]


def load(settings: TuneSettings, labels: Sequence[str]) -> Loaded:
    """Loads the model; a head that the checkpoint lacks is new, of as many outputs as there are labels.

    Args:
        settings: of the run.
        labels: names of the data's labels, in order; none for causal-lm.

    Raises:
        ValueError: the model brings a head whose labels are not the data's. OSError: there is no such model.
    """
    transformers = require("transformers", "paring tune")
    try:
        config = transformers.AutoConfig.from_pretrained(settings.model)
    except (OSError, ValueError) as error:
        what = "is no folder here, and" if not Path(settings.model).exists() else "is a folder that"
        raise OSError(f"model: {settings.model!r} {what} could not be loaded: {str(error).splitlines()[0]}") from None
    notes: list[str] = []
    class_name = CLASSES[settings.task]
    brings_head = any(str(a).endswith(class_name.removeprefix("AutoModel")) for a in config.architectures or ())
    mismatched = False
    if settings.task != "causal-lm":
        old = [str(config.id2label[i]) for i in sorted(config.id2label)]
        if brings_head and not settings.new_head:
            names = head_labels(old, labels)
        else:
            names, mismatched = list(labels), brings_head
            notes.append(f"a new head of {len(labels)} labels")
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
    model = getattr(transformers, class_name).from_pretrained(
        settings.model, config=config, ignore_mismatched_sizes=mismatched, dtype="auto"
    )
    if settings.new_head and mismatched:
        _begin_anew(model)
    return Loaded(model, processor(transformers, settings, model), tuple(notes))


def head_labels(head: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The names of the outputs of a head that the model brings; one without names ("LABEL_0") takes the data's.

    Raises:
        ValueError: the head has no room for some labels (names them).
    """
    unnamed = all(name == f"LABEL_{i}" for i, name in enumerate(head))
    if unnamed and len(labels) <= len(head):
        return [*labels, *head[len(labels) :]]
    without = [name for name in labels if name not in head]
    if without:
        raise ValueError(
            f"the model's head has {len(head)} outputs ({', '.join(head[:5])}{' ...' if len(head) > 5 else ''}) and no "
            f"room for {len(without)} label(s) of the data: {', '.join(without[:5])}; --new-head starts a new head"
        )
    return list(head)


def _begin_anew(model: Any) -> None:
    """Random weights in the head: one of the same size would have been taken from the checkpoint."""
    base = getattr(model, model.base_model_prefix, None)
    for module in (m for m in model.children() if m is not base):
        for inner in module.modules():
            inner._is_hf_initialized = False
            model._init_weights(inner)


def processor(transformers: Any, settings: TuneSettings, model: Any) -> Any:
    """What turns rows into the model's inputs: a tokenizer, or an image processor."""
    if settings.task == "image-classification":
        try:
            return transformers.AutoImageProcessor.from_pretrained(settings.model)
        except (OSError, ValueError):
            return PlainImages(model.config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings.model)
    if tokenizer.pad_token is None:  # decoders often have none; padded places are masked, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


class PlainImages:
    """For models saved without an image processor: resized to the model's size, its channels, values from -1 to 1."""

    def __init__(self, config: Any) -> None:
        self._side, self._channels = int(config.image_size), int(config.num_channels)

    def __call__(self, images: Sequence[Any], return_tensors: str = "pt") -> dict[str, Any]:
        import numpy as np
        import torch

        mode = "L" if self._channels == 1 else "RGB"
        arrays = []
        for image in images:
            image = image.convert(mode)
            if image.size != (self._side, self._side):
                image = image.resize((self._side, self._side))
            array = np.asarray(image, dtype=np.float32) / 127.5 - 1
            arrays.append(array[None] if mode == "L" else array.transpose(2, 0, 1))
        return {"pixel_values": torch.from_numpy(np.stack(arrays))}
