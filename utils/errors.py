"""A script's end: a sentence and an exit status, never a traceback for what a user can mend.

Exit statuses of all scripts: 0 done; 2 refused before work began; 1 failed during it, or some files
left out; 130 and 143 ended by Ctrl-C and by SIGTERM.
"""

import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable

from utils.signals import raise_signals

# What torch says of a lack of memory, on a CPU and on a GPU; a bad access is none.
LACK_OF_MEMORY = re.compile(r"(out of|not enough|allocate) memory", re.IGNORECASE)


class UserError(Exception):
    """What the user can mend before work begins; its text says what is wrong and what to do."""

    status = 2  # of the script


class WorkError(UserError):
    """What ends work that had begun: NaN, a lack of memory or disk, a loading process that died."""

    status = 1


def printable(text: str) -> str:
    """Escape what a terminal would act on or cannot show, such as line feeds in file names."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or on a GPU."""
    told = isinstance(error, RuntimeError) and LACK_OF_MEMORY.search(str(error))
    return isinstance(error, MemoryError) or bool(told)


def exit_with(main: Callable[..., int | None], *args: object) -> None:
    """Run a script's `main` and exit with its status; errors and signals become a sentence.

    What the terminal cannot show is escaped. No child process outlives the script.

    Args:
        main: returns an exit status, or None for 0.
        args: passed on to `main`.

    Raises:
        SystemExit: always, but for a signal, after which the process ends at once.
    """
    raise_signals()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # else a test has replaced it
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main(*args) or 0
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = error.status
    except KeyboardInterrupt as error:
        remedy = getattr(error, "remedy", "")
        print("\ninterrupted" + (f"; {remedy}" if remedy else ""), file=sys.stderr)
        status = 128 + getattr(error, "signal", signal.SIGINT)
    except OSError as error:  # a disk or a standard output that is full, closed or gone
        print(f"error: {error}", file=sys.stderr)
        _forget_output()
        status = WorkError.status
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        print(f"error: out of memory ({_first_line(error)})", file=sys.stderr)
        status = WorkError.status
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # nothing is left to interrupt
            signal.signal(number, signal.SIG_IGN)
        end_children()
    if status > 128:
        _end_now(status)
    sys.exit(status)


def end_children() -> None:
    """Kill the loading processes that are left; torch would wait for them at the script's end."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else torch raises an error for each
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


def _end_now(status: int) -> None:
    """End without waiting for threads that still compute what nobody asks for any more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _forget_output() -> None:
    """Drop what standard output could not take, which Python would try once more at its end."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
