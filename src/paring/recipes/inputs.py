"""Rows into the model's inputs, and the metric of each task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paring.recipes.data import Data
from paring.recipes.models import Loaded, PlainImages
from paring.recipes.settings import TuneSettings

MOST_TOKENS = 512  # of a text, where neither the user nor the model asks for less


@dataclass(frozen=True)
class Inputs:
    """What a Trainer takes.

    Attributes:
        train, validation, test: datasets; ``test`` may be None.
        collate: rows -> batch.
        metrics: predictions -> named numbers; None: the loss says it all.
        metric: the one that is reported.
        notes: sentences for the user.
    """

    train: Any
    validation: Any
    test: Any
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]
    metrics: Callable[[Any], dict[str, float]] | None
    metric: str
    notes: tuple[str, ...]


def prepare(
    settings: TuneSettings, data: Data, loaded: Loaded, names: tuple[str, str, str] = ("train", "validation", "test")
) -> Inputs:
    """The inputs of a run; ``names`` are those of the three splits in what is said to the user."""
    if settings.task == "image-classification":
        return _images(data, loaded)
    return _texts(settings, data, loaded, names)


def _texts(settings: TuneSettings, data: Data, loaded: Loaded, names: tuple[str, str, str]) -> Inputs:
    tokenizer, config = loaded.processor, loaded.model.config
    longest = min(int(tokenizer.model_max_length), getattr(config, "max_position_embeddings", MOST_TOKENS) or MOST_TOKENS)
    if settings.max_length is not None and settings.max_length > longest:
        raise ValueError(f"max_length is {settings.max_length}; the model takes {longest} tokens")
    length = settings.max_length or min(longest, MOST_TOKENS)
    classify = settings.task == "text-classification"
    to_output = _label_positions(config, data.labels) if classify else ()
    notes = []

    def tokens(split: Any, name: str) -> Any:
        if split is None:
            return None
        whole = tokenizer(list(split["text"]), truncation=False, verbose=False)["input_ids"]
        cut = sum(len(ids) > length for ids in whole)
        if cut:
            notes.append(f"{cut} of {len(whole)} {name} texts are longer than {length} tokens and were cut")
        rows = [{"input_ids": ids} for ids in tokenizer(list(split["text"]), truncation=True, max_length=length)["input_ids"]]
        if classify:
            for row, label in zip(rows, split["label"], strict=True):
                row["labels"] = to_output[label]
        return rows

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = tokenizer.pad([{"input_ids": row["input_ids"]} for row in rows], return_tensors="pt")
        import torch

        if classify:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        else:
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return dict(batch)

    splits = [tokens(split, name) for split, name in zip((data.train, data.validation, data.test), names, strict=True)]
    metrics, metric = (accuracy, "accuracy") if classify else (None, "loss")
    return Inputs(splits[0], splits[1], splits[2], collate, metrics, metric, tuple(notes))


def _images(data: Data, loaded: Loaded) -> Inputs:
    to_output = _label_positions(loaded.model.config, data.labels)
    plain = isinstance(loaded.processor, PlainImages)  # converts by itself

    def mode(image: Any) -> Any:
        return image if plain else image.convert("RGB")

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        pixels = loaded.processor([mode(row["image"]) for row in rows], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([to_output[row["label"]] for row in rows])}

    return Inputs(data.train, data.validation, data.test, collate, accuracy, "accuracy", ())


def _label_positions(config: Any, labels: Sequence[str]) -> tuple[int, ...]:
    """Which of the head's outputs stands for each of the data's labels."""
    return tuple(int(config.label2id[name]) for name in labels)


def accuracy(predictions: Any) -> dict[str, float]:
    """Share of rows whose highest logit is their label's."""
    logits = predictions.predictions[0] if isinstance(predictions.predictions, tuple) else predictions.predictions
    return {"accuracy": float((np.asarray(logits).argmax(-1) == predictions.label_ids).mean())}
