"""Read and write photographs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import UnidentifiedImageError

from data import encoding, heif, metadata, pillow_formats, png, raw, tiff
from data.colours import to_8_bits, to_srgb
from data.encoding import PROFILE_LIMITS, WRITTEN_SUFFIXES, UnwritablePhoto
from utils.errors import WorkError
from utils.files import atomic_path, describe_content

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif", ".avif"})
IMAGE_SUFFIXES = WRITTEN_SUFFIXES | HEIF_SUFFIXES | {".gif", ".ppm", ".pgm", ".jp2"}
MAX_PIXELS = 500_000_000  # above any camera's; guards against small files that unpack to far more


class UnreadablePhoto(WorkError):
    """A file that cannot be read as a photograph; the message names it and gives the reason."""


@dataclass
class Photo(metadata.Metadata):
    """An upright photograph with its metadata, which are written as they are.

    EXIF is without the "Exif" header and has orientation 1.

    Attributes:
        pixels: (H, W, 1 or 3) uint8 or uint16, grey or RGB.
        alpha: (H, W) of the same type, or None; not multiplied into the colours.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None


def read_rgb(path: str | Path) -> np.ndarray:
    """Read a photograph for training and metrics.

    Returns:
        (H, W, 3) uint8, upright; grey is repeated, 16 bits are rounded to 8, alpha is dropped.

    Raises:
        UnreadablePhoto: as `read_photo`.
    """
    pixels = to_8_bits(read_photo(path).pixels)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def read_photo(path: str | Path) -> Photo:
    """Read a photograph with its metadata.

    Palettes become RGB, CMYK and Lab become sRGB, black and white becomes grey. Of several frames
    or pages the first is read. Metadata that is damaged is left out, which the notes say.

    Raises:
        UnreadablePhoto: the file is missing, empty, truncated, not an image, an image of an
            unsupported kind, or larger than MAX_PIXELS, or some of its pixels are missing.
        MemoryError: there is too little memory for it.
    """
    path = Path(path)
    with _decoding(path):
        reader = _reader(path)
        header = reader.read_header(path)
        _check_size(path, header)
        samples = reader.read_samples(path, header)
    carried = header.upright().carried()
    samples = metadata.orient(samples, header.orientation)
    if samples.shape[2] in (1, 3):
        return Photo(samples, **carried)
    colours, alpha = np.ascontiguousarray(samples[..., :-1]), samples[..., -1].copy()
    return Photo(colours, alpha, **carried)


def peek(path: str | Path) -> tuple[int, bool]:
    """Read a photograph's number of pixels, and whether it has alpha, from its header.

    A file that cannot be read counts as 0 pixels; `read_photo` raises the error.
    """
    try:
        header = _read_header(path)
    except (UnreadablePhoto, MemoryError):
        return 0, False
    return header.width * header.height, header.alpha


def upright_size(path: str | Path) -> tuple[int, int]:
    """Read the (width, height) that a photograph has when upright, from its header alone.

    Raises:
        UnreadablePhoto: the header cannot be read.
    """
    return _read_header(path).upright_size()


def _read_header(path: str | Path) -> metadata.Header:
    with _decoding(Path(path)):
        header = _reader(Path(path)).read_header(Path(path))
        _check_size(path, header)
        return header


