"""How small a fine-tune gets before its task is lost: every method of paring.slim on the ViT and MiniLM.

    python benchmarks/slim.py                     everything that is not measured yet, about two and a half hours on 2 cores
    python benchmarks/slim.py --suites digits     the whole grid on the ViT, about an hour
    python benchmarks/slim.py --minutes 30        stops after the cells begun by then; the same command goes on
    python benchmarks/slim.py --report            tables and pictures of what benchmarks/results holds; runs nothing

256 calibration rows are searched, refitted and scored on; test rows are only reported. The fine-tunes are those of
tune_quality.py (benchmarks/zoo); what is missing there is tuned anew.
"""


def main() -> None:
    from quality import command
    from slimming import figure, plan, report

    def show(suite: str, cells: report.Cells) -> None:
        print(report.markdown(suite, cells))
        figure.draw(suite, cells, command.DOCS)

    command.run(__doc__, plan, show)


if __name__ == "__main__":
    main()
