"""What the tests of both training scripts look at."""

import csv
import os
import signal
from contextlib import contextmanager

import torch

from training.run import Run
from utils.checkpoint import load_weights
from utils.signals import ANSWERED, SAVING, raise_signals


def final(tmp_path, name="run", kind="model"):
    """The weights that a run ended with."""
    return load_weights(tmp_path / name / f"snapshots_{kind}" / "final.pth")


def same(one, other):
    """Whether two state dicts are equal to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def renamed(arguments, name):
    """The arguments of the same run under another name."""
    return [name if word == "run" else word for word in arguments]


def rows(folder):
    """The lines of a run's log, without the seconds, which are never the same."""
    with (folder / "log.csv").open() as stream:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]


@contextmanager
def signals_answered():
    """Answer signals as a script does."""
    before = [signal.getsignal(number) for number in ANSWERED + SAVING]
    raise_signals()
    try:
        yield
    finally:
        for number, handler in zip(ANSWERED + SAVING, before, strict=True):
            signal.signal(number, handler)


def send_signal(monkeypatch, method, stage, call, number=signal.SIGINT):
    """Let a run get a signal in the midst of an iteration.

    Args:
        monkeypatch: to be undone before the run goes on.
        method: of `Run`, at whose begin the signal comes: "step" or "record".
        stage: in which.
        call: at which call of the method in that stage, from 1.
        number: the signal.
    """
    real, calls = getattr(Run, method), []

    def interrupting(run, *positional, **named):
        calls.append(run.schedule.stage)
        if calls[-1] == stage and calls.count(stage) == call:
            os.kill(os.getpid(), number)
        return real(run, *positional, **named)

    monkeypatch.setattr(Run, method, interrupting)
