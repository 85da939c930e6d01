import multiprocessing
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from tests.commands import ROOT
from utils.errors import UserError, WorkError
from utils.script import exit_with
from utils.signals import ANSWERED, Interrupted

SCRIPT = """
import sys
from utils.script import exit_with
def main():
    print("caf\\udce9 " * 100_000)
exit_with(main)
"""


@pytest.fixture(autouse=True)
def harmless(monkeypatch):
    """Let signals stop the tests again, which `exit_with` ends, and no test end this process."""
    handlers = {number: signal.getsignal(number) for number in (*ANSWERED, signal.SIGCHLD)}
    monkeypatch.setattr(os, "_exit", sys.exit)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def run_script(**streams):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, stderr=subprocess.PIPE, text=True, **streams
    )


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


def test_names_that_no_terminal_can_show_are_escaped():
    done = run_script(stdout=subprocess.PIPE)
    assert done.returncode == 0 and done.stdout.startswith("caf\\udce9 ")


def test_a_full_standard_output_is_a_sentence():
    with open("/dev/full", "w") as full:
        done = run_script(stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("raised", "status"), [("Interrupted(15)", 143), ("WorkError('x')", 1)])
def test_a_failing_standard_output_keeps_the_status(raised, status):
    script = f"""
from utils.errors import WorkError
from utils.script import exit_with
from utils.signals import Interrupted
def main():
    print("what is still to be written")
    raise {raised}
exit_with(main)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=environment, stdout=full, stderr=full
        )
    assert done.returncode == status


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


def test_a_closed_standard_output_is_a_sentence():
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    done = run_script(stdout=reader.stdin)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


def test_a_second_signal_does_not_disturb_the_end(capsys, monkeypatch):
    def end_children():
        os.kill(os.getpid(), signal.SIGTERM)

    def main():
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("utils.script.end_children", end_children)
    with pytest.raises(SystemExit) as end:
        exit_with(main)
    assert end.value.code == 130 and capsys.readouterr().err == "\ninterrupted\n"
