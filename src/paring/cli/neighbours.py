"""``paring export``, ``paring import``: deltas as other programs' files, and back. See ``paring.neighbours``."""

import argparse
from pathlib import Path
from typing import Any

_FORMATS = ("peft-lora",)
_VALUES = ("fp32", "bf16", "fp16", "int8", "int4", "sign")
_BASE = "a checkpoint: a folder, a .safetensors or torch.save file, or a name in the hub's local cache"
_CONFIG = "a folder with the tuned model's config.json (the delta's own, or one beside it, else the base's)"


def add_parsers(subparsers: Any) -> None:
    """Adds the two commands; loads nothing."""
    export = subparsers.add_parser(
        "export",
        help="a delta as a LoRA adapter of PEFT's",
        description="Writes a delta as a LoRA adapter: of each difference the nearest of a given rank.",
    )
    export.add_argument("delta", metavar="DELTA", help="a delta file, or a folder of them")
    export.add_argument("out", metavar="OUT", help="a new folder")
    export.add_argument("--to", choices=_FORMATS, default=_FORMATS[0], help="the format (peft-lora)")
    export.add_argument("--rank", type=int, required=True, metavar="R", help="the highest rank of a weight's difference")
    export.add_argument("--base", metavar="BASE", help=f"what the delta was made on; needed where it is exact: {_BASE}")
    export.add_argument("--config", metavar="FOLDER", help=_CONFIG)
    export.add_argument("--allow-lost", action="store_true", help="leave out tensors that no LoRA can carry")
    export.add_argument("--overwrite", action="store_true", help="replace what is at OUT, when the new one is whole")
    export.set_defaults(run=_export)

    bring = subparsers.add_parser(
        "import",
        help="a LoRA adapter of PEFT's as a delta",
        description="Writes what a LoRA adapter adds to its base as a delta, to be applied, added and fused like any other.",
    )
    bring.add_argument("adapter", metavar="ADAPTER", help="a folder with adapter_config.json and adapter_model.safetensors")
    bring.add_argument("out", metavar="OUT", help="a new file, usually ….delta.safetensors")
    bring.add_argument("--base", required=True, metavar="BASE", help=f"what the adapter was trained on: {_BASE}")
    bring.add_argument("--values", choices=_VALUES, default="fp32", help="how differences are stored, but factors (fp32)")
    bring.add_argument("--group", type=int, default=0, metavar="N", help="values that share a scale in int8, int4, sign (all)")
    bring.add_argument("--overwrite", action="store_true", help="replace what is at OUT, when the new one is whole")
    bring.set_defaults(run=_import)


def _export(options: argparse.Namespace) -> int:
    from paring.delta.errors import DeltaError
    from paring.delta.files import load_delta
    from paring.neighbours.layers import find_config, skeleton
    from paring.neighbours.peft_export import export_peft

    vector = load_delta(options.delta, base=options.base)
    if options.base is None and any(vector.changes[n].kind == "exact" for n in vector.names):
        raise DeltaError(f"{options.delta} holds exact differences, numbers only beside the base; give it with --base BASE")
    config = find_config(vector, Path(options.delta), options.config, options.base)
    made = export_peft(
        vector,
        options.out,
        options.rank,
        model=skeleton(config),
        base_name=options.base or "",
        allow_lost=options.allow_lost,
        overwrite=options.overwrite,
    )
    longest = max(map(len, made.lost))
    print(f"{'tensor':<{longest}}  energy lost")
    for name, lost in made.lost.items():
        why = f"  left out: {made.left_out[name]}" if name in made.left_out else ""
        print(f"{name:<{longest}}  {100 * lost:10.4g} %{why}")
    print(f"{'total':<{longest}}  {100 * made.total_lost:10.4g} %")
    for name in made.left_out.keys() - made.lost.keys():
        print(f"paring: left out: {name}: {made.left_out[name]}")
    print(f"Wrote {options.out}: {made.num_bytes:,} bytes, rank {made.rank}; see {Path(options.out) / 'README.md'}")
    return 0


def _import(options: argparse.Namespace) -> int:
    from paring.delta.files import save_delta
    from paring.neighbours.peft_import import import_peft

    vector = import_peft(options.adapter, options.base)
    size = save_delta(vector, options.out, values=options.values, group=options.group, overwrite=options.overwrite)
    print(f"Wrote {options.out}: {size:,} bytes; see `paring inspect {options.out}`")
    return 0
