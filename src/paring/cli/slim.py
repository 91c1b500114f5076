"""``paring slim``: a delta with a share of its entries. See ``paring.slim``."""

import argparse
from typing import Any

_METHODS = ("magnitude", "rescaled", "dare", "della")
_VALUES = ("fp32", "bf16", "fp16", "int8", "int4", "sign")


def add_parser(subparsers: Any) -> None:
    """Adds the command; loads nothing."""
    parser = subparsers.add_parser(
        "slim",
        help="a delta with a share of its entries",
        description="Keeps a share of a delta's entries, without data: those of largest magnitude, or random ones. What is "
        "left are differences in numbers: base + delta is near the fine-tune, no longer bitwise it.",
    )
    parser.add_argument("delta", metavar="DELTA", help="a delta file, or a folder of them")
    parser.add_argument("out", metavar="OUT", help="a new file, usually ….delta.safetensors")
    parser.add_argument("--keep", type=float, required=True, metavar="SHARE", help="of all entries of its tensors, in (0, 1]")
    parser.add_argument("--method", choices=_METHODS, default="rescaled", help="which are kept (rescaled)")
    parser.add_argument("--scope", choices=("global", "tensor"), default="global", help="whose magnitudes compete (global)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what dare and della draw (0)")
    parser.add_argument("--base", metavar="BASE", help="what the delta was made on; needed where it is exact")
    parser.add_argument("--values", choices=_VALUES, default="fp16", help="how differences are stored (fp16)")
    parser.add_argument("--group", type=int, default=0, metavar="N", help="values that share a scale in int8, int4, sign (all)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at OUT, when the new one is whole")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from paring.delta.errors import DeltaError
    from paring.delta.files import load_delta, save_delta
    from paring.delta.inspect import summarise
    from paring.slim.pruners import check_keep, num_entries, prune

    check_keep(options.keep, options.scope)
    vector = load_delta(options.delta, base=options.base)
    if options.base is None and any(vector.changes[name].kind == "exact" for name in vector.names):
        raise DeltaError(f"{options.delta} holds exact differences, numbers only beside the base; give it with --base BASE")
    small = prune(vector, options.method, options.keep, scope=options.scope, seed=options.seed)
    size = save_delta(small, options.out, values=options.values, group=options.group, overwrite=options.overwrite)
    before, after = summarise(options.delta), summarise(options.out)
    kept = sum(row.kept for row in after.rows) - sum(vector.changes[name].shape.numel() for name in vector.new)
    print(
        f"Kept {kept:,} of {num_entries(vector):,} entries ({options.method}); base + delta is no longer bitwise the fine-tune"
    )
    bits = f"{after.bits_per_parameter:.3f} bits for each parameter"
    print(f"Wrote {options.out}: {size:,} bytes, {bits}; were {before.num_bytes:,}")
    return 0
