"""Files of any kind: atomic writing, what killed processes leave, locks, the cache folder."""

from __future__ import annotations

import csv
import errno
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from utils.errors import UserError, WorkError, warn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Of `atomic_path`: .STEM.HOST.PID.RANDOM.tmp.SUFFIX
TEMPORARY = re.compile(r"\..*\.([\w-]+)\.(\d+)\.\w{8}\.tmp(\.[^.]+)?", re.DOTALL)
ABANDONED = 24 * 3600  # seconds after which a temporary file belongs to nobody, on any host
FULL = (errno.ENOSPC, errno.EDQUOT)
_swept: set[str] = set()  # folders
_kept: dict[str, TextIO] = {}  # by path, the locked files that stay open until the process ends


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write a file whole or not at all: yield a temporary path beside it, then rename it.

    The temporary's name has the host and the process in it. What killed processes have left in the
    folder is removed at the first writing there, see `sweep`.

    Args:
        path: the final name; its folder is created if it is missing.

    Yields:
        A path in the same folder with the same suffix; it is removed if the block raises.

    Raises:
        UserError: the folder cannot be created or written to.
        WorkError: the disk is full, or the block or the renaming raised an OSError.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.path.abspath(path.parent)
        if folder not in _swept:
            _swept.add(folder)
            sweep(folder)
        prefix = f".{path.stem[:40]}.{_host()}.{os.getpid()}."
        handle, name = tempfile.mkstemp(f".tmp{path.suffix}", prefix, path.parent)
    except OSError as error:
        if error.errno in FULL:
            raise WorkError(f"cannot write {path}: {error.strerror}") from error
        raise UserError(
            f"cannot write {path}: {error.strerror}; choose a folder that you may write to"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with suppress(OSError):  # some network and USB file systems have no modes
            temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise WorkError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: str | Path) -> None:
    """Remove the temporary files that killed processes have left in a folder, by their exact names.

    Those of this host go if their process is gone, those of other hosts (and of a system that
    cannot say) if they are a day old. One that cannot be removed stays.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            match = TEMPORARY.fullmatch(entry.name)
            if match is None:
                continue
            with suppress(OSError):  # gone meanwhile, or another user's
                gone = match[1] == _host() and not _is_alive(int(match[2]))
                if gone or time.time() - entry.stat().st_mtime > ABANDONED:
                    os.unlink(entry.path)


def _host() -> str:
    """This machine's name, as file names can hold it, with the number of its space of processes.

    Containers may share a name, but do not see each other's processes.
    """
    host = re.sub(r"[^\w-]", "-", socket.gethostname())[:32] or "localhost"
    try:
        return host + re.sub(r"\D+", "-", os.readlink("/proc/self/ns/pid")).rstrip("-")
    except OSError:  # only Linux has such spaces
        return host


def _is_alive(process: int) -> bool:
    """Whether a process of this host may still run."""
    if fcntl is None:  # on Windows, asking would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    return True


def require_writable(folder: str | Path, flag: str) -> None:
    """Check that files can be written to a folder; create it if it is missing, else `sweep` it.

    Args:
        folder: what will hold the results.
        flag: the option that names it, for the error.

    Raises:
        UserError: it cannot be written to or created.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        sweep(folder)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}); choose another {flag}"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def locked(path: Path, run: str) -> Iterator[None]:
    """Let the processes of one run at a time go through the block; others wait.

    The lock belongs to the process that comes first, and the system releases it even if that is
    killed. Where the system or the file system has no locks, standard error says so, and nobody
    waits.

    Args:
        path: a file to lock, created if it is missing and left in place; it names the holder.
        run: a name of the run that no other has. Where its processes on several machines share the
            file, the first one holds the lock for the others, so it must be the last to go on.

    Raises:
        OSError: the file cannot be created.
    """
    with path.open("a+") as file:
        try:
            _wait_for_lock(file, run)
        except OSError as error:
            warn(f"warning: going on without a lock on {path}: {error.strerror}")
        yield  # closing the file releases the lock


def lock_until_exit(path: Path) -> str | None:
    """Lock a file until this process ends, in whatever way; never wait.

    The lock is the process's own: no child inherits it, and the system releases it.

    Args:
        path: a file to lock, created if it is missing and left in place; it names the holder.

    Returns:
        The holder in words, if another process has the lock; None if this one has it now, or if
        there is no lock to be had here, which is said on standard error.

    Raises:
        OSError: the disk is full.
    """
    key = os.path.realpath(path)
    if key in _kept:  # opening and closing it once more would release the lock
        return None
    file = None
    try:
        file = path.open("a+")
        _lock_at_once(file)
    except BlockingIOError:
        with file:
            file.seek(0)
            return file.read().strip() or "another process"
    except OSError as error:
        if error.errno in FULL:
            raise
        if file:
            file.close()
        warn(f"warning: going on without a lock on {path}: {error.strerror}")
        return None
    _kept[key] = file
    _sign(file, f"process {os.getpid()} on {_host()}\n")
    return None


def _sign(file: TextIO, holder: str) -> None:
    """Write into a locked file who holds it, for other machines to read, too."""
    os.ftruncate(file.fileno(), 0)
    os.write(file.fileno(), holder.encode())
    os.fsync(file.fileno())


def _lock_at_once(file: TextIO) -> None:
    """Lock a file or raise an OSError, `BlockingIOError` if another process holds it."""
    if fcntl is None:
        raise OSError(0, "this system has none")
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _wait_for_lock(file: TextIO, run: str) -> None:
    try:
        _lock_at_once(file)
    except (BlockingIOError, PermissionError):  # another process holds it
        file.seek(0)
        if file.read() == run:
            return
        warn(f"waiting for another process to release {file.name}")
        fcntl.lockf(file, fcntl.LOCK_EX)
    _sign(file, run)


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
