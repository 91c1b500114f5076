"""The models of a merge, opened: checkpoints, and deltas or adapters beside the base that they are for.

A tensor of a checkpoint stays in its file and is read when it is touched. A delta's is made when it is asked for:

    exact changes, new tensors    the model's weights, bitwise
    differences in numbers        the difference in fp32, not yet rounded to the weights' type: more than what is left of it in
                                  the checkpoint that ``paring apply`` writes
    tensors that do not change    the base's own
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from blake3 import blake3
from torch import Tensor

from paring.delta.checkpoint.find import IN_FOLDER
from paring.delta.checkpoint.fingerprint import fingerprint, total
from paring.delta.checkpoint.read import Checkpoint, open_checkpoint
from paring.delta.checkpoint.tensorinfo import TensorInfo
from paring.delta.errors import DeltaError
from paring.delta.files import INDEX, load_delta, shards_of
from paring.delta.manifest import KEY
from paring.delta.names import split_part
from paring.delta.patch import changes_of, made, outline
from paring.delta.places import Everywhere
from paring.delta.sources import CheckpointSource, public_name
from paring.delta.taskvector import TaskVector
from paring.fuse.config import Config, Reference

_ADAPTER = "adapter_config.json"
TOKENIZER = "tokenizer.json"
_TEXTS = ("config.json", *(name for name in IN_FOLDER if name.endswith(".json")))  # configuration and index
TUNED = "model.delta.safetensors"  # what `paring tune` leaves in its folder


class Read(NamedTuple):
    """A tensor of a model, or, with ``difference``, its difference from the model's base."""

    tensor: Tensor
    difference: bool = False


class Weights:
    """A checkpoint.

    Attributes, as of every model:
        called: in messages: where it lies; public: its name without that.
        infos: what its tensors are as weights.
        tied: further names of tensors, to the one they are stored under.
        folder: where its configuration and tokenizer are; None: nowhere.
        checkpoint: its files; None: it is not of weights.
        base: what it is read beside; None: nothing.
        before: its ``state`` when it was opened.

    Args:
        texts: names of the files in its folder that what is read of it depends on, beside the weights.
    """

    def __init__(self, where: str | Path, texts: Sequence[str] = _TEXTS) -> None:
        self.checkpoint: Checkpoint = open_checkpoint(where)
        self.source = CheckpointSource(self.checkpoint, where)
        self.called, self.public = self.source.called, public_name(str(where))
        self.infos = {name: self.checkpoint.info(name) for name in self.checkpoint.names}
        self.tied = self.source.tied()
        self.folder: Path | None = self.checkpoint.folder
        self.base: Weights | None = None
        given = [Path(where).name] if str(where).endswith(".json") else []  # an index of another name
        self._texts = tuple(self.checkpoint.folder / name for name in dict.fromkeys([*texts, *given]))
        self.before = self.state()

    def read(self, name: str) -> Read:
        return Read(self.checkpoint.mapped(name))

    def beside(self, name: str) -> "tuple[Weights, str]":
        """Where a tensor's difference begins: a checkpoint, and the tensor's name there."""
        return self, name

    def held_bytes(self, name: str) -> int:
        """The memory that reading a tensor takes, beside the page cache."""
        return 0

    def facts(self, hashes: Mapping[str, str]) -> dict[str, Any]:
        """By what it can be known again; ``hashes`` of its checkpoint's tensors."""
        return {"kind": "checkpoint", "fingerprint": _total(self.infos, hashes), "tensors": len(self.infos)}

    def state(self) -> list[Any]:
        """By what a change of it shows: paths, sizes and times of change of its weights' files, hashes of its texts, as they
        are now."""
        return [*self.checkpoint.state(), *_texts_now(self._texts)]


class Tuned:
    """A task vector beside its base, from a delta or an adapter.

    Args:
        kept: the files that hold it, ``texts`` those without tensors.
    """

    def __init__(
        self, vector: TaskVector, base: Weights, where: str, kind: str, kept: list[Checkpoint], texts: Sequence[Path] = ()
    ) -> None:
        self.called, self.public, self._kind = where, public_name(where), kind
        self.checkpoint: Checkpoint | None = None
        self.base, self._vector, self._kept = base, vector, kept
        self.folder: Path | None = None
        found = vector.base.check(base.source)
        self._plan = outline(vector, base.source, found)
        self._parts = changes_of(vector, base.source, self._plan)
        self.infos = {name: planned.info for name, planned in self._plan.items()}
        first = {planned.there: name for name, planned in reversed(self._plan.items()) if planned.there}
        self.tied = {n: first[p.there] for n, p in self._plan.items() if p.there and first[p.there] != n}
        self.config = vector.facts.get("config")
        self._texts = tuple(texts)
        self.before = self.state()

    @property
    def names_of_base(self) -> dict[str, str]:
        """For each tensor of the base that it has, its own name of it: libraries may rename tensors as they load them."""
        return {planned.there: name for name, planned in reversed(self._plan.items()) if planned.there}

    def read(self, name: str) -> Read:
        planned, changes = self._plan[name], self._changes(name)
        if planned.there and not changes:
            return self.base.read(planned.there)
        if not self._differs(name):
            return Read(made(self._vector, self.base.source, planned, changes))
        if changes == [planned.name]:
            change = self._vector.change(planned.name).real(self._where(name))
            if isinstance(change.places, Everywhere):
                return Read(change.values.view(planned.info.shape), True)
        tau = torch.zeros(planned.info.shape)
        for part in changes:
            change = self._vector.change(part).real(self._where(part))
            target = tau if part == planned.name else tau[split_part(part)[1]]
            change.places.scatter_(target, change.values)
        return Read(tau, True)

    def beside(self, name: str) -> tuple[Weights, str]:
        there = self._plan[name].there
        assert there is not None, name
        return self.base, there

    def held_bytes(self, name: str) -> int:
        info = self.infos[name]
        if not self._changes(name) and self._plan[name].there:
            return 0
        size = 4 * info.shape.numel() if self._differs(name) else info.nbytes
        return 2 * size  # what is stored, decoded, beside what it is put into

    def facts(self, hashes: Mapping[str, str]) -> dict[str, Any]:
        stored: dict[str, tuple[str, list[int], str]] = {}
        for checkpoint in self._kept:
            for name, digest in fingerprint(checkpoint).items():
                info = checkpoint.info(name)
                stored[name] = str(info.dtype).removeprefix("torch."), list(info.shape), digest
        settings = {"settings": self._vector.facts["adapter"]} if self._kind == "adapter" else {}  # its rank and scale
        return {"kind": self._kind, "fingerprint": total(stored), "of_base": self._vector.base.total} | settings

    def state(self) -> list[Any]:
        """Of its own files and its base's."""
        own = [row for checkpoint in self._kept for row in checkpoint.state()]
        return [*own, *_texts_now(self._texts), *self.base.state()]

    def _changes(self, name: str) -> list[str]:
        return self._parts.get(self._plan[name].name, [])

    def _differs(self, name: str) -> bool:
        return any(self._vector.changes[part].kind == "real" for part in self._changes(name))

    def _where(self, name: str) -> str:
        return f"{self.called}: '{name}'"


