"""What `paring probe spectra` holds in memory on a checkpoint of 7 B parameters (14 GB on disk, never in memory).

    python benchmarks/probe_memory.py                  about 15 minutes on 2 cores, most of it writing the checkpoint
    python benchmarks/probe_memory.py --size 250M --blocks 2
    python benchmarks/probe_memory.py --report         what benchmarks/results holds; runs nothing

The checkpoint has the tensor shapes of a Llama of that size in bf16, with normal weights. A matrix is looked at for itself, so
that those of a few blocks tell the memory of all. The goal: 2 GB at most, Python and PyTorch included.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from delta_cost import record
from delta_cost.checkpoints import SIZES, Size, make
from delta_cost.processes import measured

RESULTS = Path(__file__).parent / "results"
LARGE = {"7B": Size("7 B", 32000, 4096, 11008, 32)}
MOST_BYTES = 2_000_000_000
_PROBE = """
import sys, time
print(time.monotonic(), flush=True)
import contextlib, io
from paring.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    code = main(sys.argv[1:])
print(time.monotonic(), flush=True)
sys.exit(code)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES, *LARGE], default="7B", help="of the checkpoint (7B)")
    parser.add_argument("--blocks", type=int, default=1, help="whose matrices are looked at, from the input (1)")
    parser.add_argument("--work", type=Path, help="folder of the checkpoint, kept; default: a temporary one")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--report", action="store_true", help="print what the results hold; run nothing")
    args = parser.parse_args()
    path = args.out / f"probe_memory_{args.size}.json"
    if not args.report:
        size = (SIZES | LARGE)[args.size]
        with tempfile.TemporaryDirectory(prefix="paring-bench-probe-") as temporary:
            record.finish(path, run(args.size, size, args.blocks, args.work or Path(temporary)))
    print(line(record.read(path)) if path.exists() else f"no results in {args.out}")
    return 0


def run(name: str, size: Size, blocks: int, work: Path) -> record.Record:
    """One probe in a process of its own."""
    settings = {"size": name, "num_parameters": size.num_parameters, "largest_bytes": size.largest_bytes, "blocks": blocks}
    rec = record.new(f"probe memory {name}", settings)
    print(f"{name}: writes {2 * size.num_parameters:,} bytes to {work}", flush=True)
    (checkpoint,) = make(work, size, num_tuned=0)
    out = work / "probe"
    targets = [f"model.layers.{i}.**" for i in range(blocks)]
    command = [sys.executable, "-c", _PROBE, "probe", "spectra", str(checkpoint), "--out", str(out), "--targets", *targets]
    took = measured([*command, "--no-figure"], {})
    found = json.loads((out / "probe.json").read_text())
    rec["anonymous_bytes"], rec["work_s"] = took.anonymous_bytes, took.work_s
    rec["num_matrices"] = found["verdict"]["numbers"]["num_matrices"]
    rec["checkpoint_bytes"] = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    rec["verdict"] = {"goal": f"at most {MOST_BYTES:,} bytes", "met": took.anonymous_bytes <= MOST_BYTES}
    return rec


def line(rec: record.Record) -> str:
    met = "met" if rec["verdict"]["met"] else "not met"
    return (
        f"{rec['num_matrices']} matrices of a checkpoint of {rec['checkpoint_bytes'] / 1e9:.1f} GB: "
        f"{rec['anonymous_bytes'] / 1e9:.2f} GB of memory at most ({rec['verdict']['goal']}: {met}), {rec['work_s']:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
