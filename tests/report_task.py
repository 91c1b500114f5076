"""A folder of each command, made by running it, small; once for each process."""

import atexit
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from fusion_task import two
from merges import family, weighted, write
from paring import demo
from paring.cli.main import main
from paring.recipes.settings import TuneSettings
from paring.recipes.tune import tune
from probe_task import task
from slim_task import tuned
from transfer_task import digits


@contextmanager
def one_thread() -> Iterator[None]:
    """A few steps of a small model gain nothing from more, and on a busy machine lose much."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def place() -> Path:
    """Removed when the process ends."""
    at = Path(mkdtemp(prefix="paring-tests-"))
    atexit.register(shutil.rmtree, at, ignore_errors=True)
    return at


def tune_run() -> Path:
    return tuned().folder


@cache
def stopped_run() -> Path:
    """Of ``paring tune``, interrupted at its second evaluation."""
    of, out = tuned(), place() / "stopped"
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line) if "validation accuracy" in line else None
        if len(said) == 2 and said[-1] is line:
            signal.raise_signal(signal.SIGINT)

    given: dict[str, Any] = {"task": "text-classification", "out": str(out), "max_steps": 50, "rank": 8, "learning_rate": 0.02}
    outcome = tune(
        TuneSettings(model=str(of.base), data=str(of.calibration.with_name("train.csv")), eval_steps=5, **given), say=say
    )
    assert not outcome.finished
    return out


@cache
def slim_report() -> Path:
    of, out = tuned(), place() / "slim"
    more = ["--keep", "0.2,0.05", "--method", "auto", "--budget", "4", "--steps", "3", "--test", str(of.test)]
    assert main(of.slim(place() / "slims", *more, "--report", str(out))) == 0
    return out


def deltas() -> Path:
    """What the same command wrote beside the report: a folder of deltas and nothing else."""
    slim_report()
    return place() / "slims"


@cache
def bank() -> Path:
    of, out = tuned(), place() / "bank"
    copy = place() / "other"
    copy.mkdir()
    shutil.copy(of.delta, copy / "model.delta.safetensors")
    rows = ["--calibration", f"words={of.calibration}", "--test", f"words={of.test}", "--steps", "3"]
    both = [f"words={of.folder}", str(copy), "--bank", str(out), "--base", str(of.base)]
    assert main(["slim", *both, *rows, "--keep", "0.05"]) == 0
    return out


@cache
def transfer_report() -> Path:
    of, out = digits(), place() / "transfer"
    more = ["--lambda", "0,0.5,1", "--methods", "whole", "dare", "--report", str(out)]
    assert main(of.command(of.whole, *more)) == 0
    return out


@cache
def merged() -> Path:
    folder = place() / "merging"
    folder.mkdir()
    config = write(folder, weighted(family(folder, 2), "ties", density=0.5))
    assert main(["fuse", str(config), str(place() / "merged")]) == 0
    return place() / "merged"


@cache
def merged_bank() -> Path:
    folder = place() / "emr"
    folder.mkdir()
    base, *paths = family(folder, 2)
    config = write(folder, {"merge_method": "emr", "base_model": base, "models": [{"model": p} for p in paths]})
    assert main(["fuse", str(config), str(place() / "emr-bank")]) == 0
    return place() / "emr-bank"


@cache
def searched_merge() -> Path:
    of, out = two(), place() / "searched"
    rows = of.options("calibration", "validation", "test")
    assert main(["fuse", str(of.config(place() / "searched.yml")), str(out), *rows, "--budget", "4"]) == 0
    return out


@cache
def probe_run() -> Path:
    task().probe("spectra", place() / "probe", groups=2, figure=True)
    return place() / "probe"


@cache
def demo_run() -> Path:
    out = place() / "demo"
    demo.run(out, steps=3, tasks=["checkered", "unwoven"], pretraining_steps=3)
    return out


RUNS: dict[str, Callable[[], Path]] = {
    "tune": tune_run,
    "stopped": stopped_run,
    "slim": slim_report,
    "deltas": deltas,
    "bank": bank,
    "transfer": transfer_report,
    "fuse": merged,
    "emr": merged_bank,
    "searched": searched_merge,
    "probe": probe_run,
    "demo": demo_run,
}


def copied(folder: Path, to: Path) -> Path:
    """A copy that a test may change, without a page."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("report.html"))
    return to


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Changes what a JSON file holds."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


class Seen(HTMLParser):
    """What a page consists of, as a browser's parser would find it.

    Attributes:
        tags: name -> attributes of each element of it. text: all of the page but style and script. cells: rows of tables by id.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: dict[str, list[dict[str, str | None]]] = {}
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[str] = []
        self._table: list[list[str]] | None = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.setdefault(tag, []).append(given)
        self._open.append(tag)
        if tag == "table":
            self._table = self.tables.setdefault(given["id"] or "", [])
        elif tag == "tr" and self._table is not None:
            self._table.append([])
        elif tag in ("td", "th") and self._table is not None:
            self._table[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.setdefault(tag, []).append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, tag  # every element ends, in order
        if tag == "table":
            self._table = None

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.text += data
            if self._table and self._table[-1] and {"td", "th"} & set(self._open):
                self._table[-1][-1] += data

    def table(self, words: str) -> list[list[str]]:
        """The rows of the first table whose id has these words: header, body, foot."""
        return next(rows for name, rows in self.tables.items() if words in name)
