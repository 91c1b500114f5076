"""What of a probe's folder is small enough to be kept with the project."""

import json
from pathlib import Path
from typing import Any

from paring.files import write_bytes

RECORD, CELLS = "probe.json", "cells.jsonl"
MOST_BYTES = 150_000  # of a file


def publish(folder: Path, to: Path) -> None:
    """Record, verdict, figure, and cells and tables that are not too long; ``left_out`` in the record names the others.

    Raises:
        ValueError: the probe is not finished.
    """
    record: dict[str, Any] = json.loads((folder / RECORD).read_bytes())
    if record["state"] != "finished":
        raise ValueError(f"{folder}: the probe is not finished; expected its verdict: run it to its end")
    tables = {file: (folder / file).read_bytes() for file in (*record["tables"].values(), CELLS)}
    kept = {file for file, content in tables.items() if len(content) <= MOST_BYTES}
    to.mkdir(parents=True, exist_ok=True)
    for file, content in tables.items():
        if file in kept:
            write_bytes(to / file, content)
        else:
            (to / file).unlink(missing_ok=True)  # of an earlier, shorter one
    for file in ("verdict.txt", "figure.svg"):
        if (folder / file).exists():
            write_bytes(to / file, (folder / file).read_bytes())
    short = record | {
        "tables": {name: file for name, file in record["tables"].items() if file in kept},
        "left_out": {file: len(content) for file, content in tables.items() if file not in kept},
        "figures": ["figure.svg"] if (folder / "figure.svg").exists() else [],
    }
    write_bytes(to / RECORD, (json.dumps(short, indent=2, ensure_ascii=False) + "\n").encode())
