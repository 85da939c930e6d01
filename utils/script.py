"""A script's end: a sentence and an exit status, never a traceback for what a user can mend.

Exit statuses of all scripts: 0 done; 2 refused before work began; 1 failed during it, or some files
left out; 130 and 143 ended by Ctrl-C and by SIGTERM.
"""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from utils import distributed
from utils.errors import UserError, WorkError, lacks_memory, line
from utils.signals import ignore_signals, raise_signals


def exit_with(main: Callable[..., int | None], *args: object) -> None:
    """Run a script's `main` and exit with its status; errors and signals become a sentence.

    What the terminal cannot show is escaped. No child process outlives the script.

    Args:
        main: returns an exit status, or None for 0.
        args: passed on to `main`.

    Raises:
        SystemExit: at success of a process that is alone. All others end at once: after a failure
            or a signal a thread may still compute what nobody asks for any more, and the threads
            that talk to other processes can abort one while Python ends.
    """
    raise_signals()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # else a test has replaced it
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main(*args) or 0
        distributed.leave()
        sys.stdout.flush()
    except BaseException as error:
        ignore_signals()
        end_children()
        status = _tell(error)
    ignore_signals()  # nothing is left to interrupt or to save
    end_children()
    if status or distributed.has_joined():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    sys.exit(0)


def _tell(error: BaseException) -> int:
    """Say what ended a script, on standard error; return its exit status.

    Of several processes that share a run, the first that fails speaks.

    Raises:
        SystemExit: the error itself, if it is one.
    """
    if isinstance(error, SystemExit):
        distributed.await_last_words()
        raise error
    if isinstance(error, KeyboardInterrupt):
        remedy = getattr(error, "remedy", "")
        with suppress(OSError):
            if distributed.is_main():
                print(file=sys.stderr)  # after the terminal's ^C
        sentence, status = "interrupted" + (f"; {remedy}" if remedy else ""), 128
        status += getattr(error, "signal", signal.SIGINT)
    elif isinstance(error, UserError):
        sentence, status = f"error: {error}", error.status
    elif lacks_memory(error):
        sentence, status = f"error: out of memory ({_first_line(error)})", WorkError.status
    elif isinstance(error, OSError):  # a disk or a standard output that is full, closed or gone
        sentence, status = f"error: {error}", WorkError.status
    else:  # a bug
        sentence, status = f"{type(error).__name__}: {error}", WorkError.status
        with suppress(OSError):
            traceback.print_tb(error.__traceback__)
    if distributed.is_first_to_fail():
        with suppress(OSError):
            print(line(sentence), end="", file=sys.stderr, flush=True)
    distributed.await_last_words()
    return status


def end_children() -> None:
    """Kill the loading processes that are left; torch would wait for them at the script's end."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else torch raises an error for each
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
