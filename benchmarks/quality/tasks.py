"""What is tuned on: five digit tasks for a small vision transformer, three docstring tasks for MiniLM.

Every task has the same four splits: rates and settings are chosen on validation, test is reported, calibration is unused here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
MAX_TOKENS = 32  # of a docstring: its first sentence or two; the rest costs time and tells little
Scored = Literal["validation", "test"]


@dataclass(frozen=True)
class Suite:
    """Tasks that share a pretrained model.

    Attributes:
        name: in results.
        title: for a reader.
        tasks: names of all tasks; ``screened``: those on which rates and settings are chosen.
        num_steps: optimizer steps of every run. batch_size: rows in each.
        rates: the grid of learning rates, the same for every method.
        num_blocks: of the model.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    screened: tuple[str, ...]
    num_steps: int
    batch_size: int
    rates: tuple[float, ...]
    num_blocks: int


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "digits",
            "ViT 96 x 4 on shifted digits",
            ("turned", "checkered", "scrambled", "outlined", "unwoven"),
            ("scrambled", "outlined"),
            300,
            32,
            (5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1),
            4,
        ),
        Suite(
            "docstrings",
            "MiniLM 384 x 6 on docstrings",
            ("module", "kind", "returns"),
            ("module",),
            200,
            16,
            (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2),
            6,
        ),
    )
}


def fresh_model(suite: str, task: str, seed: int) -> nn.Module:
    """The pretrained model with the task's head; only a new head depends on the seed."""
    if suite == "digits":
        from paring.tasks.digits import pretrained

        return pretrained(0).train()
    from transformers import AutoModelForSequenceClassification

    from paring.tasks.docstrings import label_names
    from paring.tasks.minilm import pretrained_folder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            pretrained_folder(),
            num_labels=len(label_names(task)),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    return model.train()


def training_batches(suite: str, task: str, seed: int) -> Iterator[Batch]:
    """Batches without end: every row once a pass, the last few of a pass left out, in an order drawn by the seed."""
    rows, size = _rows(suite, task, "train"), SUITES[suite].batch_size
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(rows) - size + 1, size):
            yield _collate([rows[i] for i in order[start : start + size]])


@torch.no_grad()
def accuracy(model: nn.Module, suite: str, task: str, split: Scored, every: int = 1) -> float:
    """Share of rows whose highest logit is their label's, in evaluation mode; the mode is put back.

    ``every``: of so many batches one is scored; texts lie in them by length, so that these are of all lengths.
    """
    training = model.training
    model.eval()
    right, total = num_right(model, _scoring_batches(suite, task, split)[::every])
    model.train(training)
    return right / total


@torch.no_grad()
def num_right(model: nn.Module, batches: Iterable[Batch]) -> tuple[int, int]:
    """Rows whose highest logit is their label's, and all rows."""
    right = total = 0
    for batch in batches:
        logits = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
        right, total = right + int((logits.argmax(-1) == batch["labels"]).sum()), total + len(batch["labels"])
    return right, total


def split_sizes(suite: str, task: str) -> dict[str, int]:
    return {split: len(_rows(suite, task, split)) for split in ("train", "validation", "test")}


# Rows: a picture, or the ids of a text, and a label.


@cache
def _rows(suite: str, task: str, split: str) -> list[dict[str, Any]]:
    if suite == "digits":
        from paring.tasks.digits import load_splits, named_shifts

        examples = named_shifts([task])[0](load_splits()[split])  # type: ignore[index]
        return [{"pixel_values": i, "labels": y} for i, y in zip(examples.images, examples.labels.tolist(), strict=True)]
    from paring.tasks.docstrings import load_splits as load_texts

    texts = load_texts(task)[split]  # type: ignore[index]
    ids = _tokenizer()(list(texts.texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, texts.labels.tolist(), strict=True)]


@cache
def _scoring_batches(suite: str, task: str, split: str) -> list[Batch]:
    rows = _rows(suite, task, split)
    if suite == "docstrings":  # texts of about one length together, so that little is padding
        rows = sorted(rows, key=lambda row: len(row["input_ids"]))
    size = 256 if suite == "digits" else 32
    return [_collate(rows[i : i + size]) for i in range(0, len(rows), size)]


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    from paring.tasks.minilm import pretrained_folder

    return AutoTokenizer.from_pretrained(pretrained_folder())


def _collate(rows: list[dict[str, Any]]) -> Batch:
    labels = torch.tensor([row["labels"] for row in rows])
    if "pixel_values" in rows[0]:
        return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": labels}
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    lengths = torch.tensor([len(i) for i in ids])
    mask = (torch.arange(padded.shape[1])[None, :] < lengths[:, None]).long()
    return {"input_ids": padded, "attention_mask": mask, "labels": labels}
