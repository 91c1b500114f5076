"""What deltas cost: time and memory of the commands beside the raw floor, bits a parameter, time of a swap.

    python benchmarks/delta.py                        everything; about 10 minutes on 2 cores, resumable
    python benchmarks/delta.py --parts commands --sizes 250M --again
    python benchmarks/delta.py --table                Markdown of what benchmarks/results holds; runs nothing

Commands run as whole processes on synthetic checkpoints (``delta_cost/checkpoints.py``), which are written to a work folder
first and removed at the end (``--keep`` leaves them for the next run). The goals: wall time beyond process start at most three
times the floor; anonymous memory at most 0.4 GB and three times the largest tensor; positions at most 1.1 times their entropy;
a swap at most three times as long as writing its entries once.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from delta_cost import commands, record, report, sizes, swaps
from delta_cost.checkpoints import SIZES
from delta_cost.record import Record

RESULTS = Path(__file__).parent / "results"
PARTS = ("commands", "sizes", "swaps")


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.table:
        print(tables(args.out))
        return 0
    wanted = [part for part in jobs(args) if args.again or not finished(args.out / f"delta_{part}.json")]
    work = args.work or Path(tempfile.gettempdir()) / "paring-bench-delta"
    try:
        for part in wanted:
            run(part, args, work, args.out / f"delta_{part}.json")
    finally:
        if not args.keep:
            shutil.rmtree(work, ignore_errors=True)
    print("\n" + tables(args.out))
    return 0


def jobs(args: argparse.Namespace) -> list[str]:
    """The names of the records to make."""
    return [job for part in args.parts for job in ([f"commands_{s}" for s in args.sizes] if part == "commands" else [part])]


def finished(path: Path) -> bool:
    if not path.exists():
        return False
    rec = record.read(path)
    if earlier(rec):
        print(f"{path.stem}: was measured by an earlier version, not all that is measured now; anew")
        return False
    print(f"{path.stem}: finished on {rec['date']}; --again measures it anew")
    return True


def earlier(rec: Record) -> bool:
    """Whether a record of commands is from before their work was timed apart from their processes, or both ways of `diff`."""
    return "rounds" in rec and ("work_s" not in rec["rounds"][0]["diff"] or "diff plain" not in rec["rounds"][0])


def run(part: str, args: argparse.Namespace, work: Path, path: Path) -> None:
    """Measures one part; its record is at ``path`` in the end."""
    if part == "sizes":
        rec = record.new("sizes", {}) | sizes.run()
        rec["verdicts"] = report.size_verdicts(rec)
    elif part == "swaps":
        print("swaps", flush=True)
        rec = record.new("swaps", {"rounds": args.swaps}) | {"swaps": swaps.run(args.swaps, tiny=args.sizes == ("tiny",))}
        rec["summary"] = report.summarize_swaps(rec["swaps"])
        rec["verdicts"] = report.swap_verdicts(rec)
    else:
        rec = commands.run(part.removeprefix("commands_"), args.rounds, work, path)
        rec["summary"] = report.summarize_commands(rec)
        rec["verdicts"] = report.command_verdicts(rec)
    record.finish(path, rec)


def tables(folder: Path) -> str:
    """Markdown of the finished parts in ``folder``."""
    found: list[str] = []
    for name in [*(f"commands_{size}" for size in SIZES), "sizes", "swaps"]:
        path = folder / f"delta_{name}.json"
        if path.exists():
            rec = record.read(path)
            outdated = f"{path.name} was measured by an earlier version: run it again"
            found += [outdated] if earlier(rec) else [_table(name, rec), report.verdict_lines(rec)]
    return "\n\n".join(found) or f"no results in {folder}"


def _table(name: str, rec: Record) -> str:
    made = {"sizes": report.sizes_table, "swaps": report.swaps_table}.get(name, report.commands_table)
    return made(rec)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=some_of(PARTS), default=PARTS, help="comma separated")
    parser.add_argument("--sizes", type=some_of(tuple(SIZES)), default=("250M", "1B"), help="comma separated")
    parser.add_argument("--rounds", type=int, default=5, help="of each command")
    parser.add_argument("--swaps", type=int, default=200, help="rounds of swaps")
    parser.add_argument("--work", type=Path, help="folder of the checkpoints; default in the system's temporary one")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints there")
    parser.add_argument("--again", action="store_true", help="also parts that are finished")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder of the results; default {RESULTS}")
    parser.add_argument("--table", action="store_true", help="print the tables of the results and run nothing")
    return parser.parse_args(argv)


def some_of(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def names(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return chosen

    return names


if __name__ == "__main__":
    sys.exit(main())
