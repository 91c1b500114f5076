"""The paper's claims, measured by every kind of ``paring probe`` on a small ViT and on MiniLM, and a page of what came of it.

    python benchmarks/evidence.py                        all that is missing, cheap probes first; after a kill the same goes on
    python benchmarks/evidence.py --models vit           one of the two models
    python benchmarks/evidence.py --kinds rank position  some kinds
    python benchmarks/evidence.py --minutes 30           begins no probe after so long; the same command goes on
    python benchmarks/evidence.py --report               writes the page of what there is; runs nothing

Probes run in benchmarks/evidence_runs (every cell, not under version control); what is small of each, its verdict, its figure
and its shorter tables, goes to docs/evidence/KIND-MODEL-TASK, and docs/evidence.md is made of those.
"""

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    from evidencing import page, plan, runs

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(plan.MODELS), choices=list(plan.MODELS))
    parser.add_argument("--kinds", nargs="+", default=list(plan.KINDS), choices=list(plan.KINDS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="probes at a time")
    parser.add_argument("--minutes", type=float, help="begin nothing new after so long")
    parser.add_argument("--runs", type=Path, default=HERE / "evidence_runs", help="folder of the probes and their inputs")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs", help="folder of the page")
    parser.add_argument("--report", action="store_true", help="the page of what there is; run nothing")
    arguments = parser.parse_args()

    failed = []
    if not arguments.report:
        asked = [p for p in plan.PROBES if p.model in arguments.models and p.kind in arguments.kinds]
        failed = runs.run(asked, arguments.runs, arguments.docs, arguments.workers, arguments.minutes)
    page.write(plan.PROBES, arguments.docs)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
