"""A user's mistake is a sentence and an exit status, never a traceback."""

import os
import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """What the user can mend before work begins; its text says what is wrong and what to do."""

    status = 2  # of the script


class WorkError(UserError):
    """What ends work that had begun: NaN, a lack of memory or disk, a loading process that died."""

    status = 1


def printable(text: str) -> str:
    """Escape what a terminal would act on or cannot show, such as line feeds in file names."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def exit_with(main: Callable[..., int | None], *args: object) -> None:
    """Run a script's `main` and exit: its status, 2 for a `UserError` or `OSError`, 130 for Ctrl-C.

    What the terminal cannot show is escaped. A file, a disk or a standard output that fails (as of
    `script | head`) is a sentence, too.

    Args:
        main: returns an exit status, or None for 0.
        args: passed on to `main`.

    Raises:
        SystemExit: always.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # else a test has replaced it
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main(*args)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = error.status
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        status = 130
    except OSError as error:  # a disk or a standard output that is full, closed or gone
        print(f"error: {error}", file=sys.stderr)
        _forget_output()
        status = 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt
    sys.exit(status or 0)


def _forget_output() -> None:
    """Drop what standard output could not take, which Python would try once more at its end."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
