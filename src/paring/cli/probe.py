"""``paring probe``: the claims of the SliceFine paper, measured on a model. See ``paring.probe``."""

import argparse
from typing import Any

_TASKS = ("text-classification", "image-classification", "causal-lm")
_AXES = ("row", "column")
_EXAMPLES = """\
  paring probe spectra ./my-model --out spectra
  paring probe gradient ./my-model --data reviews.csv --task text-classification --out gradient
"""


def add_parser(subparsers: Any) -> None:
    """Adds the command; loads nothing."""
    parser = subparsers.add_parser(
        "probe",
        help="test the claims behind slices on your own model: numbers, a figure, a verdict",
        description="Tests a claim of the SliceFine paper on a model: every kind writes its numbers, a figure and a verdict "
        "with its confidence interval into a folder. After a kill the same command goes on.",
        epilog=f"examples:\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(title="kinds", metavar="KIND", required=True)

    spectra = _kind(kinds, "spectra", "do groups of rows (columns) of a matrix have alike spectra? Streams over a checkpoint")
    spectra.add_argument("--groups", type=int, metavar="K", help="disjoint groups of each matrix (8)")
    spectra.add_argument("--axes", nargs="+", choices=_AXES, help="groups of rows, of columns (both)")
    spectra.add_argument("--controls", nargs="*", choices=("gaussian", "permuted"), help="matrices to compare with (both)")
    spectra.add_argument("--bound", type=float, metavar="RATIO", help="of mean eigenvalues between groups, that is alike (2)")

    complexity = _kind(kinds, "complexity", "what slices, and every method of PEFT's, train, add and hold in one step")
    add_rows(complexity)
    complexity.add_argument("--methods", nargs="+", metavar="NAME", help="row, column, recommended, full, lora … (all)")
    complexity.add_argument("--rank", type=int, metavar="N", help="of slices and adapters; number of virtual tokens (8)")
    complexity.add_argument("--batch-size", type=int, metavar="N", help="rows in the step (16)")

    energy = _kind(kinds, "energy", "do features hold the task, in few directions? Pretrained beside untrained")
    add_rows(energy)
    energy.add_argument("--bound", type=float, metavar="SHARE", help="of the width, that is few directions (0.1)")
    add_calibration(energy, 512)

    gradient = _kind(kinds, "gradient", "has the loss a gradient on every slice? One backward for each batch of rows")
    add_rows(gradient)
    gradient.add_argument("--rank", type=int, metavar="N", help="rows or columns in a slice (5)")
    gradient.add_argument("--axes", nargs="+", choices=_AXES, help="slices of rows, of columns (both)")
    add_calibration(gradient)


def _kind(kinds: Any, name: str, what: str) -> argparse.ArgumentParser:
    """The parser of one kind, with what all kinds take."""
    parser: argparse.ArgumentParser = kinds.add_parser(name, help=what, description=what, argument_default=argparse.SUPPRESS)
    parser.add_argument("model", metavar="MODEL", help="a model's folder, a checkpoint file, or a name on the hub")
    parser.add_argument("--out", required=True, metavar="DIR", help="new, or the same probe's: finished cells are kept")
    parser.add_argument("--targets", nargs="+", metavar="GLOB", help="layers that are looked at (all but the head)")
    parser.add_argument("--exclude", nargs="+", metavar="GLOB", help="layers to leave out")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="of whatever is drawn")
    parser.add_argument("--no-figure", dest="figure", action="store_false", help="numbers alone; needs no matplotlib")
    parser.set_defaults(run=_run, kind=name)
    return parser


def add_rows(parser: argparse.ArgumentParser) -> None:
    """What a kind takes that works on rows."""
    parser.add_argument("--data", required=True, metavar="PATH", help="as for paring tune")
    parser.add_argument("--task", required=True, choices=_TASKS)
    parser.add_argument("--text-column", metavar="NAME")
    parser.add_argument("--label-column", metavar="NAME")
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens a text is cut to")
    parser.add_argument("--new-head", action="store_true", help="replace the classification head that the model brings")
    parser.add_argument("--validation", type=float, metavar="SHARE", help="rows held out where there is no such split (0.1)")


def add_calibration(parser: argparse.ArgumentParser, rows: int = 256) -> None:
    """What a kind takes that looks at a few rows."""
    parser.add_argument("--rows", type=int, metavar="N", help=f"calibration rows, drawn from the train split ({rows})")
    parser.add_argument("--batch-size", type=int, metavar="N", help="rows at a time (32)")


def _run(options: argparse.Namespace) -> int:
    from paring.probe.runner import run

    given = {k: v for k, v in vars(options).items() if k not in ("run", "kind", "model", "out")}
    run(options.kind, options.model, out=options.out, **given)
    return 0
