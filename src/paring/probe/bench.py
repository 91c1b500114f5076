"""What cells are measured on: the checkpoint on disk, the model in memory, rows as batches. Made when first asked for."""

import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from paring.delta.checkpoint.companions import is_text
from paring.delta.checkpoint.fingerprint import fingerprint, total
from paring.delta.checkpoint.read import Checkpoint, open_checkpoint
from paring.probe.subject import Subject
from paring.recipes.data import Data, load_examples
from paring.recipes.inputs import Inputs, prepare
from paring.recipes.models import Loaded, load
from paring.recipes.quiet import quiet
from paring.tasks.extras import require
from paring.tune.config import SliceConfig
from paring.tune.targets import Selection, select

Batch = dict[str, Tensor]
_BESIDE = (".model", ".py", ".jinja")  # tokenizers, a model's own code, chat templates; other texts by their names


class Bench:
    """See above; a context manager.

    Attributes:
        subject: what is probed.
        notes: sentences for the user, as they come up.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.notes: list[str] = []
        self._stack = ExitStack()
        self._inputs: Inputs | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The model's weights on disk.

        Raises:
            FileNotFoundError, DeltaError: there are none, or they are damaged.
        """
        return self._stack.enter_context(open_checkpoint(self.subject.model))

    @cached_property
    def model_hash(self) -> str:
        """One hash of all tensors on disk: 32 hexadecimal digits. Reads them once, and remembers."""
        hashes = fingerprint(self.checkpoint)
        infos = {name: self.checkpoint.info(name) for name in hashes}
        return total({n: (str(infos[n].dtype).removeprefix("torch."), infos[n].shape, h) for n, h in hashes.items()})

    @cached_property
    def config_hash(self) -> str:
        """One hash of what stands beside the weights and may decide what they compute: configuration, tokenizer, code."""
        whole = blake2b(digest_size=16)
        folder = self.checkpoint.folder
        # A folder without a configuration is a place where weights lie among other things; a model card may be edited.
        files = sorted(folder.iterdir()) if (folder / "config.json").is_file() else []
        for path in files:
            if (is_text(path) and path.suffix != ".md") or (path.suffix in _BESIDE and path.is_file()):
                whole.update(path.name.encode() + b"\0" + blake2b(path.read_bytes()).digest())
        return whole.hexdigest()

    # Rows.

    @cached_property
    def data(self) -> Data:
        """The rows: train, validation, test as for ``paring tune``.

        Raises:
            ValueError, FileNotFoundError, ImportError: as ``load_examples``; or validation and test share rows.
        """
        tuning = self.subject.tuning()
        with quiet():
            found = load_examples(
                tuning.data,
                tuning.task,
                text_column=tuning.text_column,
                label_column=tuning.label_column,
                validation=tuning.validation,
            )
        if found.num_chosen_and_reported:
            raise ValueError(
                f"data: {found.num_chosen_and_reported} of {len(found.test)} test rows of {tuning.data} stand in validation "
                "too; expected none: what is chosen on the one is reported on the other. Remove them from one of the two"
            )
        self.note(*found.notes)
        return found

    @cached_property
    def data_hash(self) -> str:
        """Of all rows, their order, labels and splits: 32 hexadecimal digits."""
        whole = blake2b(repr(self.data.labels).encode(), digest_size=16)
        for split in ("train", "validation", "test"):
            rows = getattr(self.data, split)
            if rows is None:
                continue
            whole.update(split.encode())
            for row in _raw(rows):
                whole.update(blake2b(row, digest_size=16).digest())
        return whole.hexdigest()

    # The model in memory.

    def model(self, seed: int, *, random: bool = False) -> Loaded:
        """The model anew, on the device that is there, in evaluation mode.

        Args:
            seed: of a new head, or of all weights with ``random``. The global random state is left as it was.
            random: the same architecture with untrained weights, as its class initialises them.

        Raises:
            OSError, ValueError: as ``paring.recipes.models.load``.
        """
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = load(self.subject.tuning(seed=seed), self.data.labels)
            if random:
                config = found.model.config
                torch.manual_seed(seed)
                found = Loaded(type(found.model)(config).to(next(found.model.parameters()).dtype), found.processor, ())
        self.note(*found.notes)
        found.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        return found

    def inputs(self, loaded: Loaded) -> Inputs:
        """The rows as the model's inputs, made once: they are the same whatever its weights."""
        if self._inputs is None:
            self._inputs = prepare(self.subject.tuning(), self.data, loaded)
            self.note(*self._inputs.notes)
        return self._inputs

    def select(self, model: nn.Module, config: SliceConfig | None = None) -> Selection:
        """The model's target matrices.

        Raises:
            ValueError: it has none, or a pattern matches nothing.
        """
        default = SliceConfig(
            rank=1, modes=("row",), move_steps=None, targets=self.subject.targets, exclude=self.subject.exclude
        )
        return select(model, config or default)

    def note(self, *notes: str) -> None:
        """Something to tell the user, once."""
        self.notes += [note for note in notes if note not in self.notes]


def calibration(inputs: Inputs, count: int, batch_size: int, seed: int) -> Iterator[Batch]:
    """``count`` train rows drawn without replacement (all, where there are fewer), as batches on the device that is there."""
    generator = torch.Generator().manual_seed(seed)
    yield from batches_of(inputs, torch.randperm(len(inputs.train), generator=generator)[:count].tolist(), batch_size)


def batches_of(inputs: Inputs, rows: Sequence[int], batch_size: int) -> Iterator[Batch]:
    """Train rows by their numbers, in this order, as batches on the device that is there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for start in range(0, len(rows), batch_size):
        batch = inputs.collate([inputs.train[row] for row in rows[start : start + batch_size]])
        yield {name: tensor.to(device) for name, tensor in batch.items()}


def versions() -> dict[str, str]:
    """Of what the numbers depend on, and the kind of machine."""
    found = {}
    for name in ("paring", "torch", "transformers", "peft", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {**found, "python": platform.python_version(), "machine": platform.machine(), "device": device}


def _raw(rows: Any) -> Iterator[bytes]:
    """Each row's text, or its image's bytes, and its label."""
    if "image" in rows.column_names:
        rows = rows.cast_column("image", require("datasets", "reading a data set").Image(decode=False))
    for row in rows:
        image = row.get("image")
        if image is not None:
            content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        else:
            content = row["text"].encode()
        yield content + b"\0" + str(row.get("label", "")).encode()
