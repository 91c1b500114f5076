"""One JSON file a model: what was run where, every time measured, and what follows from it.

While a model is being measured its file is ``tune_cost_<model>.partial.json``, written anew after every round; a run
that was stopped continues there if it is the same run on the same machine.
"""

import json
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What a run is told.

    Attributes:
        methods: keys of ``methods.METHODS``.
        rounds: timed steps of each method.
        warmup: steps of each before them, the first of which is the one that is counted in bytes.
        repeats: moves timed, and times a session is entered and left.
        device: "cpu" or "cuda".
        precision: "fp32", "bf16" (the weights) or "bf16-autocast".
        tiny: sizes that only try the machinery.
        threads: of PyTorch.
    """

    methods: tuple[str, ...]
    rounds: int
    warmup: int
    repeats: int
    device: str
    precision: str
    tiny: bool
    threads: int

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def path_of(folder: Path, model: str, settings: Settings) -> Path:
    parts = [model]
    if (settings.device, settings.precision) != ("cpu", "fp32"):
        parts += [settings.device, settings.precision]
    return folder / f"tune_cost_{'_'.join(parts)}.json"


def new(model: str, title: str, settings: Settings) -> Record:
    """A record without measurements."""
    record: Record = {
        "model": model,
        "title": title,
        "date": datetime.now(UTC).date().isoformat(),
        "settings": asdict(settings),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "peft", "paring")},
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "threads": settings.threads},
        "not_applicable": {},
        "sizes": {},
        "rounds": [],
    }
    if settings.device == "cuda":
        record["hardware"]["gpu"] = torch.cuda.get_device_name()
    return json.loads(json.dumps(record))  # as it will be read back, so that records compare


def resume(path: Path, fresh: Record) -> Record:
    """The partial record of ``path`` if it belongs to the same run as ``fresh``, else ``fresh``."""
    partial = _partial(path)
    if not partial.exists():
        return fresh
    found = read(partial)
    if all(found.get(k) == fresh[k] for k in ("model", "settings", "versions", "hardware")):
        print(f"{fresh['model']}: continues after {len(found['rounds'])} rounds", flush=True)
        return found
    print(f"{fresh['model']}: starts over; {partial} is of another version, machine or setting", flush=True)
    return fresh


def save_partial(path: Path, record: Record) -> None:
    _write(_partial(path), record)


def finish(path: Path, record: Record) -> None:
    _write(path, record)
    _partial(path).unlink(missing_ok=True)


def read(path: Path) -> Record:
    return json.loads(path.read_text())


def _partial(path: Path) -> Path:
    return path.with_suffix(".partial.json")


def _write(path: Path, record: Record) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(record, indent=1) + "\n")
    draft.replace(path)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
