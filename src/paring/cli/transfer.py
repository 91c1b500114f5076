"""``paring transfer``: how much of a delta to put on, so that the base keeps what it can. See ``paring.recipes.transfer``."""

import argparse
from pathlib import Path
from typing import Any

_METHODS = ("whole", "magnitude", "rescaled", "dare", "della", "nps", "fitted", "joint")
_SUBSPACES = ("magnitude", "layer", "kind", "magnitude*kind", "random")
_TASKS = ("text-classification", "image-classification", "causal-lm")
_ORIGINAL = "original"  # the name of the one that has none
_EXAMPLES = """\
  paring transfer MODEL tuned --validation mine.csv --original-validation theirs.csv --lambda 0:1.2:0.1
  paring transfer MODEL tuned --calibration c.csv --validation v.csv --test t.csv --original-validation ov.csv \\
    --original-test ot.csv --keep 0.1 --report report --out best.delta.safetensors
  paring transfer MODEL tuned --calibration c.csv --validation v.csv --methods whole nps joint \\
    --original-calibration mail=m.csv news=n.csv --original-validation mail=mv.csv news=nv.csv \\
    --original-head mail=tuned-mail-head news=tuned-news-head
"""


def add_parser(subparsers: Any) -> None:
    """Adds the command; loads nothing."""
    parser = subparsers.add_parser(
        "transfer",
        help="how much of a delta to put on, so that the base keeps what it can do",
        description="Scores base + lambda * delta, whole and pruned, on the tuned task and on what the base could do before; "
        "finds the lambda of highest H-score (the harmonic mean of the two) on validation rows.",
        epilog=f"examples:\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("base", metavar="BASE", help="what the delta was made on: a model's folder, or a name on the hub")
    parser.add_argument("delta", metavar="DELTA", help="a delta file, or the folder of a paring tune")
    parser.add_argument(
        "--lambda",
        dest="lambdas",
        metavar="RANGE",
        help="START:STOP:STEP, or values: 0.5,1 (0:1.2:0.1); from below 0: --lambda=-1:1:0.5",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=_METHODS,
        metavar="METHOD",
        help=f"of {', '.join(_METHODS)} (whole magnitude dare; with --calibration nps and fitted, too)",
    )
    parser.add_argument("--keep", type=float, metavar="SHARE", help="of all entries that pruning keeps, in (0, 1] (0.1)")
    parser.add_argument("--own-head", action="store_true", help="each task has its own head at every lambda")
    parser.add_argument("--out", metavar="FILE", help="a new file for the best lambda * delta")
    parser.add_argument(
        "--values", metavar="TYPE", help="how its differences are stored: fp32, bf16, fp16, int8, int4, sign (fp16)"
    )
    parser.add_argument("--report", metavar="DIR", help="a new folder with the numbers and plots of them")
    parser.add_argument("--seed", type=int, metavar="N", help="of whatever is drawn (0)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at the outputs")

    data = parser.add_argument_group("rows of the tuned task (files as for paring tune; no row in two splits of any task)")
    data.add_argument("--validation", required=True, metavar="FILE", help="to choose lambda on")
    data.add_argument("--calibration", metavar="FILE", help="to search on; 256 rows are plenty")
    data.add_argument("--test", metavar="FILE", help="to report on, with --original-test")
    data.add_argument("--batch-size", type=int, metavar="N", help="rows scored at a time (32)")
    data.add_argument("--task", choices=_TASKS, help="where the delta does not say")
    data.add_argument("--config", metavar="FOLDER", help="with the tuned model's config.json, where the delta has none")
    data.add_argument("--text-column", metavar="NAME", help="(as tuned)")
    data.add_argument("--label-column", metavar="NAME", help="(as tuned)")
    data.add_argument("--max-length", type=int, metavar="N", help="tokens a text is cut to (as tuned)")

    more = parser.add_argument_group("original tasks, what the base can do (several: NAME=…)")
    for split, what in (
        ("validation", "to choose lambda on"),
        ("calibration", "to search on, for the method joint"),
        ("test", "to report on"),
    ):
        required = split == "validation"
        more.add_argument(f"--original-{split}", nargs="+", required=required, metavar="[NAME=]FILE", help=what)
    more.add_argument("--original-head", nargs="+", metavar="[NAME=]DELTA", help="a head, where the base has none for it")
    more.add_argument("--original-task", nargs="+", metavar="[NAME=]TASK", help="where base or head do not say")
    for option in ("text-column", "label-column"):
        more.add_argument(f"--original-{option}", nargs="+", metavar="[NAME=]COLUMN", help="(of the usual names)")
    more.add_argument("--original-max-length", nargs="+", metavar="[NAME=]N", help="(what the model takes)")

    search = parser.add_argument_group("methods that work on calibration rows (nps, fitted, joint)")
    search.add_argument("--objective", choices=("loss", "accuracy"), help="what nps and joint search by (loss)")
    search.add_argument("--budget", type=int, metavar="N", help="evaluations of a search (200)")
    search.add_argument("--subspaces", choices=_SUBSPACES, metavar="KIND", help=f"{', '.join(_SUBSPACES)} (magnitude*kind)")
    search.add_argument("--parts", type=int, metavar="M", help="subspaces of magnitude, layer and random (8)")
    search.add_argument("--steps", type=int, metavar="N", help="of fitted's refit (360)")
    search.add_argument("--search", metavar="DIR", help="keeps every evaluation there; the same command goes on after a kill")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from paring.recipes.slim.many import named
    from paring.recipes.transfer.rows import TaskFiles
    from paring.recipes.transfer.run import transfer
    from paring.recipes.transfer.settings import TransferSettings
    from paring.transfer.grid import lambdas

    given: dict[str, Any] = {k: v for k, v in vars(options).items() if k != "run"}
    base, delta, out = given.pop("base"), given.pop("delta"), given.pop("out", None)
    originals = _originals({k.removeprefix("original_"): given.pop(k) for k in [*given] if k.startswith("original_")})
    files = TaskFiles(**{split: given.pop(split) for split in ("validation", "calibration", "test") if split in given})
    if "lambdas" in given:
        given["lambdas"] = lambdas(given["lambdas"])
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    settings = TransferSettings(**values)
    transfer(base, named(delta)[1], settings, files=files, originals=originals, out=out)
    return 0


def _originals(given: dict[str, list[str]]) -> dict[str, Any]:
    """The original tasks by name, in the order of their validation rows."""
    from paring.recipes.slim.many import named
    from paring.recipes.transfer.originals import Original
    from paring.recipes.transfer.rows import TaskFiles

    found: dict[str, dict[str, Any]] = {}
    for option in sorted(given, key=lambda option: option != "validation"):
        for text in given[option]:
            name, value = _named(text)
            called = f"--original-{option.replace('_', '-')}"
            if option != "validation" and name not in found:
                there = ", ".join(map(repr, found))
                raise ValueError(f"{called} {text}: no --original-validation of {name!r}; there are {there}")
            if option in found.setdefault(name, {}):
                raise ValueError(f"{called} is given twice for {name!r}; expected once, or NAME=…")
            found[name][option] = value
    made = {}
    for name, values in found.items():
        files = TaskFiles(**{split: values.pop(split) for split in ("validation", "calibration", "test") if split in values})
        if "max_length" in values:
            values["max_length"] = _number(values["max_length"], name)
        if "head" in values:
            values["head"] = named(values["head"])[1]
        made[name] = Original(files, **values)
    return made


def _named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    return (name, value) if equals and name and value and not Path(text).exists() else (_ORIGINAL, text)


def _number(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"--original-max-length of {name!r} is {text!r}; expected a whole number, at least 1") from None
