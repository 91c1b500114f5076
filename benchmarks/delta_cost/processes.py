"""A command as a whole process: wall time, CPU time, and the most anonymous memory it held.

Its first and last lines are ``time.monotonic()``, when it has imported what it needs and when its work is done. That clock is
the same in all processes (on Linux). What is outside, the start and end of a Python process with PyTorch, takes seconds, and on
a busy machine varies by more than short commands take: so it is not subtracted, but left out.

RssAnon (memory that no file stands behind: what a process allocated) is read from /proc/PID/status every 3 ms, so that a peak
shorter than that can be missed; files read through the page cache are not in it.
"""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_EVERY_S = 0.003


@dataclass(frozen=True)
class Measured:
    """What one process took.

    Attributes:
        around_s: before and after the work.
        work_s: between the two lines.
        cpu_s: of all its threads, start and work.
        anonymous_bytes: the most that was seen.
    """

    around_s: float
    work_s: float
    cpu_s: float
    anonymous_bytes: int


def measured(command: Sequence[str], environment: Mapping[str, str]) -> Measured:
    """Runs ``command`` to its end.

    Raises:
        RuntimeError: it failed; with what it wrote.
    """
    began_s = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **environment})
    most = 0
    while True:
        most = max(most, anonymous_bytes(process.pid))
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(_EVERY_S)
    ended_s = time.monotonic()
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.stdout
    text = process.stdout.read().decode(errors="replace")
    process.stdout.close()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {text[-2000:]}")
    lines = text.split()
    work_s = float(lines[-1]) - float(lines[0])
    return Measured(ended_s - began_s - work_s, work_s, usage.ru_utime + usage.ru_stime, most)


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)
