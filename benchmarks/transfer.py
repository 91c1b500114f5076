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


def main() -> None:
    from quality import command
    from transferring import plan, report

    command.run(__doc__, plan, lambda suite, cells: print(report.markdown(suite, cells)))


if __name__ == "__main__":
    main()
