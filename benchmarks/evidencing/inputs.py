"""Models and rows as a user has them: a model's folder, a file or a folder of images. Made once."""

from collections.abc import Callable, Iterable
from pathlib import Path
from shutil import rmtree

from evidencing.plan import Probe


def prepare(probes: Iterable[Probe], folder: Path) -> dict[str, tuple[str, str | None]]:
    """(model, data) of every probe, by its name; what is missing is made in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    return {probe.name: (_model(probe.model, folder), _data(probe, folder)) for probe in probes}


def _model(model: str, folder: Path) -> str:
    if model == "minilm":
        from paring.tasks.minilm import pretrained_folder

        return str(pretrained_folder())

    def make(path: Path) -> None:
        from paring.tasks.digits import pretrained

        pretrained().save_pretrained(path)  # type: ignore[operator]

    return str(_once(folder / model, make))


def _data(probe: Probe, folder: Path) -> str | None:
    task = probe.task
    if task is None:
        return None

    def make(path: Path) -> None:
        if probe.model == "vit":
            from paring.tasks.digits import named_shifts
            from paring.tasks.digits.folders import write_image_folder

            write_image_folder(named_shifts([task])[0], path)
        else:
            from paring.tasks.docstrings import write_csv

            write_csv(task, path)

    return str(_once(folder / f"{probe.model}-{task}", make))


def _once(path: Path, make: Callable[[Path], None]) -> Path:
    """Whole or not there."""
    if not path.exists():
        beside = path.with_name(f".{path.name}.tmp")
        rmtree(beside, ignore_errors=True)
        make(beside)
        beside.rename(path)
    return path
