"""``paring fuse``: many models and deltas into one. See ``paring.fuse``."""

import argparse
import errno
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from paring.cli import fuse_search
from paring.cli.deltas import byte_size

_EVERY_S = 10.0
_KEPT_BYTES, _BELOW_BYTES = 64 << 20, 4 << 20  # of freed pieces of tensors; tensors themselves are larger
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EIO)  # what may be otherwise another time


def add_parser(subparsers: Any) -> None:
    """Adds the command; loads nothing."""
    parser = subparsers.add_parser(
        "fuse",
        help="several models, deltas and adapters into one",
        description="Merges checkpoints, deltas and PEFT adapters as a configuration says: mergekit's YAML, read strictly. "
        "emr writes a bank of tasks, every other method one model. A run that is stopped goes on where it was when it is given "
        "again (a bank's begins anew). With rows of every model's task weights are searched, values fitted.",
        epilog=fuse_search.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG.yml", help="merge_method, models or slices, base_model, parameters, …")
    parser.add_argument("out", metavar="OUT", help="a new folder")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, what it takes, and do nothing")
    parser.add_argument(
        "--allow", choices=("extra",), action="append", default=[], help="leave out tensors that the base lacks"
    )
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="where it is computed: cpu, cuda, … (cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="tensors at a time (one a core)")
    parser.add_argument(
        "--shard-size", type=byte_size, default=5 * 10**9, metavar="SIZE", help="the most bytes of a file (5GB)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the checkpoint at OUT, when the new one is whole")
    fuse_search.add_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.threads is not None and options.threads < 1:
        raise ValueError(f"--threads {options.threads}: expected at least 1")
    settings = {
        "allow": options.allow,
        "device": options.device,
        "threads": options.threads,
        "shard_bytes": options.shard_size,
        "overwrite": options.overwrite,
    }
    searched = fuse_search.given(options)
    if options.dry_run:
        from paring.fuse.estimate import estimate

        about, told = fuse_search.planned(options.config, searched) if searched else (options.config, [])
        allow = {*options.allow, *(["extra"] if searched else [])}  # what the base lacks becomes the tasks' heads
        for line in estimate(about, options.out, **{**settings, "allow": allow}).lines():
            print(line)
        for line in told:
            print(line)
        return 0
    from paring.fuse.device import usable
    from paring.fuse.engine import fuse
    from paring.syscalls import keep_freed_memory

    keep_freed_memory(_KEPT_BYTES, _BELOW_BYTES)
    usable(options.device)  # before a search takes hours
    progress = Progress(sys.stderr)
    if searched:
        try:
            fuse_search.run(options.config, options.out, searched, **settings, report=progress)
        finally:
            progress.end()
        return 0
    try:
        fused = fuse(options.config, options.out, **settings, report=progress)
    except KeyboardInterrupt:
        progress.end()
        print(
            f"paring: stopped; the same command {'goes on from here' if _left(options.out) else 'begins anew'}", file=sys.stderr
        )
        raise
    except (OSError, MemoryError, RuntimeError) as error:
        progress.end()
        _say_what_is_left(error, options.out)
        raise
    finally:
        progress.end()
    kept = f"; {fused.kept} tensors were there from an earlier run" if fused.kept else ""
    print(f"Wrote {options.out}: {fused.num_bytes:,} bytes of weights in {progress.seconds:.1f} s{kept}")
    if fused.note:
        print(fused.note)
    return 0


def _left(out: str) -> bool:
    """Whether a run has left what it had finished."""
    from paring.fuse.output import hidden

    return hidden(Path(out).resolve()).is_dir()


def _say_what_is_left(error: Exception, out: str) -> None:
    """Of an error of the machine. OSError: in place of one of memory, for which nothing else is said in a line."""
    from paring.fuse.alone import BusyError
    from paring.fuse.output import machine_failed

    if isinstance(error, BusyError) or not machine_failed(error) or (isinstance(error, OSError) and error.errno not in _FULL):
        return
    if _left(out):
        print("paring: stopped; the same command goes on from here, when there is room", file=sys.stderr)
    if not isinstance(error, OSError):
        said = (str(error).strip() or "no more to be had").splitlines()[0]
        raise OSError(errno.ENOMEM, f"out of memory ({said}); --threads 1 takes least") from error


class Progress:
    """Says how many bytes are done: on a terminal in one line, elsewhere every ten seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._terminal = stream, stream.isatty()
        self._begun = self._said = time.monotonic()
        self._first: int | None = None
        self._open = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self._first = done if self._first is None else self._first
        if now - self._said < (0.1 if self._terminal else _EVERY_S):
            return
        self._said = now
        here = done - self._first
        left = f", {(now - self._begun) * (total - done) / here:.0f} s left" if here else ""
        line = f"fusing: {done / 1e9:.2f} of {total / 1e9:.2f} GB read and written{left}"
        print(f"\r{line:<78}" if self._terminal else line, end="" if self._terminal else "\n", file=self._stream, flush=True)
        self._open = self._terminal

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def end(self) -> None:
        if self._open:
            print(file=self._stream)
        self._open = False
