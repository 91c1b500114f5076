"""``paring diff``, ``paring apply`` and a fingerprint on a synthetic checkpoint, as whole processes, each beside its raw floor.

A round starts a process that only imports what the commands do, then each command, and right after it measures the floor of
what it read and wrote. A command's time is from when it has imported the same until it has returned. Files are in the page
cache; the cache of fingerprints is empty before each command.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from delta_cost import record
from delta_cost.checkpoints import SIZES, make
from delta_cost.floor import floor_s
from delta_cost.processes import Measured, measured
from delta_cost.record import Record
from paring.delta.checkpoint.fingerprint import fingerprint
from paring.delta.checkpoint.read import open_checkpoint

COMMANDS = ("diff", "diff plain", "apply", "fingerprint")
TITLES = {"diff plain": "diff --compression none"}
_START = """
import sys, time
import paring.delta.diff, paring.delta.files, paring.delta.patch
from paring.cli.main import main
from paring.delta.checkpoint.fingerprint import fingerprint
from paring.delta.checkpoint.read import open_checkpoint
print(time.monotonic(), flush=True)
"""
_END = "\nprint(time.monotonic(), flush=True)"
_PARING = _START + "code = main()" + _END + "\nsys.exit(code)"
_FINGERPRINT = _START + "fingerprint(open_checkpoint(sys.argv[1]))" + _END


def run(name: str, rounds: int, work: Path, path: Path) -> Record:
    """Measures one size; its record is at ``path`` in the end."""
    size = SIZES[name]
    settings = {
        "size": name,
        "num_parameters": size.num_parameters,
        "largest_bytes": size.largest_bytes,
        "rounds": rounds,
    }
    rec = record.resume(path, record.new(f"commands {name}", settings) | {"rounds": []})
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{name}: {size.num_parameters:,} parameters, base and fine-tune", flush=True)
    base, tuned, *_ = make(folder, size)
    if not rec["rounds"]:
        one_round(base, tuned, folder, 0)  # fills the page cache
        rec["same_bits"] = same_bits(tuned, folder / "applied")
    while len(rec["rounds"]) < rounds:
        rec["rounds"].append(record.read_back(one_round(base, tuned, folder, len(rec["rounds"]))))
        record.save_partial(path, rec)
        last = rec["rounds"][-1]
        print(f"{name}: round {len(rec['rounds'])} of {rounds}: " + _line(last), flush=True)
    return rec


def one_round(base: Path, tuned: Path, folder: Path, number: int) -> Record:
    delta, applied, scratch = folder / "tuned.delta.safetensors", folder / "applied", folder / "floor"
    plain = folder / "plain.delta.safetensors"
    shutil.rmtree(applied, ignore_errors=True)
    found: Record = {"start": asdict(_python(_START + _END))}
    # apply reads what diff wrote; the others stand before, between or after them.
    order = ["diff", "apply"]
    order.insert(number % 3, "fingerprint")
    order.insert(number % 4, "diff plain")
    for command in order:
        arguments, inputs, outputs = {
            "diff": ([_PARING, "diff", base, tuned, delta], [base, tuned], [delta]),
            "diff plain": ([_PARING, "diff", base, tuned, plain, "--compression", "none"], [base, tuned], [plain]),
            "apply": ([_PARING, "apply", base, delta, applied], [base, delta], [applied]),
            "fingerprint": ([_FINGERPRINT, base], [base], []),
        }[command]
        for old in outputs if command != "apply" else ():
            old.unlink(missing_ok=True)
        os.sync()  # nobody else's bytes are on their way to the disk
        took = _python(*map(str, arguments))
        num_bytes = sum(p.stat().st_size for p in weights(outputs))
        os.sync()
        read_s, write_s = floor_s(weights(inputs), scratch, num_bytes)
        found[command] = asdict(took) | {"floor_read_s": read_s, "floor_write_s": write_s, "output_bytes": num_bytes}
        found[command]["input_bytes"] = sum(p.stat().st_size for p in weights(inputs))
        plain.unlink(missing_ok=True)
    return found


def weights(paths: Sequence[Path]) -> list[Path]:
    """The files of weights of checkpoints and deltas."""
    return [p for path in paths for p in (sorted(path.glob("*.safetensors")) if path.is_dir() else [path])]


def same_bits(first: Path, second: Path) -> bool:
    """Whether two checkpoints hold the same tensors, bit for bit."""
    with open_checkpoint(first) as a, open_checkpoint(second) as b:
        return a.names == b.names and fingerprint(a, cache=False) == fingerprint(b, cache=False)


def _python(code: str, *arguments: str) -> Measured:
    with tempfile.TemporaryDirectory() as cache:
        return measured([sys.executable, "-c", code, *arguments], {"PARING_CACHE": cache})


def _line(found: Record) -> str:
    return (
        ", ".join(f"{TITLES.get(c, c)} {found[c]['work_s']:.2f} s" for c in COMMANDS)
        + f" in a process of {found['start']['around_s']:.2f} s"
    )
