"""How much of a fine-tune to put on a base that should not forget: paring transfer on the fine-tunes of the ViT and MiniLM.

    python benchmarks/transfer.py                     everything that is not measured yet, about two hours on 2 cores
    python benchmarks/transfer.py --suites digits     the ViT
    python benchmarks/transfer.py --minutes 30        stops after the lines begun by then; the same command goes on
    python benchmarks/transfer.py --report            tables of what benchmarks/results holds; runs nothing

Each full fine-tune, whole and pruned to a tenth of its entries, is scored along base + lambda * delta on its own task and on
what the base could do before: the ViT on upright digits, MiniLM on the other docstring tasks, with heads trained on the frozen
base. Lambda is chosen on validation rows by the H-score, the harmonic mean of the two; test rows are scored once, with it.
Searches and refits see 256 calibration rows of the tuned task; "joint" also those of the original task. The fine-tunes are
those of tune_quality.py (benchmarks/zoo); what is missing there is tuned anew.
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
    parser.add_argument("--zoo", type=Path, default=HERE / "zoo", help="folder of the fine-tunes, and of searches' journals")
    parser.add_argument("--report", action="store_true", help="tables of what there is; run nothing")
    arguments = parser.parse_args()

    from transferring import plan, report

    for suite in arguments.suites:
        store = plan.store(arguments.out, suite)
        if not arguments.report:
            plan.run(suite, store, arguments.workers, arguments.zoo, arguments.out, arguments.minutes)
        print(report.markdown(suite, list(store.cells.values())))


if __name__ == "__main__":
    main()
