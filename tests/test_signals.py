import os
import signal
import threading
import time

import pytest

from tests.runs import signals_answered
from utils.signals import (
    Interrupted,
    call_interruptibly,
    hold_signals,
    release_signals,
    saving_asked,
)


@pytest.fixture(autouse=True)
def answered():
    with signals_answered():
        yield


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_raised_at_once(number):
    with pytest.raises(Interrupted) as error:
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert error.value.signal == number


def test_a_held_signal_waits_for_the_outermost_release():
    done = []
    with pytest.raises(Interrupted) as error:
        hold_signals()
        hold_signals()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # the first one counts
        done.append("inner")
        release_signals()
        done.append("outer")
        release_signals()
    assert done == ["inner", "outer"]
    assert error.value.signal == signal.SIGTERM
    hold_signals()  # nothing is left of it
    release_signals()


def test_a_long_call_is_left_behind():
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    started = time.monotonic()
    with pytest.raises(Interrupted):
        call_interruptibly(lambda: time.sleep(20))
    assert time.monotonic() - started < 10


def test_a_call_may_take_only_so_long():
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        call_interruptibly(lambda: time.sleep(20), 0.1)
    assert time.monotonic() - started < 10
    call_interruptibly(lambda: None, 10)


def test_a_call_that_fails_fails_here():
    def fail():
        raise ValueError("in the other thread")

    with pytest.raises(ValueError, match="in the other thread"):
        call_interruptibly(fail)


def test_sigusr1_ends_nothing_and_is_told_once():
    assert not saving_asked()
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(0)
    assert saving_asked()
    assert not saving_asked()
