"""Which metadata each format holds, and photographs as its bytes."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from data import metadata, pillow_formats, png, tiff
from data.metadata import COMMENT, Metadata

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
WRITTEN_SUFFIXES = JPEG_SUFFIXES | {".png", ".webp", ".tif", ".tiff", ".bmp"}
JPEG_QUALITY = 95
# Bytes of a colour profile that Pillow reads back without being told to allow more; of a JPEG, what
# 255 segments hold. BMP has no place for one.
PROFILE_LIMITS = dict.fromkeys(JPEG_SUFFIXES, 255 * 65_519) | {".png": 2**20, ".bmp": 0}
CHECKED_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP")  # as which results with EXIF are read back
SRGB_GAMMA = (45455).to_bytes(4, "big")  # as gAMA has it
SRGB_CODES = bytes([1, 13])  # as cICP has them


class UnwritablePhoto(Exception):
    """A photograph that the format cannot hold; the message says why and what to do."""


class Room(NamedTuple):
    """What a format has room for beside profile and pixels: EXIF and XMP in bytes.

    A comment counts as a text. WebP tells dpi in EXIF.
    """

    exif: int = 2**32
    xmp: int = 2**32
    dpi: bool = True
    comment: int = 0
    texts: bool = False
    colours: bool = False


JPEG_ROOM = Room(exif=65_000, xmp=65_502, comment=65_533)  # a segment each
ROOMS = dict.fromkeys(JPEG_SUFFIXES, JPEG_ROOM) | {
    ".png": Room(comment=2**31, texts=True, colours=True),
    ".webp": Room(dpi=False),
    ".tif": Room(),
    ".tiff": Room(),
    ".bmp": Room(exif=0, xmp=0),
}


def fit(all_of_it: Metadata, suffix: str) -> Metadata:
    """Select the metadata that the format of a suffix holds; the notes say what is left out."""
    room, kept = ROOMS[suffix], Metadata(**all_of_it.carried())
    lost = []
    if suffix == ".webp" and kept.dpi and not kept.exif:
        kept = replace(kept, exif=metadata.exif_of_dpi(kept.dpi), dpi=None)
    if kept.dpi and not room.dpi:
        if not metadata.tells_resolution(kept.exif):
            lost.append("its resolution in dpi is")
        kept = replace(kept, dpi=None)
    if kept.exif and len(kept.exif) > room.exif:
        kept, lost = replace(kept, exif=None), [*lost, "its EXIF is"]
    if kept.xmp and len(kept.xmp) > room.xmp:
        kept, lost = replace(kept, xmp=None), [*lost, "its XMP is"]
    if not room.texts:
        comments = [text for text in kept.texts if text.keyword == COMMENT]
        others = sorted({text.keyword for text in kept.texts} - {COMMENT})
        if len(joined(comments)) > room.comment:
            comments, lost = [], [*lost, "its comment is"]
        if others:
            lost.append(f"its texts ({', '.join(others)}) are")
        kept = replace(kept, texts=comments)
    if kept.colours and not room.colours:
        lost += _lost_colours(kept)
        kept = replace(kept, colours={})
    sentences = [f"{what} left out, as a {suffix[1:]} has no room for it" for what in lost]
    return replace(kept, notes=[*kept.notes, *sentences])


def joined(comments: list[metadata.Text]) -> bytes:
    """Join comments to a JPEG's one."""
    return "\n".join(comment.text for comment in comments).encode()


def _lost_colours(kept: Metadata) -> list[str]:
    """Say what is lost with PNG's own ways to tell of colours: nothing if they say sRGB."""
    code = kept.colours.get(b"cICP")
    if code and code[:2] != SRGB_CODES:
        return ["its colour code (cICP), without which the colours look different, is"]
    if code or kept.icc_profile or b"sRGB" in kept.colours:  # which take precedence
        return []
    gamma = kept.colours.get(b"gAMA", SRGB_GAMMA)
    primaries = kept.colours.get(b"cHRM", png.SRGB_PRIMARIES)
    if (gamma, primaries) == (SRGB_GAMMA, png.SRGB_PRIMARIES):
        return []
    return ["its gamma (gAMA), without which the colours look different, is"]


def encode(samples: np.ndarray, suffix: str, kept: Metadata) -> tuple[bytes, list[str]]:
    """Encode (H, W, 1..4) in the format of a suffix, with metadata as `fit` returns them.

    Returns:
        The bytes, and a note if the EXIF is so odd that Pillow would not read the result back.

    Raises:
        UnwritablePhoto: it has too many pixels for the format.
    """
    if kept.exif:
        try:
            encoded = _encode(samples, suffix, kept)
            with pillow_formats.opened(io.BytesIO(encoded), CHECKED_FORMATS) as image:
                image.getexif()
            return encoded, []
        except (MemoryError, UnwritablePhoto):
            raise
        except Exception:  # Pillow raises all kinds of errors on odd tags
            odd = [f"its EXIF is too odd for a {suffix[1:]} and left out"]
            return _encode(samples, suffix, replace(kept, exif=None)), odd
    return _encode(samples, suffix, kept), []


def _encode(samples: np.ndarray, suffix: str, kept: Metadata) -> bytes:
    if suffix in (".tif", ".tiff"):
        encoded = tiff.encode(samples, kept)
        return metadata.add_exif_to_tiff(encoded, kept.exif) if kept.exif else encoded
    height, width = samples.shape[:2]
    if suffix == ".png" and max(height, width) > png.LARGEST_SIDE:
        raise UnwritablePhoto(f"few programs read a png of {width} x {height}; save it as tif")
    if samples.dtype == np.uint16:
        return png.add_metadata(png.encode(samples), kept)
    # Encode in memory: writing to a file, Pillow's JPEG and BMP encoders miss a full disk.
    encoded = io.BytesIO()
    try:
        Image.fromarray(samples if samples.shape[2] > 1 else samples[..., 0]).save(
            encoded, **_options(suffix, kept)
        )
    except (OSError, ValueError) as error:
        raise UnwritablePhoto(
            f"{width} x {height} pixels cannot be saved as {suffix[1:]} ({error}); save it as tif"
        ) from error
    contents = encoded.getvalue()
    return png.add_metadata(contents, kept) if suffix == ".png" else contents


def _options(suffix: str, kept: Metadata) -> dict:
    """Tell Pillow how to save the format of a suffix, and with what."""
    if suffix == ".png":  # its metadata are added later
        return dict(format="PNG", compress_level=png.LEVEL)
    options = dict(dpi=kept.dpi) if kept.dpi else {}
    if suffix == ".bmp":
        return options | dict(format="BMP")
    options["icc_profile"] = kept.icc_profile
    if kept.exif:
        options["exif"] = metadata.EXIF_HEADER + kept.exif
    if kept.xmp:
        options["xmp"] = kept.xmp
    if suffix == ".webp":  # `exact` keeps the colours under transparent pixels
        return options | dict(format="WEBP", quality=JPEG_QUALITY, exact=True)
    if kept.texts:
        options["comment"] = joined(kept.texts)
    return options | dict(format="JPEG", quality=JPEG_QUALITY, subsampling=0)
