"""``paring demo``: see ``paring.demo``."""

import argparse
import os
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Adds the command; loads nothing."""
    parser = subparsers.add_parser(
        "demo",
        help="tune a small vision transformer on five tasks, four ways; a table and a picture in about two minutes",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", default="demo-out", metavar="DIR", help="folder for demo.json and demo.png")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="optimizer steps of every run")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the pretrained model and of every run")
    # SUPPRESS: help would add "(default: None)" otherwise
    tasks = {"default": argparse.SUPPRESS, "help": "only these tasks (default: all five)"}
    parser.add_argument("--tasks", nargs="+", metavar="TASK", **tasks)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    # Before torch loads: its threads then sleep while they wait. Spinning costs nothing on a quiet machine, but beside
    # other work it made a step of this small model take 1.6 s instead of 0.07 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from paring.demo import run

    run(arguments.out, seed=arguments.seed, steps=arguments.steps, tasks=getattr(arguments, "tasks", None))
    return 0
