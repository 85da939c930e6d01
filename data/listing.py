"""Which photographs a folder holds."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data.images import IMAGE_SUFFIXES
from data.raw import DEVELOP, undeveloped
from utils.errors import UserError, WorkError

THUMBNAILS = frozenset({"@eaDir", ".thumbnails", ".AppleDouble"})  # folders that systems fill
DIGITS = re.compile(r"\d+")


def list_photos(path: str | Path, recursive: bool = False) -> list[str]:
    """List the photographs of a folder in natural order, 2.jpg before 10.jpg.

    Args:
        path: a folder, or a single file of any name.
        recursive: include the folders below.

    Returns:
        Paths as text, of which a folder may have 200,000: they start with os.path.join(path, "")
        if it is a folder. Hidden files and files of other suffixes than IMAGE_SUFFIXES are left
        out. Broken links are listed; reading one raises the error.

    Raises:
        UserError: `path` does not exist or holds no photograph, a folder cannot be listed, or what
            has the name of a photograph is no file.
    """
    photos, _, unlisted = list_files(path, recursive)
    if unlisted:
        raise UserError(unlisted[0])
    return photos


def list_files(path: str | Path, recursive: bool) -> tuple[list[str], list[str], list[str]]:
    """List a folder's photographs as `list_photos` does, its other files, and what went wrong.

    Links to folders are followed, each folder once.

    Returns:
        The photographs; what else was left alone, but for hidden files: other files, and systems'
        folders of thumbnails; and a sentence for each folder that could not be listed and for each
        photograph's name that is no file's.

    Raises:
        UserError: `path` does not exist, or no photograph can be listed.
        WorkError: there are RAW photographs alone.
    """
    path = Path(path)
    require_there(path)
    if os.path.isfile(path):  # Path.is_file raises on names that are too long
        return [str(path)], [], []
    found, seen = Contents(), set()
    folders, links = [str(path)], deque()
    while folders or links:  # links are followed last, so that a folder is met where it lies
        folder = folders.pop() if folders else links.popleft()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        below = found.add(folder)
        if recursive:
            folders += [place for place, linked in below if not linked]
            links += [place for place, linked in below if linked]
    start = len(os.path.join(path, ""))  # what all begin with alike
    photos, others, special = (
        sorted(names, key=lambda name: natural_key(name[start:]))
        for names in (found.photos, found.others, found.special)
    )
    unlisted = found.errors + [
        f"{file} is no file but a device, a pipe or a socket; move it elsewhere" for file in special
    ]
    if not photos and unlisted:
        raise UserError(unlisted[0])
    if not photos and (raws := undeveloped(others, photos)):
        name = os.path.basename(raws[0])
        raise WorkError(f"no photographs in {path} but RAW ones, such as {name}: {DEVELOP}")
    if not photos:
        kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        remedy = "; its sub-folders are left out, but not by inference.py --recursive"
        raise UserError(
            f"no photographs in {path}; it needs {kinds} files"
            + (remedy if below and not recursive else "")
        )
    return photos, others, unlisted


def require_there(path: str | Path) -> None:
    """Check that there is a file or a folder.

    Raises:
        UserError: there is neither.
    """
    if not (os.path.isfile(path) or os.path.isdir(path)):
        raise UserError(f"no file or folder at {path}; check the path")


@dataclass
class Contents:
    """What folders hold, as paths: photographs, other files, what is no file; and errors."""

    photos: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, folder: str) -> list[tuple[str, bool]]:
        """Sort a folder's entries in; return the folders below and whether each is a link."""
        below = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:  # which know what they are: a folder costs no call for each
                    if ask(entry.is_dir):
                        if entry.name in THUMBNAILS:
                            self.others.append(entry.path)
                        elif entry.name[0] != ".":
                            below.append((entry.path, entry.is_symlink()))
                    elif entry.name[0] != ".":
                        self._add_file(entry)
        except OSError as error:
            self.errors.append(f"cannot list {folder}: {error.strerror}")
        return sorted(below)

    def _add_file(self, entry: os.DirEntry) -> None:
        if os.path.splitext(entry.name)[1].lower() not in IMAGE_SUFFIXES:
            self.others.append(entry.path)
        elif ask(entry.is_file) or (entry.is_symlink() and not os.path.exists(entry.path)):
            self.photos.append(entry.path)
        else:
            self.special.append(entry.path)


def ask(question: Callable[[], bool]) -> bool:
    """Ask an entry of a folder what it is; one that cannot be followed is nothing."""
    try:
        return question()
    except OSError:  # a link around in a circle
        return False


def look_up(file: str | Path) -> tuple[int | None, int]:
    """A file's number in its file system and its size in bytes; None and 0 if it is missing."""
    try:
        status = os.stat(file)
    except OSError:
        return None, 0
    return status.st_ino, status.st_size


def natural_key(path: str) -> tuple[str, str]:
    """Return a sort key that compares folder by folder, and runs of digits as numbers."""
    return DIGITS.sub(_by_value, path.replace(os.sep, "\0")), path


def _by_value(run: re.Match) -> str:
    """Write a number so that texts compare as values: shorter ones first, all before letters."""
    digits = (run[0].lstrip("0") or "0") if run[0].isascii() else str(int(run[0]))
    return f"\1{chr(len(digits))}{digits}"
