"""``paring tune``: see ``paring.recipes``."""

import argparse
from typing import Any

_TASKS = ("text-classification", "image-classification", "causal-lm")
_EXAMPLES = """\
  paring tune sentence-transformers/all-MiniLM-L6-v2 --data reviews.csv --task text-classification --out tuned
  paring tune ./my-vit --data images/ --task image-classification --rank 8 --move-steps 50 --out tuned
  paring tune --config tuned/paring-tune.json --seed 1 --out tuned-again
  paring tune --resume --out tuned
"""


def add_parser(subparsers: Any) -> None:
    """Adds the command; loads nothing."""
    parser = subparsers.add_parser(
        "tune",
        help="fine-tune slices of a pretrained model on your own data; writes a small delta",
        description="Fine-tunes slices of a pretrained model on your own data and writes what was learnt as a small delta.",
        epilog=f"examples:\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a model folder, or a name on the Hugging Face hub")
    parser.add_argument(
        "--data", metavar="PATH", help="CSV, JSONL or Parquet file, a folder of them, images, or a saved dataset"
    )
    parser.add_argument("--task", choices=_TASKS, help="what is tuned for")
    parser.add_argument("--out", metavar="DIR", help="folder of the result: new, or with --resume the run's")
    parser.add_argument("--config", metavar="FILE", help="settings of an earlier run (its paring-tune.json); options given win")
    parser.add_argument("--resume", action="store_true", help="go on with the interrupted run in --out")

    data = parser.add_argument_group("data")
    data.add_argument("--text-column", metavar="NAME", help="with the texts (found: text, sentence, content)")
    data.add_argument("--label-column", metavar="NAME", help="with the labels (found: label, labels, class, category)")
    data.add_argument("--validation", type=float, metavar="SHARE", help="rows held out where there is no such split (0.1)")
    data.add_argument("--max-length", type=int, metavar="N", help="tokens a text is cut to")
    data.add_argument("--new-head", action="store_true", help="replace the classification head that the model brings")

    slices = parser.add_argument_group("slices (without --rank: those recommended for the model)")
    slices.add_argument("--rank", type=int, metavar="N", help="rows or columns in a slice")
    slices.add_argument(
        "--modes", nargs="+", choices=("row", "column"), help="one, or both in the order to alternate in (column)"
    )
    slices.add_argument("--move-steps", type=int, metavar="N", help="optimizer steps between moves; without: never")
    slices.add_argument("--position", type=int, metavar="N", help="first row or column of the first slice (0)")
    slices.add_argument("--max-position", type=int, metavar="N", help="end of the range that is swept (each layer's own)")
    slices.add_argument("--stride", type=int, metavar="N", help="from one position to the next (the rank)")
    slices.add_argument(
        "--lane", metavar="I/N", help="the I-th of N shares of every layer: runs in different lanes share no entry"
    )
    slices.add_argument("--order", metavar="ORDER", help="sweep, random, or positions: 0,64,128", type=_order)
    slices.add_argument("--targets", nargs="+", metavar="GLOB", help="layers to slice")
    slices.add_argument("--exclude", nargs="+", metavar="GLOB", help="layers to leave alone")
    slices.add_argument("--train-also", nargs="+", metavar="GLOB", help="modules trained whole (default: a task head)")
    slices.add_argument("--bias", action="store_true", help="the bias entries of the active rows too")
    slices.add_argument("--layer-window", type=int, metavar="K", help="slices in K consecutive blocks at a time")
    slices.add_argument("--layers", metavar="WHICH", help="blocks with slices: upper:3, lower:3, or 0,1,5", type=_layers)

    training = parser.add_argument_group("training")
    training.add_argument("--learning-rate", type=float, metavar="RATE", help="the highest (default: recommended)")
    training.add_argument("--epochs", type=float, metavar="N", help="passes over the train split (3)")
    training.add_argument("--max-steps", type=int, metavar="N", help="optimizer steps, instead of epochs")
    training.add_argument("--batch-size", type=int, metavar="N", help="rows (16)")
    training.add_argument("--accumulation-steps", type=int, metavar="N", help="batches in an optimizer step (1)")
    training.add_argument("--warmup", type=float, metavar="SHARE", help="of the steps, in which the rate rises (0.06)")
    training.add_argument("--weight-decay", type=float, metavar="X", help="of AdamW (0)")
    training.add_argument("--eval-steps", type=int, metavar="N", help="steps between evaluations (a tenth of the run)")
    training.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="of the arithmetic (fp32); fp16 with a GPU")
    training.add_argument("--seed", type=int, metavar="N", help="of a new head, the rows' order and whatever is drawn (0)")
    training.add_argument("--save-full", action="store_true", help="also write the whole tuned model")
    parser.set_defaults(run=_run)


def _order(text: str) -> str | tuple[int, ...]:
    return text if text in ("sweep", "random") else _numbers(text, "sweep, random, or positions such as 0,64,128")


def _layers(text: str) -> str | tuple[int, ...]:
    return text if ":" in text else _numbers(text, "upper:3, lower:3, or block numbers such as 0,1,5")


def _numbers(text: str, expected: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected {expected}") from None


def _run(arguments: argparse.Namespace) -> int:
    from paring.recipes.settings import from_mapping, read_config
    from paring.recipes.tune import resumed, tune

    given = {k: v for k, v in vars(arguments).items() if k not in ("run", "config", "resume")}
    resume = getattr(arguments, "resume", False)
    if resume:
        if "out" not in given:
            raise ValueError("--resume needs --out, the folder of the run")
        settings = resumed(given, given["out"])
    else:
        from pathlib import Path

        config = getattr(arguments, "config", None)
        earlier = {k: v for k, v in read_config(Path(config)).items() if k != "out"} if config else {}
        settings = from_mapping(earlier | given, "paring tune")
    try:
        return 0 if tune(settings, resume=resume).finished else 130
    except FloatingPointError as error:
        raise ValueError(str(error)) from None
