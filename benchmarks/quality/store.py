"""Finished cells, one JSON line each, appended as they come: a run that is killed goes on where it stood."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


class Store:
    """The cells of one suite.

    Args:
        path: the file; made when missing. A last line cut off by a kill is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.cells: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    cell = json.loads(line)
                except json.JSONDecodeError:
                    continue
                self.cells[cell["key"]] = cell
            path.write_text("".join(json.dumps(cell) + "\n" for cell in self.cells.values()))

    def add(self, cell: dict[str, Any]) -> None:
        self.cells[cell["key"]] = cell
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(cell) + "\n")


def versions() -> dict[str, str]:
    """Of what the numbers depend on, and the kind of machine."""
    packages = ("torch", "transformers", "peft", "scikit-learn", "safetensors", "numpy")
    return {
        **{name: version(name) for name in ("paring", *packages)},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
