"""Photographs in and out: listing, reading, writing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.errors import UserError

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
OTHER_SUFFIXES = {".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".jp2", ".avif"}
IMAGE_SUFFIXES = JPEG_SUFFIXES | OTHER_SUFFIXES
# Content decides how a file is read, whatever its name; EPS and such, which run programs, do not.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 500_000_000  # more than any camera takes; a bomb unpacks to far more


class UnreadablePhoto(Exception):
    """A file that gives no photograph; its text names the file and says why."""


def list_photos(path: str | Path, recursive: bool = False) -> list[Path]:
    """List the photographs of a folder, in natural order: 2.jpg before 10.jpg.

    Args:
        path: a folder, or one file, which is listed whatever its name.
        recursive: list the folders below too.

    Returns:
        Paths that start with `path`; hidden files are left out, and so are files without a
        suffix in IMAGE_SUFFIXES.

    Raises:
        UserError: there is nothing at `path`, or no photograph in it.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no file or folder at {path}; check the path")
    found = path.rglob("*") if recursive else path.iterdir()
    photos = [
        file
        for file in found
        if file.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and file.is_file()
    ]
    if not photos:
        raise UserError(
            f"no photographs in {path}; give a folder of "
            f"{', '.join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))} files"
        )
    return sorted(photos, key=natural_key)


def natural_key(path: Path) -> tuple:
    """Sort key of a path under which numbers in names count as numbers."""
    return tuple(
        tuple((int(run), "") if run.isdecimal() else (-1, run) for run in re.split(r"(\d+)", part))
        for part in path.parts
    ), str(path)


def read_rgb(path: str | Path) -> np.ndarray:
    """Read a photograph's colours for training and metrics.

    Returns:
        (H, W, 3) uint8, upright; grey repeated, 16 bits rounded to 8, alpha left out.

    Raises:
        UnreadablePhoto: the file is empty, truncated, or no image.
    """
    with _opened(path) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise UnreadablePhoto(f"{path} is empty (zero bytes)")
        Image.init()  # knows all formats only then
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except UnreadablePhoto:
        raise
    except UnidentifiedImageError as error:
        raise UnreadablePhoto(f"{path} is not an image that can be read") from error
    except Exception as error:  # decoders raise anything on damaged data
        raise UnreadablePhoto(f"{path} is damaged: {error}") from error
