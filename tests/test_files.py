"""Temporary files of killed processes, and locks that last as long as their process."""

import errno
import multiprocessing
import os
import signal
import time

import pytest

from utils import files
from utils.errors import UserError, WorkError
from utils.files import atomic_path, lock_until_exit, sweep

FORK = multiprocessing.get_context("fork")
HERE = files._host()


@pytest.fixture
def gone():
    """The number of a process that has ended."""
    process = FORK.Process(target=int)
    process.start()
    process.join(240)
    return process.pid


def left_by_a_killed_process(path):
    """Begin to write a file in another process, which is killed; return what it leaves."""

    def write():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=write)
    process.start()
    process.join(240)
    (left,) = (file for file in path.parent.iterdir() if ".tmp" in file.name)
    return left


@pytest.mark.parametrize(
    "name", ["a.png", "no suffix", "many.dots.in.it.npy", "ü" * 100, "log.csv"]
)
def test_the_next_process_that_writes_removes_what_a_killed_one_left(tmp_path, name, monkeypatch):
    left = left_by_a_killed_process(tmp_path / name)
    assert files.TEMPORARY.fullmatch(left.name)
    monkeypatch.setattr(files, "_swept", set())
    with atomic_path(tmp_path / "other.txt") as temporary:
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]


def test_only_what_is_nobodys_goes(tmp_path, gone, monkeypatch):
    day = files.ABANDONED
    living = os.getpid()
    ages_and_fates = {
        f".a.{HERE}.{gone}.abcd1234.tmp.png": (0, "goes"),
        f".a.b.{HERE}.{gone}.abcd_234.tmp": (0, "goes"),
        f".a.{HERE}.{gone}99999999999.abcd1234.tmp": (0, "goes"),  # no such number
        f".a.{HERE}.{living}.abcd1234.tmp.png": (0, "stays"),
        f".b.{HERE}.{living}.abcd1234.tmp.png": (day + 60, "goes"),
        f".a.elsewhere.{gone}.abcd1234.tmp.png": (0, "stays"),
        f".b.elsewhere.{gone}.abcd1234.tmp.png": (day - 60, "stays"),
        f".c.elsewhere.{gone}.abcd1234.tmp.png": (day + 60, "goes"),
        # None of ours, however old:
        f"a.{HERE}.{gone}.abcd1234.tmp.png": (2 * day, "stays"),
        f".a.{HERE}.{gone}.abcd1234.tmp.png.bak": (2 * day, "stays"),
        f".a.{HERE}.{gone}.abcd123.tmp.png": (2 * day, "stays"),
        f".a.{HERE}.abcd1234.tmp.png": (2 * day, "stays"),
        ".a.abcd1234.tmp.png": (2 * day, "stays"),
        ".tmp": (2 * day, "stays"),
        "notes.tmp": (2 * day, "stays"),
    }
    for name, (age, _) in ages_and_fates.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / f".d.{HERE}.{gone}.abcd1234.tmp").mkdir()  # cannot be unlinked
    sweep(tmp_path)
    expected = {name for name, (_, fate) in ages_and_fates.items() if fate == "stays"}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == expected


def test_processes_of_another_container_count_as_another_machines(tmp_path, gone, monkeypatch):
    left = tmp_path / f".a.{HERE}.{gone}.abcd1234.tmp.png"
    left.touch()
    monkeypatch.setattr(files.os, "readlink", lambda _: "pid:[123]")
    sweep(tmp_path)
    assert left.exists()
    monkeypatch.undo()
    sweep(tmp_path)
    assert not left.exists()


def test_where_no_process_can_be_asked_after_age_alone_decides(tmp_path, gone, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    left = tmp_path / f".a.{HERE}.{gone}.abcd1234.tmp.png"
    left.touch()
    sweep(tmp_path)
    assert left.exists()


def test_a_file_without_room_is_the_disks_fault_and_without_rights_the_users(tmp_path, monkeypatch):
    for number, kind in ((errno.ENOSPC, WorkError), (errno.EACCES, UserError)):

        def refuse(*_, number=number, **__):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
        with pytest.raises(UserError, match="cannot write") as error, atomic_path(tmp_path / "a"):
            pass
        assert type(error.value) is kind


def holding(path, pipe):
    pipe.send(lock_until_exit(path))
    time.sleep(600)


def test_a_lock_lasts_until_its_process_is_killed(tmp_path):
    path = tmp_path / "lock"
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=holding, args=(path, theirs), daemon=True)
    process.start()
    assert ours.recv() is None
    for _ in range(2):  # asking must not release it
        assert lock_until_exit(path) == f"process {process.pid} on {HERE}"
    process.kill()
    process.join(240)
    assert lock_until_exit(path) is None
    assert lock_until_exit(path) is None  # our own
    again = FORK.Process(target=holding, args=(path, theirs), daemon=True)
    again.start()
    assert ours.recv() is None  # a fork, as loading processes are, whose end must not release it
    again.kill()
    again.join(240)
    other = multiprocessing.get_context("spawn").Process(
        target=holding, args=(path, theirs), daemon=True
    )
    other.start()
    assert ours.recv() == f"process {os.getpid()} on {HERE}"  # and its end releases nothing
    other.kill()
    other.join(240)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EACCES, errno.EIO, None])
def test_where_there_are_no_locks_it_goes_on_with_a_note(tmp_path, monkeypatch, capsys, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    if number is None:
        monkeypatch.setattr(files, "fcntl", None)
    else:
        monkeypatch.setattr(files.fcntl, "lockf", refuse)
    assert lock_until_exit(tmp_path / "lock") is None
    assert "without a lock" in capsys.readouterr().err


def test_where_the_file_cannot_be_opened_it_goes_on_with_a_note(tmp_path, capsys):
    assert lock_until_exit(tmp_path) is None  # a folder
    assert "without a lock" in capsys.readouterr().err
