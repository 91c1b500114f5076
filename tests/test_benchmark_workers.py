"""Workers of the benchmarks: none goes on when what began it is gone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
_HEAD = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(BENCHMARKS)!r})

def work(group):
    Path("worker").write_text(str(os.getpid()))
    os.replace("worker", "began")
    time.sleep(600)
    return []
"""
_GROUPS = """
if __name__ == "__main__":
    from quality.groups import measured
    measured([["a cell"]], work, None, 1, None, print)
"""
_POOL = """
if __name__ == "__main__":
    from quality.workers import pool
    with pool(1) as processes:
        processes.submit(work, ["a cell"]).result()
"""


@pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
@pytest.mark.parametrize("script", [_GROUPS, _POOL], ids=["groups", "pool"])
def test_a_worker_ends_with_a_killed_parent(script: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(_HEAD + script)
    began = tmp_path / "began"
    parent = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path)
    try:
        assert _within(60, began.exists)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    worker = int(began.read_text())
    try:
        assert _within(30, lambda: not _runs(worker))
    finally:
        if _runs(worker):
            os.kill(worker, signal.SIGKILL)


def _within(seconds: float, so: Callable[[], bool]) -> bool:
    """Whether it comes to be so."""
    end = time.monotonic() + seconds
    while not so():
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)
    return True


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:  # a zombie, which whatever adopted it has not waited for, no longer works
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not Path("/proc").exists()
