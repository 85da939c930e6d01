"""Files of any kind: atomic writing, locks, the user's cache folder."""

from __future__ import annotations

import csv
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from utils.errors import UserError, WorkError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write a file whole or not at all: yield a temporary path beside it, then rename it.

    Args:
        path: the final name; its folder is created if it is missing.

    Yields:
        A path in the same folder with the same suffix; it is removed if the block raises.

    Raises:
        UserError: the folder cannot be created or written to.
        WorkError: the block or the renaming raised an OSError, on a full disk for instance.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem[:40]}.", suffix=f".tmp{path.suffix}", dir=path.parent
        )
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; choose a folder that you may write to"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise WorkError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(folder: str | Path, flag: str) -> None:
    """Check that files can be written to a folder; create it if it is missing.

    Args:
        folder: what will hold the results.
        flag: the option that names it, for the error.

    Raises:
        UserError: it cannot be written to or created.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}); choose another {flag}"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Let one process at a time run the block; others wait.

    The lock belongs to the process, and the system releases it even if the process is killed.

    Args:
        path: a file to lock, created if it is missing and left in place.

    Yields:
        Whether the lock is held: False where the system or the file system has no locks, which is
        said on standard error.

    Raises:
        OSError: the file cannot be created.
    """
    with path.open("a") as file:
        try:
            _wait_for_lock(file)
            held = True
        except OSError as error:
            print(f"warning: going on without a lock on {path}: {error.strerror}", file=sys.stderr)
            held = False
        yield held  # closing the file releases the lock


def _wait_for_lock(file: TextIO) -> None:
    if fcntl is None:
        raise OSError(0, "this system has none")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # another process holds it
        print(f"waiting for another process to release {file.name}", file=sys.stderr)
        fcntl.lockf(file, fcntl.LOCK_EX)


def cache_folder() -> Path:
    """Return the user's cache folder: $XDG_CACHE_HOME/rave, or ~/.cache/rave."""
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "rave"


def describe_content(path: str | Path) -> str | None:
    """Recognise a file that stands in for another one, such as a failed download.

    Returns:
        What it is and what to do, to follow "x.jpg is "; None for anything else.

    Raises:
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        head = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: run git lfs pull"
    if b"<html" in head or head.startswith(b"<!doctype html"):
        return "an HTML page, not the file itself: download it again"
    if head.startswith(b"<?xml"):
        return "an XML text, not the file itself: download it again"
    if head.startswith((b'{"', b"{\n", b"{\r", b"{ ")):
        return "a JSON text, not the file itself: download it again"
    return None


def write_csv(path: str | Path, rows: list[dict]) -> None:
    """Write rows that have the same columns, with a header, whole or not at all."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
