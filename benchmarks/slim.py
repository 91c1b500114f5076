"""How small a fine-tune gets before its task is lost: every method of paring.slim on the ViT and MiniLM.

    python benchmarks/slim.py                     everything that is not measured yet, about two and a half hours on 2 cores
    python benchmarks/slim.py --suites digits     the whole grid on the ViT, about an hour
    python benchmarks/slim.py --minutes 30        stops after the cells begun by then; the same command goes on
    python benchmarks/slim.py --report            tables and pictures of what benchmarks/results holds; runs nothing

256 calibration rows are searched, refitted and scored on; test rows are only reported. The fine-tunes are those of
tune_quality.py (benchmarks/zoo); what is missing there is tuned anew.
"""

import argparse
import os
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=["digits", "docstrings"], choices=["digits", "docstrings"])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="fine-tunes at a time, one thread each")
    parser.add_argument("--minutes", type=float, help="begin nothing new after so long")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--zoo", type=Path, default=HERE / "zoo", help="folder of the fine-tunes")
    parser.add_argument("--report", action="store_true", help="tables and pictures of what there is; run nothing")
    arguments = parser.parse_args()

    from slimming import figure, plan, report

    for suite in arguments.suites:
        store = plan.store(arguments.out, suite)
        if not arguments.report:
            plan.run(suite, store, arguments.workers, arguments.zoo, arguments.out, arguments.minutes)
        print(report.markdown(suite, list(store.cells.values())))
        figure.draw(suite, list(store.cells.values()), HERE.parent / "docs")


if __name__ == "__main__":
    main()
