"""The settings of ``paring tune``: one flat dataclass, from a file or the command line; saved with the result."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from paring.files import write_bytes
from paring.tune.config import SliceConfig

Task = Literal["text-classification", "image-classification", "causal-lm"]
TASKS: tuple[Task, ...] = get_args(Task)
PRECISIONS = ("fp32", "bf16", "fp16")
FILE = "paring-tune.json"
_OF_A_RANK = {  # settings of slices that are not the recommended ones, and what they are where nothing is said
    **dict.fromkeys(("modes", "move_steps", "stride", "max_position", "layer_window")),
    "position": 0,
    "order": "sweep",
    "bias": False,
}
_WHEN_RESUMED = ("data", "model", "out")  # may differ between a run and its resumption


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """What to tune, on what, and how. What is None is chosen for the model when the run starts, and saved as chosen.

    Attributes:
        model: a folder as ``save_pretrained`` writes it, or a name on the Hugging Face hub.
        data: a CSV, JSONL or Parquet file, a folder of them (train, validation, test), an image folder, or a saved dataset.
        task: one of ``TASKS``.
        out: folder of the result; must be new, or a run to be resumed.
        text_column, label_column: of the data; None: found.
        validation: share of the rows held out where the data has no validation split, in (0, 1).
        max_length: tokens a text is cut to; None: what the model takes, 512 at most.
        new_head: replace a classification head that the model brings.
        rank, modes, move_steps, position, max_position, stride, lane, order, targets, exclude, bias, train_also, layer_window,
            layers: of ``SliceConfig``; rank None: the recommended slices for the model, in all blocks where targets is given.
        learning_rate: the highest; None: recommended.
        epochs, max_steps: how long; ``max_steps`` wins where both are given.
        batch_size, accumulation_steps: rows in a batch; batches in an optimizer step.
        warmup: share of the steps in which the rate rises; then it falls linearly to zero.
        weight_decay, seed: as usual.
        eval_steps: optimizer steps between evaluations and checkpoints; None: a tenth of the run.
        precision: of the arithmetic: fp32, or bf16 / fp16 by autocast.
        save_full: also write the whole tuned model.

    Raises:
        ValueError: naming the setting, what it is, what was expected.
    """

    model: str
    data: str
    task: Task
    out: str
    text_column: str | None = None
    label_column: str | None = None
    validation: float = 0.1
    max_length: int | None = None
    new_head: bool = False
    rank: int | None = None
    modes: tuple[str, ...] | None = None
    move_steps: int | None = None
    position: int = 0
    max_position: int | None = None
    stride: int | None = None
    lane: str | None = None
    order: str | tuple[int, ...] = "sweep"
    targets: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    bias: bool = False
    train_also: tuple[str, ...] | None = None
    layer_window: int | None = None
    layers: str | tuple[int, ...] | None = None
    learning_rate: float | None = None
    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 16
    accumulation_steps: int = 1
    warmup: float = 0.06
    weight_decay: float = 0.0
    seed: int = 0
    eval_steps: int | None = None
    precision: str = "fp32"
    save_full: bool = False

    def __post_init__(self) -> None:
        for name in ("modes", "targets", "exclude", "train_also", "order", "layers"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.task not in TASKS:
            _refuse("task", self.task, f"one of {', '.join(TASKS)}")
        if self.precision not in PRECISIONS:
            _refuse("precision", self.precision, f"one of {', '.join(PRECISIONS)}")
        for name in ("model", "data", "out"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                _refuse(name, getattr(self, name), "a name or a path")
        for name in ("max_length", "max_steps", "eval_steps", "batch_size", "accumulation_steps"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                _refuse(name, value, "a whole number, at least 1")
        if not 0 < self.validation < 1:
            _refuse("validation", self.validation, "a share between 0 and 1")
        if not 0 <= self.warmup < 1:
            _refuse("warmup", self.warmup, "a share, at least 0 and below 1")
        if self.epochs <= 0:
            _refuse("epochs", self.epochs, "more than 0")
        if self.learning_rate is not None and self.learning_rate <= 0:
            _refuse("learning_rate", self.learning_rate, "more than 0")
        if self.rank is None and (idle := [name for name, unset in _OF_A_RANK.items() if getattr(self, name) != unset]):
            _refuse("rank", None, f"a rank, where {', '.join(idle)} {'is' if len(idle) == 1 else 'are'} set")

    def slices(self) -> SliceConfig | None:
        """The slices asked for; None: the recommended ones are wanted."""
        if self.rank is None:
            return None
        names = {f.name for f in fields(SliceConfig)} & {f.name for f in fields(self)}
        given = {name: getattr(self, name) for name in names - {"modes"}}
        return SliceConfig(modes=self.modes or ("column",), **given)  # type: ignore[arg-type]

    def with_slices(self, config: SliceConfig, learning_rate: float) -> "TuneSettings":
        """These settings with what was chosen filled in."""
        names = {f.name for f in fields(SliceConfig)} & {f.name for f in fields(self)}
        chosen = {name: getattr(config, name) for name in names}
        return TuneSettings(**{**asdict(self), **chosen, "learning_rate": learning_rate})

    def as_dict(self) -> dict[str, Any]:
        """Plain values (tuples as lists); ``TuneSettings(**settings.as_dict())`` gives them back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def save(self, folder: Path) -> None:
        write_bytes(folder / FILE, (json.dumps(self.as_dict(), indent=2) + "\n").encode())


def from_mapping(values: Mapping[str, Any], where: str) -> TuneSettings:
    """Settings from plain values.

    Raises:
        ValueError: an unknown setting (names the nearest), a missing one, or a value that does not fit.
    """
    known = {f.name for f in fields(TuneSettings)}
    for name in values:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise ValueError(f"{where}: there is no setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    missing = [name for name in ("model", "data", "task", "out") if values.get(name) is None]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} must be given")
    return TuneSettings(**values)


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a file that an earlier run wrote.

    Raises:
        FileNotFoundError: no such file. ValueError: it holds no settings.
    """
    if path.is_dir():
        path = path / FILE
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration {path}")
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no settings; expected an object of names and values")
    return values


def differences(ours: TuneSettings, theirs: TuneSettings) -> list[str]:
    """Settings in which a run and its resumption differ, in words; where things lie may differ."""
    a, b = ours.as_dict(), theirs.as_dict()
    return [f"{k} was {b[k]!r}, now {a[k]!r}" for k in a if k not in _WHEN_RESUMED and a[k] != b[k]]


def _refuse(name: str, got: object, expected: str) -> None:
    raise ValueError(f"{name} is {got!r}; expected {expected}")
