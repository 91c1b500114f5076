"""``paring slim``: a delta with a share of its entries. See ``paring.recipes.slim``."""

import argparse
from typing import Any

_METHODS = ("magnitude", "rescaled", "dare", "della", "nps", "fitted", "auto")
_SUBSPACES = ("magnitude", "layer", "kind", "magnitude*kind", "random")
_VALUES = ("fp32", "bf16", "fp16", "int8", "int4", "sign")
_TASKS = ("text-classification", "image-classification", "causal-lm")
_USAGE = """\
paring slim DELTA OUT --keep SHARE [--calibration FILE] [options]
       paring slim [NAME=]DELTA … --bank DIR --keep SHARE [--calibration NAME=FILE …] [options]
"""
_EXAMPLES = """\
  paring slim tuned/model.delta.safetensors small.delta.safetensors --keep 0.1 --base MODEL
  paring slim tuned/model.delta.safetensors small.delta.safetensors --keep 0.01 --base MODEL --calibration rows.csv \\
    --test test.csv --search search
  paring slim tuned/model.delta.safetensors small --keep 0.04,0.01,0.003 --method auto --base MODEL --calibration rows.csv \\
    --report report
  paring slim tuned-mail tuned-news --bank bank --keep 0.01 --base MODEL --calibration tuned-mail=mail.csv
"""


def add_parser(subparsers: Any) -> None:
    """Adds the command; loads nothing."""
    parser = subparsers.add_parser(
        "slim",
        help="a delta with a share of its entries, chosen on your data",
        description="Keeps a share of a delta's entries: those that calibration rows show to matter, with values refitted on "
        "these; or those that a search finds best (NPS-Pruning); or without data those of largest magnitude, or random ones. "
        "What is left are differences in numbers: base + delta is near the fine-tune, no longer bitwise it.",
        usage=_USAGE,
        epilog=f"examples:\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="DELTA OUT",
        help="a delta file, or the folder of a paring tune; and a new file, usually ….delta.safetensors (with several keeps "
        "a new folder)",
    )
    parser.add_argument("--bank", metavar="DIR", help="a new folder for many deltas: [NAME=]DELTA …, all of one base")
    parser.add_argument(
        "--keep",
        type=_keeps,
        required=True,
        metavar="SHARE",
        help="of all entries of its tensors, in (0, 1]; several: 0.04,0.01",
    )
    parser.add_argument(
        "--method", choices=_METHODS, help="which are kept; auto: tries all (fitted with calibration rows, else rescaled)"
    )
    parser.add_argument("--base", metavar="BASE", help="what the delta was made on: a model's folder, or a name on the hub")
    parser.add_argument("--values", choices=_VALUES, help="how differences are stored (fp16)")
    parser.add_argument("--group", type=int, metavar="N", help="values that share a scale in int8, int4, sign (all)")
    parser.add_argument("--scope", choices=("global", "tensor"), help="whose magnitudes compete, without a search (global)")
    parser.add_argument("--seed", type=int, metavar="N", help="of whatever is drawn (0)")
    parser.add_argument("--report", metavar="DIR", help="a new folder with the numbers and plots of them")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at OUT, when the new one is whole")

    data = parser.add_argument_group("rows of the task (files as for paring tune; no row in two of them)")
    data.add_argument("--calibration", action="append", metavar="FILE", help="to search and refit on; 256 rows are plenty")
    data.add_argument(
        "--validation", action="append", metavar="FILE", help="to select on (auto: a share of the calibration rows)"
    )
    data.add_argument("--test", action="append", metavar="FILE", help="to report on")
    data.add_argument("--held-out", type=float, metavar="SHARE", help="of the calibration rows that auto selects on (0.25)")
    data.add_argument("--batch-size", type=int, metavar="N", help="rows scored at a time (32)")
    data.add_argument("--task", choices=_TASKS, help="where the delta does not say")
    data.add_argument("--config", metavar="FOLDER", help="with the tuned model's config.json, where the delta has none")
    data.add_argument("--text-column", metavar="NAME", help="(as tuned)")
    data.add_argument("--label-column", metavar="NAME", help="(as tuned)")
    data.add_argument("--max-length", type=int, metavar="N", help="tokens a text is cut to (as tuned)")

    refit = parser.add_argument_group(
        "refit (--method fitted or auto): values of what is kept, tuned to answer as the fine-tune"
    )
    refit.add_argument("--steps", type=int, metavar="N", help="batches it is tuned for (360)")

    search = parser.add_argument_group("search (--method nps or auto)")
    search.add_argument("--objective", choices=("loss", "accuracy"), help="what is made small, or large (loss)")
    search.add_argument("--budget", type=int, metavar="N", help="evaluations of a search (200)")
    search.add_argument(
        "--subspaces",
        nargs="+",
        choices=_SUBSPACES,
        metavar="KIND",
        help=f"{', '.join(_SUBSPACES)} (magnitude*kind; auto: each)",
    )
    search.add_argument("--parts", type=int, metavar="M", help="subspaces of magnitude, layer and random (8)")
    search.add_argument("--search", metavar="DIR", help="keeps every evaluation there; the same command goes on after a kill")
    search.add_argument("--workers", type=int, metavar="N", help="Ray workers that score candidates (0: this process)")
    parser.set_defaults(run=_run)


