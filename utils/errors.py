"""A script's end: a sentence and an exit status, never a traceback for what a user can mend.

Exit statuses of all scripts: 0 done; 2 refused before work began; 1 failed during it, or some files
left out; 130 and 143 ended by Ctrl-C and by SIGTERM.
"""

import difflib
import errno
import multiprocessing
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress

from tqdm import tqdm

from utils.signals import ignore_signals, raise_signals

ERROR_LENGTH = 200  # characters quoted from another library's error
# What torch says of a lack of memory, on a CPU and on a GPU; a bad access is none.
LACK_OF_MEMORY = re.compile(
    r"(out of|not enough|allocate) memory|bad_alloc|ALLOC_FAILED|start new thread|"
    r"could not create a (primitive|memory)",  # as oneDNN says it
    re.IGNORECASE,
)


SOME_LEFT_OUT = 1  # exit status of a script that did its work, but not for all files


class UserError(Exception):
    """What the user can mend before work begins; its text says what is wrong and what to do."""

    status = 2  # of the script


class WorkError(UserError):
    """What ends work that had begun: NaN, a lack of memory or disk, a loading process that died."""

    status = 1


def printable(text: str) -> str:
    """Escape what a terminal would act on or cannot show, such as line feeds in file names."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def tell(text: str) -> None:
    """Print a line on standard output, above any progress bar, escaped as by `printable`."""
    tqdm.write(printable(text), file=sys.stdout)


def warn(text: str) -> None:
    """Print a line on standard error, likewise."""
    tqdm.write(printable(text), file=sys.stderr)


def brief(error: Exception) -> str:
    """The start of another library's error, in one line."""
    return " ".join(str(error).split())[:ERROR_LENGTH]


def similar(name: str, names: Sequence[str]) -> str:
    """End an error about an unknown name: "; did you mean RN101, RN50?" or nothing."""
    close = difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or on a GPU."""
    told = isinstance(error, RuntimeError) and LACK_OF_MEMORY.search(str(error))
    refused = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or bool(told) or refused


def exit_with(main: Callable[..., int | None], *args: object) -> None:
    """Run a script's `main` and exit with its status; errors and signals become a sentence.

    What the terminal cannot show is escaped. No child process outlives the script.

    Args:
        main: returns an exit status, or None for 0.
        args: passed on to `main`.

    Raises:
        SystemExit: at success; after a failure or a signal the process ends at once, since a thread
            may still compute what nobody asks for any more.
    """
    raise_signals()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # else a test has replaced it
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main(*args) or 0
        sys.stdout.flush()
    except BaseException as error:
        ignore_signals()
        end_children()
        status = _tell(error)
    ignore_signals()  # nothing is left to interrupt or to save
    end_children()
    if status:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    sys.exit(0)


def _tell(error: BaseException) -> int:
    """Say what ended a script, on standard error; return its exit status.

    Raises:
        SystemExit: the error itself, if it is one.
    """
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, KeyboardInterrupt):
        remedy = getattr(error, "remedy", "")
        with suppress(OSError):
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
    with suppress(OSError):
        print(printable(sentence), file=sys.stderr, flush=True)
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
