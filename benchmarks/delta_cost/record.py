"""One JSON file for each part of the benchmark: what was run where, every number measured, and what follows from it.

While commands are timed their file is ``….partial.json``, written anew after every round; a run that was stopped continues
there if it is the same run on the same machine.
"""

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]


def new(part: str, settings: dict[str, Any]) -> Record:
    """A record without measurements."""
    record = {
        "part": part,
        "date": datetime.now(UTC).date().isoformat(),
        "settings": settings,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numpy", "zstandard", "blake3", "paring")},
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
    }
    return read_back(record)


def read_back(record: Record) -> Record:
    """As JSON gives it back, so that records compare."""
    found: Record = json.loads(json.dumps(record))
    return found


def resume(path: Path, fresh: Record) -> Record:
    """The partial record of ``path`` if it belongs to the same run as ``fresh``, else ``fresh``."""
    partial = _partial(path)
    if not partial.exists():
        return fresh
    found = read(partial)
    if all(found.get(key) == fresh[key] for key in ("part", "settings", "versions", "hardware")):
        print(f"{fresh['part']}: continues after {len(found['rounds'])} rounds", flush=True)
        return found
    print(f"{fresh['part']}: starts over; {partial} is of another version, machine or setting", flush=True)
    return fresh


def save_partial(path: Path, record: Record) -> None:
    _write(_partial(path), record)


def finish(path: Path, record: Record) -> None:
    _write(path, record)
    _partial(path).unlink(missing_ok=True)


def read(path: Path) -> Record:
    found: Record = json.loads(path.read_text())
    return found


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