def _keeps(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a share such as 0.01, or several: 0.04,0.01") from None


def _run(options: argparse.Namespace) -> int:
    from paring.recipes.calibration import Files
    from paring.recipes.slim.many import named, slim_bank
    from paring.recipes.slim.run import slim
    from paring.recipes.slim.settings import SlimSettings

    given: dict[str, Any] = {k: v for k, v in vars(options).items() if k != "run"}
    paths, base, bank = given.pop("paths"), given.pop("base", None), given.pop("bank", None)
    rows = {split: given.pop(split, []) for split in ("calibration", "validation", "test")}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    settings = SlimSettings(**values)
    held_out = settings.held_out if settings.method == "auto" else 0.0
    if bank is not None:
        deltas = [named(path) for path in paths]
        for name, _ in deltas:
            if [n for n, _ in deltas].count(name) > 1:
                raise ValueError(f"two deltas are called {name!r}; name them: NAME=FILE")
        by_name = _by_name(rows)
        slim_bank(dict(deltas), bank, settings, base=base, files={n: Files(**r, held_out=held_out) for n, r in by_name.items()})
        return 0
    if len(paths) != 2:
        raise ValueError(f"got {len(paths)} path(s); expected DELTA OUT, or with --bank DIR any number of deltas")
    for split, several in rows.items():
        if len(several) > 1:
            raise ValueError(f"--{split} is given {len(several)} times; expected once, or NAME=FILE with --bank")
    files = {split: several[0] for split, several in rows.items() if several}
    read = Files(**_with_calibration(files, ""), held_out=held_out) if files else None
    slim(named(paths[0])[1], paths[1], settings, base=base, files=read)
    return 0


def _by_name(rows: dict[str, list[str]]) -> dict[str, dict[str, str]]:
    """The files of each delta."""
    found: dict[str, dict[str, str]] = {}
    for split, several in rows.items():
        for text in several:
            name, equals, path = text.partition("=")
            if not (name and equals and path):
                raise ValueError(f"--{split} {text}: expected NAME=FILE, with --bank, NAME being that of a delta")
            if split in found.setdefault(name, {}):
                raise ValueError(f"--{split} is given twice for {name!r}; expected one file")
            found[name][split] = path
    return {name: _with_calibration(files, f" for {name!r}") for name, files in found.items()}


def _with_calibration(files: dict[str, str], of: str) -> dict[str, str]:
    if "calibration" not in files:
        raise ValueError(f"--{next(iter(files))} without --calibration{of}; expected rows to search on, too")
    return files
