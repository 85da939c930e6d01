"""A user's mistake is a sentence and an exit status, never a traceback."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """What the user can mend; its text says what is wrong and what to do."""


def exit_with(main: Callable[..., int | None], *args: object) -> None:
    """Run a script's `main` and exit: its status, 2 for a `UserError`, 130 for Ctrl-C.

    Args:
        main: returns an exit status, or None for 0.
        args: passed on to `main`.

    Raises:
        SystemExit: always.
    """
    try:
        status = main(*args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        status = 130
    sys.exit(status or 0)
