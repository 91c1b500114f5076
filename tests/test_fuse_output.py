"""A checkpoint under way: its journal, and that one process alone writes it."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from paring.delta.checkpoint.tensorinfo import TensorInfo
from paring.delta.checkpoint.write import LaidOut, lay_out
from paring.fuse import alone, output
from paring.fuse.alone import BusyError
from paring.fuse.output import JOURNAL, hidden, writing

NAMES = [f"layer.{i}" for i in range(6)]
ONES = torch.ones(8)


def files() -> list[LaidOut]:
    return lay_out([(name, TensorInfo(torch.float32, torch.Size((8,)))) for name in NAMES], 10**9)[0]


def write(out: Path, names: list[str], *, overwrite: bool = False, stop: bool = False) -> int:
    """Writes these; how many were there."""
    with writing(out, files(), "key", other_bytes=0, overwrite=overwrite) as under_way:
        kept = len(under_way.kept)
        for name in names:
            under_way.write(name, ONES)
        if stop:
            raise KeyboardInterrupt
    return kept


def test_half_a_line_of_the_journal_spoils_no_later_run(tmp_path: Path) -> None:
    out, journal = tmp_path / "out", hidden(tmp_path / "out") / JOURNAL
    with pytest.raises(KeyboardInterrupt):
        write(out, NAMES[:2], stop=True)
    journal.write_bytes(journal.read_bytes()[:-9])
    with pytest.raises(KeyboardInterrupt):
        write(out, NAMES[1:4], stop=True)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [line.get("tensor") for line in lines] == [None, *NAMES[:4]]
    assert write(out, NAMES[4:]) == 4


def test_a_short_write_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = output.os.write
    monkeypatch.setattr(output.os, "write", lambda fd, data: whole(fd, data[:7]))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", NAMES[:3], stop=True)
    monkeypatch.undo()
    assert write(tmp_path / "out", NAMES[3:]) == 3


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: memoryview, start: int) -> int:
        raise OSError(28, "No space left on device")

    with writing(tmp_path / "out", files(), "key", other_bytes=0, overwrite=False) as under_way:
        monkeypatch.setattr(output.os, "pwrite", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*/\.out\.fuse/model\.safetensors'") as raised:
            under_way.write(NAMES[0], ONES)
        assert raised.value.errno == 28


@pytest.mark.parametrize("overwrite", [False, True])
def test_nobody_else_begins_while_a_run_gives_its_folder_the_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    out, refused = tmp_path / "out", []
    if overwrite:
        write(out, NAMES)
    put, remove = output.put_in_place, shutil.rmtree

    def begin() -> None:
        monkeypatch.setattr(output, "put_in_place", put)
        with monkeypatch.context() as plain:
            plain.setattr(output.shutil, "rmtree", remove)
            with pytest.raises(BusyError, match="another process is writing"):
                write(out, NAMES, overwrite=True)
        refused.append(sorted(p.name for p in tmp_path.iterdir()))

    def in_between(folder: Path, path: Path, replace: bool) -> None:
        begin()  # the journal is gone, the name not given yet
        put(folder, path, replace)

    def before(path: Path, **settings: bool) -> None:
        if hidden(out).exists():
            begin()  # an old folder that was swapped, and is being removed
        remove(path, **settings)

    monkeypatch.setattr(output, "put_in_place", in_between)
    monkeypatch.setattr(output.shutil, "rmtree", before)
    write(out, NAMES, overwrite=overwrite)
    assert len(refused) == (2 if overwrite else 1)
    assert sorted(p.name for p in out.iterdir()) == ["model.safetensors"] and not hidden(out).exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_ends_as_another_begins_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    out, lock = tmp_path / "out", alone.lock

    def late(fd: int, path: Path) -> None:
        monkeypatch.setattr(alone, "lock", lock)
        hidden(out).rename(out)  # the other run gives it its name just before this one has locked it
        (out / "model.safetensors").touch()
        lock(fd, path)

    monkeypatch.setattr(alone, "lock", late)
    with nullcontext() if overwrite else pytest.raises(FileExistsError, match="out is there already"):
        write(out, NAMES, overwrite=overwrite)
    assert [p.name for p in out.iterdir()] == ["model.safetensors"] and not hidden(out).exists()
    assert ((out / "model.safetensors").stat().st_size > 0) == overwrite


def test_without_locks_of_folders_the_journals_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl
    import os
    import stat

    flock = fcntl.flock

    def of_files(fd: int, how: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(9, "Bad file descriptor")  # as NFS has it
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", of_files)
    with writing(tmp_path / "out", files(), "key", other_bytes=0, overwrite=False) as under_way:
        with pytest.raises(BusyError):
            write(tmp_path / "out", NAMES)
        for name in NAMES:
            under_way.write(name, ONES)
    assert (tmp_path / "out").is_dir()
