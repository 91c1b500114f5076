"""``paring demo``: see ``paring.demo``."""

import argparse
import os
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Adds the command; loads nothing."""
    parser = subparsers.add_parser(
        "demo",
        help="a small vision transformer tuned on five tasks, four ways, made slim, fused; tables and a picture in minutes",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--out", default="demo-out", metavar="DIR", help="folder for numbers, picture, page, deltas and the fused model"
    )
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="optimizer steps of every run and fit")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the pretrained model and of every run")
    # SUPPRESS: help would add "(default: None)" otherwise
    tasks = {"default": argparse.SUPPRESS, "help": "only these tasks (default: all five)"}
    parser.add_argument("--tasks", nargs="+", metavar="TASK", **tasks)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument(
        "--workers", type=int, default=cores, metavar="N", help="parts at a time, each on a core: a task, the fused model"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from paring.demo import run

    tasks = getattr(arguments, "tasks", None)
    run(arguments.out, seed=arguments.seed, steps=arguments.steps, tasks=tasks, workers=arguments.workers)
    return 0
