"""What merging costs: time and memory of ``paring fuse``, beside the raw floor and mergekit.

    python benchmarks/fuse_speed.py --mergekit /path/to/mergekits/python     everything; about 40 minutes on 2 cores, resumable
    python benchmarks/fuse_speed.py --sizes 250M --methods ties,della --rounds 3 --again
    python benchmarks/fuse_speed.py --table                                  Markdown of benchmarks/results; runs nothing

Both run as whole processes, start included, in turn, on a synthetic base and four fine-tunes (``delta_cost/checkpoints.py``)
that are written to a work folder first and removed at the end (``--keep`` leaves them). mergekit needs an environment of its
own; it runs in the first round only, and on 1 B parameters ``ties`` alone, which takes it minutes. The goals: 8 times the floor
at most on 250 M parameters and 5 times on 1 B; ties 10 times as fast as mergekit; anonymous memory at most 0.5 GB and three
times the largest tensor.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from delta import some_of
from delta_cost import record
from delta_cost.checkpoints import SIZES
from fuse_cost import commands, report
from fuse_cost.commands import METHODS

RESULTS = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    work = args.work or Path(tempfile.gettempdir()) / "paring-bench-fuse"
    try:
        for size in () if args.table else args.sizes:
            path = args.out / f"fuse_speed_{size}.json"
            if path.exists() and not args.again:
                print(f"{path.stem}: finished on {record.read(path)['date']}; --again measures it anew")
                continue
            rec = commands.run(size, args.methods, args.rounds, beside(args, size), args.mergekit, work, path)
            rec["summary"] = report.summarize(rec)
            rec["verdicts"] = report.verdicts(rec)
            record.finish(path, rec)
    finally:
        if not (args.keep or args.table):
            shutil.rmtree(work, ignore_errors=True)
    print("\n" + tables(args.out))
    return 0


def beside(args: argparse.Namespace, size: str) -> dict[str, int]:
    """In how many rounds mergekit runs, by method."""
    if not args.mergekit:
        return {}
    chosen = [m for m in args.methods if size != "1B" or m in report.FASTER]
    return dict.fromkeys(chosen, min(args.mergekit_rounds, args.rounds))


def tables(folder: Path) -> str:
    """Markdown of the finished sizes in ``folder``."""
    found: list[str] = []
    for size in SIZES:
        path = folder / f"fuse_speed_{size}.json"
        if path.exists():
            rec = record.read(path)
            found += [report.table(rec), report.verdict_lines(rec)]
    return "\n\n".join(found) or f"no results in {folder}"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--mergekit", default="", metavar="PYTHON", help="of an environment that has mergekit; default: without it"
    )
    parser.add_argument("--mergekit-rounds", type=int, default=1, help="in which mergekit runs, too")
    parser.add_argument("--sizes", type=some_of(tuple(SIZES)), default=("250M", "1B"), help="comma separated")
    parser.add_argument("--methods", type=some_of(tuple(METHODS)), default=tuple(METHODS), help="comma separated")
    parser.add_argument("--rounds", type=int, default=5, help="of each method")
    parser.add_argument("--work", type=Path, help="folder of the checkpoints; default in the system's temporary one")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints there")
    parser.add_argument("--again", action="store_true", help="also sizes that are finished")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder of the results; default {RESULTS}")
    parser.add_argument("--table", action="store_true", help="print the tables of the results and run nothing")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
