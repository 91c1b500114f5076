"""What is probed: a model, the rows it is probed on, and which of its matrices."""

from dataclasses import asdict, dataclass
from typing import Any

from paring.recipes.settings import TASKS, Task, TuneSettings

PLACES = ("model", "data")  # where things lie; known by their content


@dataclass(frozen=True, kw_only=True)
class Subject:
    """See above.

    Attributes:
        model: a folder as ``save_pretrained`` writes it, a checkpoint file, or a name on the Hugging Face hub.
        data: as for ``paring tune``; None where the probe needs no rows.
        task: what the model does with the rows.
        text_column, label_column, max_length, new_head, validation: as for ``paring tune``.
        targets, exclude: which matrices, as in ``SliceConfig``: globs or ``re:…``; None: all but the output head.

    Raises:
        ValueError: naming the setting, what it is, what was expected.
    """

    model: str
    data: str | None = None
    task: Task | None = None
    text_column: str | None = None
    label_column: str | None = None
    max_length: int | None = None
    new_head: bool = False
    validation: float = 0.1
    targets: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("targets", "exclude"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise ValueError(f"{name} is {value!r}; expected several patterns, such as ({value!r},)")
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        if self.targets == ():
            raise ValueError("targets is empty; expected at least one pattern, or None: all matrices")
        if self.task is not None and self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}; expected one of {', '.join(TASKS)}")
        if self.data is not None:
            self.tuning()  # checks the rest

    def tuning(self, **more: Any) -> TuneSettings:
        """The same as settings of ``paring tune``, which reads rows and makes models ready.

        Raises:
            ValueError: there is no data, or no task.
        """
        if self.data is None:
            raise ValueError("data is None; expected the rows to probe the model on: --data PATH")
        if self.task is None:
            raise ValueError(f"task is None; expected what the model does with the rows: --task, one of {', '.join(TASKS)}")
        names = ("model", "data", "text_column", "label_column", "max_length", "new_head", "validation")
        return TuneSettings(task=self.task, out="-", **{name: getattr(self, name) for name in names}, **more)

    def as_dict(self) -> dict[str, Any]:
        """Plain values (tuples as lists)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def identity(self) -> dict[str, Any]:
        """What a cell's numbers depend on; not where things lie."""
        return {k: v for k, v in self.as_dict().items() if k not in PLACES}
