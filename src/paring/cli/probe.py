"""``paring probe``: the claims of the SliceFine paper, measured on a model. See ``paring.probe``."""

import argparse
from typing import Any

_TASKS = ("text-classification", "image-classification", "causal-lm")
_MODEL = {
    "spectra": "a model's folder, a checkpoint file, or a name in the hub's local cache",
    "energy": "a model's folder, or a name in the hub's local cache",
}
_SEEDS = {"spectra": "0", "complexity": "0"}
_AXES = ("row", "column")
_EXAMPLES = """\
  paring probe spectra ./my-model --out spectra
  paring probe gradient ./my-model --data reviews.csv --task text-classification --out gradient
  paring probe position ./my-model --data reviews.csv --task text-classification --positions 20 --out position
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
    spectra.add_argument(
        "--bound", type=float, metavar="RATIO", help="of mean eigenvalues between groups, the largest that is alike (2)"
    )

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

    rank = _training_kind(kinds, "rank", "accuracy against slice rank, static and moving: where does it turn?")
    rank.add_argument("--ranks", nargs="+", type=int, metavar="N", help="1, 2, 4 … and the narrowest layer's extent")
    rank.add_argument("--schedules", nargs="+", choices=("static", "moving"), help="slices that stay, that move (both)")
    rank.add_argument("--axis", choices=_AXES, help="slices of rows or of columns (column)")
    rank.add_argument("--move-steps", type=int, metavar="N", help="steps between moves (an eighth of all)")

    position = _training_kind(kinds, "position", "accuracy against slice position: does it stay within a band?")
    position.add_argument("--positions", type=int, metavar="N", help="places, evenly spread over every layer (12)")
    _add_slices(position)

    importance = _training_kind(kinds, "importance", "slices of the most, the least, mixed and any importance (Wanda)")
    importance.add_argument("--categories", nargs="+", choices=("most", "least", "mixed", "random"), help="(all)")
    importance.add_argument("--rows", type=int, metavar="N", help="calibration rows, drawn from the train split (256)")
    _add_slices(importance)

    tickets = _training_kind(kinds, "tickets", "slices that hold most, and least, of a lottery ticket's mask")
    tickets.add_argument("--sources", nargs="+", choices=("finetuned", "rewound"), help="how tickets are pruned (both)")
    tickets.add_argument("--rounds", type=int, metavar="N", help="of training all weights and pruning (3)")
    tickets.add_argument("--keep", type=float, metavar="SHARE", help="of the weights after all rounds (0.2)")
    tickets.add_argument(
        "--whole-rate", type=float, metavar="RATE", help="of training all weights (a twentieth of the slices')"
    )
    _add_slices(tickets)

    schedule = _training_kind(kinds, "schedule", "static against moving slices: interval, axis, stride, order, window")
    schedule.add_argument("--vary", nargs="*", choices=("interval", "axis", "stride", "order", "window"), help="(all)")
    schedule.add_argument("--rank", type=int, metavar="N", help="rows or columns in a slice (5)")
    schedule.add_argument("--move-steps", type=int, metavar="N", help="steps between moves (an eighth of all)")
    schedule.add_argument("--intervals", nargs="+", type=int, metavar="N", help="others (a twentieth, a quarter, half of all)")


def _training_kind(kinds: Any, name: str, what: str) -> argparse.ArgumentParser:
    """The parser of a kind that trains."""
    parser = _kind(kinds, name, what)
    add_rows(parser)
    parser.add_argument("--steps", type=int, metavar="N", help="optimizer steps of a training (200)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="rows in a step (32)")
    more = {
        "rank": " for the rank; a quarter, half, one and two times that",
        "schedule": "; a quarter, half, one and two times that",
    }.get(name, "")
    parser.add_argument(
        "--rates",
        nargs="+",
        type=float,
        metavar="RATE",
        help=f"of which that counts which did best on validation rows (recommended{more})",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of PyTorch, in a training (1)")
    return parser


def _add_slices(parser: argparse.ArgumentParser) -> None:
    """What a kind takes whose slices are of one rank, and that asks whether accuracies are alike."""
    parser.add_argument("--rank", type=int, metavar="N", help="rows or columns in a slice (5)")
    parser.add_argument("--axes", nargs="+", choices=_AXES, help="slices of rows, of columns (both)")
    parser.add_argument(
        "--band", type=float, metavar="SHARE", help="difference in accuracy that counts as none (0.01: a point)"
    )


def _kind(kinds: Any, name: str, what: str) -> argparse.ArgumentParser:
    """The parser of one kind, with what all kinds take."""
    parser: argparse.ArgumentParser = kinds.add_parser(name, help=what, description=what, argument_default=argparse.SUPPRESS)
    parser.add_argument("model", metavar="MODEL", help=_MODEL.get(name, "a model's folder, or a name on the hub"))
    parser.add_argument("--out", required=True, metavar="DIR", help="new, or the same probe's: finished cells are kept")
    parser.add_argument("--targets", nargs="+", metavar="GLOB", help="layers that are looked at (all but the head)")
    parser.add_argument("--exclude", nargs="+", metavar="GLOB", help="layers to leave out")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help=f"of whatever is drawn ({_SEEDS.get(name, '0 1 2')})")
    parser.add_argument("--no-figure", dest="figure", action="store_false", help="numbers alone; needs no matplotlib")
    parser.set_defaults(run=_run, kind=name)
    return parser


def add_rows(parser: argparse.ArgumentParser) -> None:
    """What a kind takes that works on rows."""
    parser.add_argument("--data", required=True, metavar="PATH", help="as for paring tune")
    parser.add_argument("--task", required=True, choices=_TASKS, help="what the rows are for")
    parser.add_argument("--text-column", metavar="NAME", help="with the texts (found: text, sentence, content)")
    parser.add_argument("--label-column", metavar="NAME", help="with the labels (found: label, labels, class, category)")
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
