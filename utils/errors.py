"""What goes wrong in kinds, and everything that is told, through one escape."""

import difflib
import errno
import re
import sys
from collections.abc import Sequence

from tqdm import tqdm

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


def line(text: str) -> str:
    """Escape a text and end it; written in one piece, lines of several processes stay whole."""
    return printable(text) + "\n"


class _Voice:
    """Whether this process speaks: of several that share a run, one does."""

    tells = warns = True


def be_quiet(warnings: bool) -> None:
    """Let `tell`, and `warn` too if `warnings`, say nothing from now on."""
    _Voice.tells, _Voice.warns = False, not warnings


def tell(text: str) -> None:
    """Print a line on standard output, above any progress bar, escaped as by `printable`."""
    if _Voice.tells:
        tqdm.write(line(text), file=sys.stdout, end="")


def warn(text: str) -> None:
    """Print a line on standard error, likewise."""
    if _Voice.warns:
        tqdm.write(line(text), file=sys.stderr, end="")


def shows_progress() -> bool:
    """Whether this process shows bars of progress."""
    return _Voice.tells


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
