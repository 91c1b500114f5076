"""How much of several fine-tunes is left in one model: every merge method on the ViT (five tasks) and MiniLM (four).

    python benchmarks/fuse_quality.py                     everything that is not measured yet, about two hours on 2 cores
    python benchmarks/fuse_quality.py --suites digits     the ViT
    python benchmarks/fuse_quality.py --minutes 30        stops after the lines begun by then; the same command goes on
    python benchmarks/fuse_quality.py --report            tables of what benchmarks/results holds; runs nothing

Tasks share a body and keep their own heads. Settings of a method (weight, lambda, density) are chosen on validation rows,
searches see 256 calibration rows of each task, test rows are scored once. Beside the merges: the fine-tunes themselves (what
100 % is) and one model trained on all tasks at once. Three seeds; on MiniLM one seed of the lines that no goal is about.
The fine-tunes are those of tune_quality.py (benchmarks/zoo); what is missing there is tuned anew.
"""


def main() -> None:
    from fusing import plan, report
    from quality import command

    command.run(__doc__, plan, lambda suite, cells: print(report.markdown(suite, cells)))


if __name__ == "__main__":
    main()
