import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import pytest

from tests.commands import ROOT
from utils.errors import UserError, WorkError
from utils.script import exit_with
from utils.signals import ANSWERED, Interrupted


@pytest.fixture(autouse=True)
def harmless(monkeypatch):
    """Let signals stop the tests again, which `exit_with` ends, and no test end this process."""
    handlers = {number: signal.getsignal(number) for number in (*ANSWERED, signal.SIGCHLD)}
    monkeypatch.setattr(os, "_exit", sys.exit)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def fresh():
    """Forks of one process, which has imported what is tested, and has no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@pytest.fixture
def end(fresh, tmp_path):
    """Runs `main` by `exit_with` in a process; returns its status and what standard error got.

    Args:
        main: what it does.
        output, errors: open its standard output and standard error, as file descriptors.
    """
    said = tmp_path / "said"
    to_file = partial(os.open, said, os.O_CREAT | os.O_WRONLY)

    def end(main, output, errors=to_file):
        process = fresh.Process(target=end_here, args=(main, output, errors))
        process.start()
        process.join(60)
        process.kill()
        return process.exitcode, said.read_text().splitlines() if said.exists() else []

    return end


def end_here(main, output, errors):
    sys.stdout, sys.stderr = (os.fdopen(stream(), "w") for stream in (output, errors))
    exit_with(main)


def full():
    return os.open("/dev/full", os.O_WRONLY)


def closed():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(
    ("outcome", "status", "said"),
    [
        (None, 0, ""),
        (1, 1, ""),
        (UserError("no photographs here"), 2, "error: no photographs here\n"),
        (WorkError("the loss is nan"), 1, "error: the loss is nan\n"),
        (MemoryError(), 1, "error: out of memory (MemoryError)\n"),
        (
            RuntimeError("CUDA out of memory.\nTried"),
            1,
            "error: out of memory (CUDA out of memory.)\n",
        ),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (Interrupted(signal.SIGTERM, "--resume goes on"), 143, "\ninterrupted; --resume goes on\n"),
    ],
)
def test_statuses(outcome, status, said, capsys):
    def main():
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    with pytest.raises(SystemExit) as end:
        exit_with(main)
    assert end.value.code == status
    assert capsys.readouterr().err == said


def test_a_sentence_is_written_in_one_piece(monkeypatch):
    def main():
        raise UserError("no photographs here")

    pieces = []
    unbuffered = SimpleNamespace(write=pieces.append, flush=lambda: None)
    monkeypatch.setattr(sys, "stderr", unbuffered)
    with pytest.raises(SystemExit):
        exit_with(main)
    assert [piece for piece in pieces if piece] == ["error: no photographs here\n"]


@pytest.mark.parametrize("bug", [ValueError("x"), RuntimeError("shapes do not match")])
def test_bugs_are_not_hidden(bug, capsys):
    def main():
        raise bug

    with pytest.raises(SystemExit) as end:
        exit_with(main)
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert "raise bug" in told and told.endswith(f"{type(bug).__name__}: {bug}\n")


def test_no_child_outlives_a_script():
    children = []

    def main():
        children.append(multiprocessing.get_context("fork").Process(target=ignore_and_sleep))
        children[0].start()
        raise WorkError("failed")

    with pytest.raises(SystemExit):
        exit_with(main)
    assert not children[0].is_alive()


def ignore_and_sleep():
    for number in ANSWERED:
        signal.signal(number, signal.SIG_IGN)
    time.sleep(60)


def names():
    print("caf\udce9 " * 100_000)


def test_names_that_no_terminal_can_show_are_escaped(end, tmp_path):
    output = tmp_path / "output"
    output.touch()
    assert end(names, partial(os.open, output, os.O_WRONLY)) == (0, [])
    assert output.read_text() == "caf\\udce9 " * 100_000 + "\n"


@pytest.mark.parametrize("output", [full, closed])
def test_a_failing_standard_output_is_a_sentence(output, end):
    status, said = end(names, output)
    assert status == 1 and len(said) == 1 and said[0].startswith("error: ")


def print_and_raise(error):
    print("what is still to be written")
    raise error


@pytest.mark.parametrize(("error", "status"), [(Interrupted(15), 143), (WorkError("x"), 1)])
def test_a_failing_standard_output_keeps_the_status(error, status, end):
    assert end(partial(print_and_raise, error), full, full) == (status, [])


def test_a_failure_in_the_midst_of_a_long_call_ends_at_once():
    script = """
import os, signal, torch
from utils.script import exit_with
from utils.signals import call_interruptibly
def die(*_):
    raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")
def main():
    signal.signal(signal.SIGALRM, die)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    x = torch.rand(3000, 3000)
    call_interruptibly(lambda: [torch.linalg.svd(x) for _ in range(20)])
exit_with(main)
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "DataLoader worker" in done.stderr
    assert time.monotonic() - started < 60


def test_a_second_signal_does_not_disturb_the_end(capsys, monkeypatch):
    def end_children():
        os.kill(os.getpid(), signal.SIGTERM)

    def main():
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("utils.script.end_children", end_children)
    with pytest.raises(SystemExit) as end:
        exit_with(main)
    assert end.value.code == 130 and capsys.readouterr().err == "\ninterrupted\n"
