"""Which photographs a folder holds."""

from __future__ import annotations

import os
import re
from pathlib import Path

from data.images import IMAGE_SUFFIXES
from data.raw import DEVELOP, undeveloped
from utils.errors import UserError, WorkError

THUMBNAILS = frozenset({"@eaDir", ".thumbnails", ".AppleDouble"})  # folders that systems fill


def list_photos(path: str | Path, recursive: bool = False) -> list[Path]:
    """List the photographs of a folder in natural order, 2.jpg before 10.jpg.

    Args:
        path: a folder, or a single file of any name.
        recursive: include the folders below.

    Returns:
        Paths that start with `path`, without hidden files and files of other suffixes than
        IMAGE_SUFFIXES. Broken links are listed; reading one raises the error.

    Raises:
        UserError: `path` does not exist or holds no photograph, a folder cannot be listed, or what
            has the name of a photograph is no file.
    """
    photos, _, unlisted = list_files(path, recursive)
    if unlisted:
        raise UserError(unlisted[0])
    return photos


def list_files(path: str | Path, recursive: bool) -> tuple[list[Path], list[Path], list[str]]:
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
    if os.path.isfile(path):  # Path.is_file raises on names that are too long
        return [path], [], []
    if not os.path.isdir(path):
        raise UserError(f"no file or folder at {path}; check the path")
    files, others, errors, remedy = [], [], [], ""
    places, seen = [str(path)], set()
    for place in places:  # links are followed last, so that a folder is met where it lies
        for folder, below, names in os.walk(place, onerror=errors.append):
            real = os.path.realpath(folder)
            if real in seen:
                below.clear()
                continue
            seen.add(real)
            others += [Path(folder, name) for name in below if name in THUMBNAILS]
            below[:] = [name for name in below if name not in THUMBNAILS and name[0] != "."]
            paths = [os.path.join(folder, name) for name in sorted(below)]
            places += filter(os.path.islink, paths if recursive else ())
            files += [Path(folder, name) for name in names if name[0] != "."]
            if not recursive:
                remedy = (
                    "; sub-folders are left out (not by inference.py --recursive)" if below else ""
                )
                break
    unlisted = [f"cannot list {error.filename}: {error.strerror}" for error in errors]
    photos = []
    for file in sorted(files, key=natural_key):
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            others.append(file)
        elif os.path.isfile(file) or not os.path.exists(file):
            photos.append(file)
        else:
            unlisted.append(
                f"{file} is no file but a device, a pipe or a socket; move it elsewhere"
            )
    if not photos and unlisted:
        raise UserError(unlisted[0])
    raws = undeveloped(others, photos)
    if raws and not photos:
        raise WorkError(f"no photographs in {path} but RAW ones, such as {raws[0].name}: {DEVELOP}")
    if not photos:
        kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise UserError(f"no photographs in {path}; it needs {kinds} files{remedy}")
    return photos, others, unlisted


def natural_key(path: Path) -> tuple:
    """Return a sort key that compares runs of digits as numbers."""
    parts = tuple(
        tuple((int(run), "") if run.isdecimal() else (-1, run) for run in re.split(r"(\d+)", part))
        for part in path.parts
    )
    return parts, str(path)
