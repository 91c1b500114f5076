"""How much of several fine-tunes is left in one model: every merge method on the ViT (five tasks) and MiniLM (four).

    python benchmarks/fuse_quality.py                     everything that is not measured yet, about two hours on 2 cores
    python benchmarks/fuse_quality.py --suites digits     the ViT
    python benchmarks/fuse_quality.py --minutes 30        stops after the lines begun by then; the same command goes on
    python benchmarks/fuse_quality.py --report            tables of what benchmarks/results holds; runs nothing

Tasks share a body and keep their own heads. Settings of a method (weight, lambda, density) are chosen on validation rows,
searches see 256 calibration rows of each task, test rows are scored once. Beside the merges: the fine-tunes themselves (what
100 % is) and one model trained on all tasks at once. The fine-tunes are those of tune_quality.py (benchmarks/zoo); what is
missing there is tuned anew.
"""

import argparse
import os
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=["digits", "docstrings"], choices=["digits", "docstrings"])
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="fine-tunes of as many seeds at a time, a thread each"
    )
    parser.add_argument("--minutes", type=float, help="begin nothing new after so long")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--zoo", type=Path, default=HERE / "zoo", help="folder of the fine-tunes")
    parser.add_argument("--report", action="store_true", help="tables of what there is; run nothing")
    arguments = parser.parse_args()

    from fusing import plan, report

    for suite in arguments.suites:
        store = plan.store(arguments.out, suite)
        if not arguments.report:
            plan.run(suite, store, arguments.workers, arguments.zoo, arguments.out, arguments.minutes)
        print(report.markdown(suite, list(store.cells.values())))


if __name__ == "__main__":
    main()
