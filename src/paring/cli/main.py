"""``paring``: one command, a word for each job. Each job's module is loaded when it runs, so help answers at once."""

import argparse
import gc
import sys
from collections.abc import Sequence

from paring import __version__
from paring.cli import bank, deltas, demo, fuse, neighbours, probe, report, slim, transfer, tune


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="paring",
        description="Fine-tune thin slices of any pretrained network, and keep what was learnt as something small.",
    )
    top.add_argument("--version", action="version", version=f"paring {__version__}")
    jobs = top.add_subparsers(title="jobs", metavar="JOB", required=True)
    demo.add_parser(jobs)
    tune.add_parser(jobs)
    deltas.add_parsers(jobs)
    neighbours.add_parsers(jobs)
    slim.add_parser(jobs)
    transfer.add_parser(jobs)
    fuse.add_parser(jobs)
    bank.add_parser(jobs)
    report.add_parser(jobs)
    probe.add_parser(jobs)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one job; 0 on success, 2 on bad input (said in one line), 130 when interrupted."""
    options = parser().parse_args(arguments)
    try:
        if getattr(options, "needs_torch", True):
            _load_torch()
        return int(options.run(options))
    except (ValueError, OSError, ImportError) as error:
        print(f"paring: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("paring: interrupted", file=sys.stderr)
        return 130


def _load_torch() -> None:
    """Its modules make a quarter of a million objects that stay. Looking through them for garbage, while they are made, then
    every now and then, and in the end, is a third of the life of a short command: they are taken out of that."""
    if "torch" in sys.modules:
        return
    enabled = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
