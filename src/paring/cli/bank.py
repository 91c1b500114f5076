"""``paring bank``: a folder of deltas of one base. See ``paring.bank``."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Adds the command; loads nothing."""
    parser = subparsers.add_parser(
        "bank",
        help="a folder of deltas of one base: list, verify, or write base + one of them",
        description="A folder of deltas (NAME.delta.safetensors, or folders of shards) of one base, or of tasks that share one "
        "vector (NAME.mask.safetensors, by paring fuse). In Python, paring.Bank swaps between them in memory.",
    )
    jobs = parser.add_subparsers(title="jobs", metavar="JOB", required=True)
    ls = jobs.add_parser("ls", help="the deltas and what they hold")
    ls.add_argument("folder", metavar="FOLDER", help="with the deltas")
    ls.set_defaults(run=_ls)
    verify = jobs.add_parser("verify", help="read every delta and check every hash")
    verify.add_argument("folder", metavar="FOLDER", help="with the deltas")
    verify.add_argument("--base", metavar="BASE", help="also check that each was made on this checkpoint")
    verify.set_defaults(run=_verify)
    activate = jobs.add_parser("activate", help="write base + one delta as a checkpoint")
    activate.add_argument("folder", metavar="FOLDER", help="with the deltas")
    activate.add_argument("name", metavar="NAME", help="of the delta, as `ls` tells it")
    activate.add_argument("--base", metavar="BASE", required=True, help="the checkpoint that the deltas were made on")
    activate.add_argument("--out", metavar="OUT", required=True, help="a new folder, or a new .safetensors file")
    activate.add_argument("--overwrite", action="store_true", help="replace what is at OUT, when the new one is whole")
    activate.set_defaults(run=_activate)


def _ls(options: argparse.Namespace) -> int:
    from paring.bank.listing import listing

    for line in listing(options.folder):
        print(line)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from paring.bank.found import find_deltas
    from paring.bank.listing import verify
    from paring.bank.masked import load_task
    from paring.delta.checkpoint.read import open_checkpoint
    from paring.delta.sources import CheckpointSource

    source = CheckpointSource(open_checkpoint(options.base), options.base) if options.base else None
    for name, path in find_deltas(options.folder).items():
        count = verify(path)
        if source is not None:
            load_task(path).base.check(source)
        print(f"{name}: {count} tensors, every hash as stated" + (f", made on {source.called}" if source else ""))
    return 0


def _activate(options: argparse.Namespace) -> int:
    from paring.bank.found import find_deltas
    from paring.bank.masked import load_task
    from paring.delta.patch import apply_to_checkpoint

    deltas = find_deltas(options.folder)
    if options.name not in deltas:
        raise ValueError(f"{options.folder} has no delta {options.name!r}; it has {', '.join(deltas) or 'none'}")
    apply_to_checkpoint(options.base, load_task(deltas[options.name]), Path(options.out), overwrite=options.overwrite)
    print(f"Wrote {options.out}: {options.base} with {options.name}")
    return 0