Model = Weights | Tuned


def open_models(config: Config) -> dict[Reference, Model]:
    """Every model that a configuration names, opened; no tensor is read, but that a delta's base is checked by its hashes.

    Raises:
        ConfigError: a delta or adapter without a base. DeltaError: a damaged file, or another base than a delta's.
        FileNotFoundError: there is no such file, folder or cached name. All name the line.
    """
    opened: dict[Reference, Model] = {}
    weights: dict[str, Weights] = {}
    for reference in config.references:
        try:
            opened[reference] = _open(reference, config, weights)
        except DeltaError as error:
            raise DeltaError(f"{config.path}, line {reference.line}: {error}") from None
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{config.path}, line {reference.line}: {error}") from None
    return opened


def kind_of(where: str) -> tuple[str, str]:
    """What lies at a path ("adapter", "delta", or else "checkpoint"), and where to read it."""
    path = Path(where).expanduser()
    if path.is_dir():
        if (path / INDEX).is_file():
            return "delta", where
        if (path / _ADAPTER).is_file() and not (path / "config.json").is_file():
            return "adapter", where
        if (path / TUNED).is_file() and not any((path / name).exists() for name in IN_FOLDER):
            return "delta", str(path / TUNED)
    elif path.is_file() and path.suffix == ".safetensors":
        with open_checkpoint(path) as checkpoint:
            return ("delta" if KEY in checkpoint.metadata else "checkpoint"), where
    return "checkpoint", where


def _open(reference: Reference, config: Config, weights: dict[str, Weights]) -> Model:
    kind, where = kind_of(reference.adapter or reference.model)
    if reference.adapter and kind == "checkpoint":
        if not Path(where).expanduser().exists():
            raise FileNotFoundError(
                f"{where}, after the plus sign, is not there; expected a delta or a folder of a PEFT adapter"
            )
        raise DeltaError(f"{where} after the plus sign is no delta and no folder of a PEFT adapter ({_ADAPTER})")
    if kind == "checkpoint":
        return _weights(where, config, weights)
    base = reference.model if reference.adapter else config.base.model if config.base and not config.base.adapter else None
    if base is None or kind_of(base)[0] != "checkpoint":
        raise DeltaError(
            f"{where} is {'a delta' if kind == 'delta' else 'an adapter'}; expected its base, as base_model or BASE+{where}"
        )
    beside = _weights(base, config, weights)
    path = Path(where).expanduser()
    if kind == "delta":
        vector = load_delta(path, base=beside.checkpoint)
        kept = [open_checkpoint(shard, kind="safetensors") for shard in shards_of(path)]
        return Tuned(vector, beside, where, kind, kept, [path / INDEX] if path.is_dir() else [])
    from paring.neighbours.peft_import import find_adapter, import_peft

    vector = import_peft(where, beside.checkpoint)
    return Tuned(vector, beside, where, kind, [open_checkpoint(find_adapter(where))], [path / _ADAPTER])


def _weights(where: str, config: Config, weights: dict[str, Weights]) -> Weights:
    if where not in weights:
        weights[where] = Weights(where, (*_TEXTS, TOKENIZER) if config.tokenizer else _TEXTS)
    return weights[where]


def _texts_now(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """Paths and hashes of those that are there."""
    return [(str(path.absolute()), blake3(path.read_bytes()).hexdigest(16)) for path in paths if path.is_file()]


def model_config(model: Model) -> dict[str, Any] | None:
    """The content of a model's ``config.json``; None where there is none.

    Raises:
        DeltaError: it is no JSON object.
    """
    from paring.neighbours.layers import read_config

    own = getattr(model, "config", None)
    if isinstance(own, dict):
        return dict(json.loads(json.dumps(own)))
    folder = model.folder or (model.base.folder if model.base else None)
    return read_config(folder) if folder else None


def _total(infos: Mapping[str, TensorInfo], hashes: Mapping[str, str]) -> str:
    return total({n: (str(i.dtype).removeprefix("torch."), list(i.shape), hashes[n]) for n, i in infos.items()})
