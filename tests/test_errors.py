import signal
import subprocess
import sys

import pytest

from tests.commands import ROOT
from utils.errors import UserError, exit_with

SCRIPT = """
import sys
from utils.errors import exit_with
def main():
    print("caf\\udce9 " * 100_000)
exit_with(main)
"""


@pytest.fixture(autouse=True)
def interruptible():
    """Let Ctrl-C stop the tests again, which `exit_with` has ended."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


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
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
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


def test_bugs_are_not_hidden():
    def main():
        raise ValueError

    with pytest.raises(ValueError):
        exit_with(main)


def test_names_that_no_terminal_can_show_are_escaped():
    done = run_script(stdout=subprocess.PIPE)
    assert done.returncode == 0 and done.stdout.startswith("caf\\udce9 ")


def test_a_full_standard_output_is_a_sentence():
    with open("/dev/full", "w") as full:
        done = run_script(stdout=full)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


def test_a_closed_standard_output_is_a_sentence():
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    done = run_script(stdout=reader.stdin)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
