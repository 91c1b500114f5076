"""Whether slices learn as well: paring, full fine-tuning and PEFT's methods on digits (ViT) and docstrings (MiniLM).

    python benchmarks/tune_quality.py                      everything, about two hours on 2 cores; goes on where it stood
    python benchmarks/tune_quality.py --suites digits      about twenty minutes
    python benchmarks/tune_quality.py --moving             why moving loses on MiniLM: a screen of its own, about an hour
    python benchmarks/tune_quality.py --table              Markdown of what benchmarks/results holds; runs nothing

Every method gets the same steps, the same batches, and its rate from one grid by one rule (benchmarks/quality/walk.py), on
validation rows. What is reported is test accuracy over three seeds. Fine-tunes are kept in benchmarks/zoo.
"""

import argparse
import os
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=["digits", "docstrings"], choices=["digits", "docstrings"])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="fine-tunes at a time, one thread each")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--zoo", type=Path, default=HERE / "zoo", help="folder of the fine-tunes")
    parser.add_argument("--no-timing", action="store_true", help="leave the interleaved timing out")
    parser.add_argument("--moving", action="store_true", help="instead of the suites: what changes when slices move otherwise")
    parser.add_argument("--table", action="store_true", help="print what the results hold; run nothing")
    arguments = parser.parse_args()

    import quality.plan as plan
    import quality.report as report
    import quality.timing as timing

    if arguments.moving:
        runner = plan.runner("docstrings", arguments.out, arguments.workers, arguments.zoo)
        if not arguments.table:
            runner.confirm(plan.MOVING, plan.MOVING_TASKS, plan.SEEDS[:1], plan.MOVING_RATE)
            runner.confirm(plan.MOVING_CONFIRMED)
            runner.screen(plan.MOVING)
        print(report.moving(runner, plan.MOVING, plan.MOVING_TASKS, plan.MOVING_RATE))
        print(report.tests_by_task(runner, plan.MOVING_CONFIRMED))
        return
    for suite in arguments.suites:
        runner = plan.runner(suite, arguments.out, arguments.workers, arguments.zoo)
        screened = plan.SCREENED[suite]
        if not arguments.table:
            runner.screen(screened)
            runner.confirm(runner.to_confirm(screened))
            if not arguments.no_timing:
                timing.measure(suite, runner.to_confirm(screened), arguments.out)
        print(report.markdown(runner, screened, arguments.out))


if __name__ == "__main__":
    main()
