"""``paring diff``, ``paring apply``, ``paring inspect``: deltas as files. See ``paring.delta``."""

import argparse
import re
from pathlib import Path
from typing import Any

_VALUES = ("exact", "fp32", "bf16", "fp16", "int8", "int4", "sign")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", re.IGNORECASE)
_BASE = "a checkpoint: a folder, a .safetensors or torch.save file, or a name in the hub's local cache"


def add_parsers(subparsers: Any) -> None:
    """Adds the three commands; loads nothing."""
    diff = subparsers.add_parser(
        "diff",
        help="what a fine-tune adds to its base, as a delta file",
        description="Writes what a fine-tune adds to its base as a delta: exact (base + delta is bitwise the fine-tune) unless "
        "--values says otherwise.",
    )
    diff.add_argument("base", metavar="BASE", help=_BASE)
    diff.add_argument("finetuned", metavar="FINETUNED", help="likewise")
    diff.add_argument("out", metavar="OUT", help="a new file, usually ….delta.safetensors; with --shard-size a new folder")
    diff.add_argument("--values", choices=_VALUES, default="exact", help="how differences are stored (exact)")
    diff.add_argument("--group", type=int, default=0, metavar="N", help="values that share a scale in int8, int4, sign (all)")
    diff.add_argument("--compression", choices=("zstd", "none"), default="zstd", help="none: plain bytes, a larger file (zstd)")
    diff.add_argument(
        "--allow",
        choices=("removed", "reshaped"),
        nargs="+",
        default=[],
        help="removed: the fine-tune may lack tensors; reshaped: it may have others under the same names",
    )
    diff.add_argument("--licence", metavar="TEXT", help="of the fine-tune, kept with the delta")
    diff.add_argument("--fact", action="append", default=[], metavar="KEY=TEXT", help="kept with the delta; may be repeated")
    _output(diff)
    diff.set_defaults(run=_diff)

    apply = subparsers.add_parser(
        "apply",
        help="base + delta, as a checkpoint",
        description="Writes base + delta as a checkpoint, tensor by tensor, with the base's tokenizer files. The base must be "
        "the one that the delta was made on.",
    )
    apply.add_argument("base", metavar="BASE", help=_BASE)
    apply.add_argument("delta", metavar="DELTA", help="a delta file, or a folder of them")
    apply.add_argument("out", metavar="OUT", help="a new folder, or a new .safetensors file")
    _output(apply)
    apply.set_defaults(run=_apply)

    inspect = subparsers.add_parser(
        "inspect",
        help="what a delta file holds, layer by layer",
        description="Shows what a delta holds, layer by layer; --verify reads all of it and checks every hash.",
    )
    inspect.add_argument("delta", metavar="FILE", help="a delta file, or a folder of them")
    inspect.add_argument("--verify", action="store_true", help="decode every tensor and check its hash")
    inspect.add_argument("--by", choices=("layer", "tensor"), default="layer", help="what a row is (layer)")
    inspect.add_argument("--card", metavar="FILE", help="also write a model card (README.md) with what it says")
    inspect.set_defaults(run=_inspect)


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shard-size", type=byte_size, metavar="SIZE", help="the most bytes of a file, e.g. 5GB")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at OUT, when the new one is whole")


def byte_size(text: str) -> int:
    found = _SIZE.fullmatch(text.strip())
    number = int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " ")) if found else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a size such as 500MB or 5GB")
    return number


def _fact(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ValueError(f"--fact {text!r}: expected KEY=TEXT")
    return key, value


def _diff(options: argparse.Namespace) -> int:
    from paring.delta.diff import diff
    from paring.delta.files import save_delta

    facts = dict(map(_fact, options.fact)) | ({"licence": options.licence} if options.licence else {})
    vector = diff(options.base, options.finetuned, allow=options.allow, exact=options.values == "exact")
    values = "fp32" if options.values == "exact" else options.values
    size = save_delta(
        vector,
        options.out,
        facts,
        values=values,
        group=options.group,
        compression=options.compression,
        shard_bytes=options.shard_size,
        overwrite=options.overwrite,
    )
    _note("not in the fine-tune, and left out again by `paring apply`", vector.removed)
    _note("new, stored as they are", vector.new)
    print(f"Wrote {options.out}: {size:,} bytes; see `paring inspect {options.out}`")
    return 0


def _apply(options: argparse.Namespace) -> int:
    from paring.delta.files import load_delta
    from paring.delta.patch import apply_to_checkpoint

    more = {"shard_bytes": options.shard_size} if options.shard_size else {}
    files = apply_to_checkpoint(options.base, load_delta(options.delta), options.out, overwrite=options.overwrite, **more)
    size = sum(f.stat().st_size for f in files if f.suffix == ".safetensors")
    print(f"Wrote {options.out}: {size:,} bytes in {sum(f.suffix == '.safetensors' for f in files)} files")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from paring.delta.inspect import lines, summarise, verify

    for line in lines(summarise(options.delta, by=options.by)):
        print(line)
    if options.card:
        from paring.delta.card import card
        from paring.files import write_bytes

        write_bytes(Path(options.card), card(options.delta).encode())
        print(f"Wrote {options.card}")
    if options.verify:
        print(f"verified: {verify(Path(options.delta))} tensors, every hash as stated")
    return 0


def _note(what: str, names: tuple[str, ...]) -> None:
    if names:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        print(f"paring: {what}: {', '.join(names[:4])}{more}")
