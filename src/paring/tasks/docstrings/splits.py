"""Four splits of a task's texts that share none, drawn by hashing the texts.

A text's split is read from its hash, so it is the same in every task, whatever else there is, in whatever order: a model
tuned on one task has not seen the test texts of another. Each split is then cut to its size from the most frequent
labels: all texts of the rarer ones stay.
"""

import csv
import io
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from paring.files import write_bytes
from paring.tasks.docstrings.collect import standard_library
from paring.tasks.docstrings.tasks import answers, named_task, normalised

Split = Literal["train", "calibration", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
_ENDS = (0.56, 0.66, 0.79)  # of each split but the last, as a share of all texts
_SEED = 0


@dataclass(frozen=True, eq=False)  # tensors have no equality that is true or false
class Texts:
    """Docstrings and their labels.

    Attributes:
        texts: n docstrings, no two the same but for case and white space.
        labels: int64 ``[n]``, positions in ``label_names(task)``.
    """

    texts: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.texts)


@cache
def label_names(task: str) -> tuple[str, ...]:
    """What the labels 0, 1, ... are called; in alphabetical order.

    Raises:
        ValueError: no such task.
    """
    return tuple(sorted({label for _, label in answers(named_task(task), standard_library()).values()}))


@cache
def load_splits(task: str) -> dict[Split, Texts]:
    """The four splits by name, each in an order drawn once. Read once; do not write into the tensors.

    Raises:
        ValueError: no such task.
        FileNotFoundError: this Python comes without the sources of its library.
    """
    pools: dict[Split, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for answer in answers(named_task(task), standard_library()).values():
        pools[split_of(answer[0])].append(answer)
    names = label_names(task)
    splits = {}
    for split, size in zip(SPLITS, named_task(task).sizes, strict=True):
        chosen = cut(pools[split], size)
        labels = torch.tensor([names.index(label) for _, label in chosen], dtype=torch.int64)
        splits[split] = Texts(tuple(text for text, _ in chosen), labels)
    return splits


def split_of(text: str) -> Split:
    """Which split a text belongs to, in every task; case and white space do not count."""
    place = int.from_bytes(_hash(text)[:8], "big") / 2**64
    return SPLITS[bisect_right(_ENDS, place)]


def cut(answers: Iterable[tuple[str, str]], size: int) -> list[tuple[str, str]]:
    """At most ``size`` of the (text, label), the labels as even as there are texts; in an order that is the texts' own."""
    rank: Counter[str] = Counter()
    ranked = []
    for text, label in sorted(answers, key=lambda answer: _hash(answer[0])[8:]):
        ranked.append((rank[label], text, label))
        rank[label] += 1
    # the first of every label, then the second of every label: a label that runs out leaves its turn to the others
    kept = sorted(ranked, key=lambda row: row[0])[:size]
    return sorted(((text, label) for _, text, label in kept), key=lambda answer: _hash(answer[0])[8:])


def write_csv(task: str, folder: str | Path, splits: Sequence[Split] = ("train", "validation", "test")) -> tuple[Path, ...]:
    """Writes ``train.csv``, ``validation.csv`` and ``test.csv`` with the columns text and label; labels as names.

    The calibration split is for choosing among tuned models, not for tuning one: it is written when it is asked for, best
    into a folder of its own.

    Returns:
        The files, one for each of ``splits``.

    Raises:
        ValueError: no such task or split.
    """
    if unknown := [split for split in splits if split not in SPLITS]:
        raise ValueError(f"docstrings: got split {unknown[0]!r}; expected one of {', '.join(SPLITS)}")
    rows, names = load_splits(task), label_names(task)
    paths = []
    for split in splits:
        lines = io.StringIO()
        writer = csv.writer(lines)
        writer.writerow(("text", "label"))
        chosen = rows[split]
        writer.writerows((text, names[label]) for text, label in zip(chosen.texts, chosen.labels.tolist(), strict=True))
        paths.append(Path(folder) / f"{split}.csv")
        write_bytes(paths[-1], lines.getvalue().encode())
    return tuple(paths)


def _hash(text: str) -> bytes:
    """16 bytes: the first 8 say the split, the others the place in it."""
    return blake2b(normalised(text).encode(), digest_size=16, salt=_SEED.to_bytes(8, "big")).digest()