def _reader(path: Path) -> ModuleType:
    """Choose what reads a file, by its content."""
    if png.is_png(path):
        return png
    if heif.is_heif(path):
        return heif
    if raw.is_raw(path):
        raise UnreadablePhoto(f"{path} is {raw.WHAT}")
    return tiff if tiff.is_tiff(path) else pillow_formats


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turn any error of a decoder, except a MemoryError, into UnreadablePhoto."""
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata; errors are raised
    for decoder in ("tifffile", "imagecodecs"):
        logging.getLogger(decoder).setLevel(logging.CRITICAL)
    try:
        if path.stat().st_size == 0:
            raise UnreadablePhoto(f"{path} is empty (zero bytes)")
        yield
    except (UnreadablePhoto, MemoryError):
        raise
    except FileNotFoundError as error:
        raise UnreadablePhoto(f"{path} is missing") from error
    except PermissionError as error:
        raise UnreadablePhoto(f"{path} may not be read: permission denied") from error
    except UnidentifiedImageError as error:
        content = describe_content(path) or "not an image that can be read"
        raise UnreadablePhoto(f"{path} is {content}") from error
    except Exception as error:  # decoders raise all kinds of errors on damaged data
        raise UnreadablePhoto(f"{path} cannot be read: {error}") from error


def _check_size(path: str | Path, header: metadata.Header) -> None:
    if header.width * header.height > MAX_PIXELS:
        raise UnreadablePhoto(
            f"{path} has {header.width} x {header.height} pixels; "
            f"more than {MAX_PIXELS // 1_000_000} megapixels are not read"
        )


def write_photo(photo: Photo, path: str | Path) -> list[str]:
    """Write a photograph, whole or not at all, in the format of the path's suffix.

    Args:
        photo: what to write.
        path: ends with one of WRITTEN_SUFFIXES; missing folders are created.

    Returns:
        What could not be kept in reading and writing, as sentences. An unmodified Pillow reads the
        file back: a profile too large for that is applied, and odd EXIF is left out.

    Raises:
        UnwritablePhoto: the format cannot hold it: alpha in JPEG or BMP, too many pixels.
        UserError: the folder cannot be written to, or the disk is full; its cause is the OSError.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    notes = []
    samples, carried = photo.pixels, metadata.Metadata(**photo.carried())
    profile = photo.icc_profile
    too_large = profile and len(profile) > PROFILE_LIMITS.get(suffix, len(profile))
    expands = _must_be_rgb(photo, suffix)
    grey_profile = profile is not None and profile[16:20] == b"GRAY"
    if too_large or (grey_profile and (expands or suffix == ".webp")):  # a webp is always RGB
        samples, note = _apply_profile(samples, profile, suffix)
        carried.icc_profile, carried.colours = None, {}
        notes.append(note)
    if photo.alpha is not None:
        if not keeps_alpha(suffix):
            raise UnwritablePhoto(f"{suffix[1:]} cannot hold its alpha; save it as png")
        samples = np.dstack([samples, photo.alpha])
    if expands:
        samples = samples[..., [0, 0, 0, 1]]
        notes.append(
            f"saved as RGB, since few programs read grey with alpha in a 16-bit {suffix[1:]}"
        )
    if samples.dtype == np.uint16 and suffix not in (".png", ".tif", ".tiff"):
        samples = to_8_bits(samples)
        notes.append(f"saved with 8 bits of its 16, all that {suffix[1:]} holds")
    kept = encoding.fit(carried, suffix)
    encoded, odd = encoding.encode(samples, suffix, kept)
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded)
    return [*kept.notes, *notes, *odd]


def keeps_alpha(suffix: str) -> bool:
    """Whether the format of a suffix, such as ".jpg", can hold alpha."""
    return suffix.lower() in (".png", ".webp", ".tif", ".tiff")


def _must_be_rgb(photo: Photo, suffix: str) -> bool:
    """Whether grey is saved as RGB: Pillow and others cannot read what it would make of it."""
    if photo.pixels.shape[2] == 3:
        return False
    sixteen_bit = photo.pixels.dtype == np.uint16
    return suffix in (".tif", ".tiff") and sixteen_bit and photo.alpha is not None


def _apply_profile(pixels: np.ndarray, icc_profile: bytes, suffix: str) -> tuple[np.ndarray, str]:
    """Convert pixels to sRGB, where a format cannot hold their profile; also return a note."""
    converted = to_srgb(pixels, icc_profile, "gray" if pixels.shape[2] == 1 else "rgb")
    if converted is None:
        return pixels, (
            f"its colour profile does not fit into a {suffix[1:]} and cannot be applied: left out"
        )
    return converted, (
        f"its colours are converted to sRGB, since its profile does not fit into a {suffix[1:]}"
    )
