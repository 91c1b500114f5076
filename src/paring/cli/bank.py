"""``paring bank``: a folder of deltas of one base. See ``paring.bank``."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Adds the command; loads nothing."""
    parser = subparsers.add_parser(
        "bank",
        help="a folder of deltas of one base: list, verify, or write base + one of them",
        description="A folder of deltas (NAME.delta.safetensors, or folders of shards) of one base. In Python, paring.Bank "
        "swaps between them in memory.",
    )
    jobs = parser.add_subparsers(title="jobs", metavar="JOB", required=True)
    ls = jobs.add_parser("ls", help="the deltas and what they hold")
    ls.add_argument("folder", metavar="FOLDER")
    ls.set_defaults(run=_ls)
    verify = jobs.add_parser("verify", help="read every delta and check every hash")
    verify.add_argument("folder", metavar="FOLDER")
    verify.add_argument("--base", metavar="BASE", help="also check that each was made on this checkpoint")
    verify.set_defaults(run=_verify)
    activate = jobs.add_parser("activate", help="write base + one delta as a checkpoint")
    activate.add_argument("folder", metavar="FOLDER")
    activate.add_argument("name", metavar="NAME")
    activate.add_argument("--base", metavar="BASE", required=True, help="the checkpoint that the deltas were made on")
    activate.add_argument("--out", metavar="OUT", required=True, help="a new folder, or a new .safetensors file")
    activate.add_argument("--overwrite", action="store_true", help="replace what is at OUT, when the new one is whole")
    activate.set_defaults(run=_activate)


def _ls(options: argparse.Namespace) -> int:
    from paring.bank import find_deltas
    from paring.delta.inspect import summarise

    summaries = {name: summarise(path) for name, path in find_deltas(options.folder).items()}
    longest = max(map(len, summaries), default=4)
    print(f"{'name':<{longest}}  {'bytes':>13}  {'keep':>8}  {'bits/param':>10}  base      coding")
    for name, s in summaries.items():
        entries, kept = sum(r.entries for r in s.rows), sum(r.kept for r in s.rows)
        coding = sorted({c for r in s.rows for c in r.coding.split("; ")})
        print(
            f"{name:<{longest}}  {s.num_bytes:>13,}  {kept / max(entries, 1):>8.4f}  {s.bits_per_parameter:>10.3f}  "
            f"{s.manifest.base.total[:8]}  {'; '.join(coding)}"
        )
    bases = {s.manifest.base.total for s in summaries.values()}
    print(f"{len(summaries)} deltas, {sum(s.num_bytes for s in summaries.values()):,} bytes, {len(bases)} base tables")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from paring.bank import find_deltas
    from paring.delta.checkpoint.read import open_checkpoint
    from paring.delta.files import load_delta
    from paring.delta.inspect import verify
    from paring.delta.sources import CheckpointSource

    source = CheckpointSource(open_checkpoint(options.base), options.base) if options.base else None
    for name, path in find_deltas(options.folder).items():
        count = verify(path)
        if source is not None:
            load_delta(path).base.check(source)
        print(f"{name}: {count} tensors, every hash as stated" + (f", made on {source.called}" if source else ""))
    return 0


def _activate(options: argparse.Namespace) -> int:
    from paring.bank import find_deltas
    from paring.delta.files import load_delta
    from paring.delta.patch import apply_to_checkpoint

    deltas = find_deltas(options.folder)
    if options.name not in deltas:
        raise ValueError(f"{options.folder} has no delta {options.name!r}; it has {', '.join(deltas) or 'none'}")
    apply_to_checkpoint(options.base, load_delta(deltas[options.name]), Path(options.out), overwrite=options.overwrite)
    print(f"Wrote {options.out}: {options.base} with {options.name}")
    return 0
