"""Ctrl-C and SIGTERM, answered at once but never in the midst of what must be done whole.

SIGUSR1 ends nothing: a training run saves its state after the present iteration, and any other
script goes on as if nothing had come.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

ANSWERED = (signal.SIGINT, signal.SIGTERM)
SAVING = tuple(filter(None, [getattr(signal, "SIGUSR1", None)]))  # Windows has none


class Interrupted(KeyboardInterrupt):
    """A signal asked the script to end.

    Attributes:
        signal: its number.
        remedy: what the user can do, if anything was kept.
    """

    def __init__(self, number: int, remedy: str = "") -> None:
        super().__init__(number)
        self.signal = number
        self.remedy = remedy


class _Hold:
    """Whether signals wait, and the first that came meanwhile."""

    depth = 0
    waiting: int | None = None
    save_asked = False


def raise_signals() -> None:
    """Raise `Interrupted` in the main thread at Ctrl-C and SIGTERM, and note SIGUSR1, from now."""
    reset_signals()
    for number in ANSWERED:
        signal.signal(number, _answer)
    for number in SAVING:
        signal.signal(number, _ask_to_save)


def ignore_signals() -> None:
    """Ignore Ctrl-C, SIGTERM and SIGUSR1 from now on."""
    for number in ANSWERED + SAVING:
        signal.signal(number, signal.SIG_IGN)


def _ask_to_save(*_: object) -> None:
    _Hold.save_asked = True


def saving_asked() -> bool:
    """Whether SIGUSR1 came since this was last asked."""
    asked, _Hold.save_asked = _Hold.save_asked, False
    return asked


def waiting_signal() -> int | None:
    """The first signal that came while signals are held, if any."""
    return _Hold.waiting


def _answer(number: int, _: object) -> None:
    if _Hold.depth:
        _Hold.waiting = _Hold.waiting or number
    else:
        raise Interrupted(number)


def reset_signals() -> None:
    """Answer signals again, whatever was held."""
    _Hold.depth, _Hold.waiting = 0, None


def hold_signals() -> None:
    """Let signals wait until as many `release_signals`."""
    _Hold.depth += 1


def release_signals() -> None:
    """Undo one `hold_signals`; raise `Interrupted` if a signal came meanwhile."""
    _Hold.depth -= 1
    number, _Hold.waiting = _Hold.waiting, None if not _Hold.depth else _Hold.waiting
    if not _Hold.depth and number:
        raise Interrupted(number)


def call_interruptibly(function: Callable[[], None], seconds: float | None = None) -> None:
    """Call a function that may stay in compiled code for long, and stay open for signals meanwhile.

    Python answers a signal between two of its own steps, and one backward pass can take a minute.
    So the function runs in a thread of its own; an `Interrupted` leaves it behind unfinished.

    Raises:
        BaseException: whatever the function raised.
        TimeoutError: it took longer than `seconds`, and is left behind likewise.
    """
    raised: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)
        done.set()

    threading.Thread(target=run, daemon=True, name="interruptible").start()
    if not done.wait(seconds):
        raise TimeoutError
    if raised:
        raise raised[0]
