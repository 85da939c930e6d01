"""16-bit PNG and TIFF through imagecodecs and tifffile; Pillow reduces 16-bit colours to 8."""

from __future__ import annotations

import io
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

PNG_MARK = b"\x89PNG\r\n\x1a\n"
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# TIFF's numbers for sample formats, photometric interpretations and kinds of alpha:
UNSIGNED = 1
UNSUPPORTED_SAMPLES = {2: "signed integers", 3: "floats"}
MINISWHITE, MINISBLACK, RGB = 0, 1, 2
PREMULTIPLIED, PLAIN_ALPHA = 1, 2
FIRST_ONLY = "only the first of its frames or pages was read"
PNG_LEVEL = 3  # half the time of zlib's default, 6, for 5 to 10 % more bytes


def is_sixteen_bit_png(path: Path) -> bool:
    """Whether a file is a PNG of 16 bits."""
    with path.open("rb") as file:
        head = file.read(25)
    return head.startswith(PNG_MARK) and head[24:] == b"\x10"


def peek_sixteen_bit_tiff(path: Path) -> tuple[int, int, bool] | None:
    """Read the header of a TIFF whose first page is grey or RGB of 9 to 16 bits.

    Returns:
        Width, height and whether it has alpha; None for any other file.

    Raises:
        ValueError: a TIFF of signed integers, floats or more bits, or of a volume.
    """
    with path.open("rb") as file:
        if file.read(4) not in TIFF_MARKS:
            return None
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        if page.sampleformat in UNSUPPORTED_SAMPLES or page.bitspersample > 16:
            kind = UNSUPPORTED_SAMPLES.get(page.sampleformat, "integers")
            raise ValueError(
                f"its pixels are {page.bitspersample}-bit {kind}; "
                "save it with 8 or 16 bits, unsigned"
            )
        if page.imagedepth > 1:
            raise ValueError(f"it is a volume of {page.imagedepth} slices; save one of them")
        sixteen_bit = page.bitspersample > 8 and page.sampleformat == UNSIGNED
        if sixteen_bit and page.photometric in (MINISWHITE, MINISBLACK, RGB):
            return page.imagewidth, page.imagelength, _find_alpha(page) is not None
    return None


def _find_alpha(page: tifffile.TiffPage) -> int | None:
    """Find which of a page's extra samples is alpha, if any."""
    kinds = (PREMULTIPLIED, PLAIN_ALPHA)
    return next((k for k, kind in enumerate(page.extrasamples) if kind in kinds), None)


def read_sixteen_bit_png(path: Path) -> np.ndarray:
    """Read a 16-bit PNG as (H, W, C) uint16; with 2 or 4 channels the last one is alpha."""
    pixels = imagecodecs.png_decode(path.read_bytes())
    return pixels.reshape(*pixels.shape[:2], -1)


def read_sixteen_bit_tiff(path: Path) -> tuple[np.ndarray, bytes | None, list[str]]:
    """Read the first page of a TIFF that `peek_sixteen_bit_tiff` accepts.

    Returns:
        (H, W, C) uint16, scaled to the full 16 bits; with 2 or 4 channels the last one is alpha,
        not multiplied into the colours. Then the ICC profile, and notes on what is left out.
    """
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        samples = page.asarray()
        icc_profile = page.iccprofile
        notes = [FIRST_ONLY] if len(file.pages) > 1 else []
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and samples.ndim == 3:
        samples = np.moveaxis(samples, 0, -1)
    samples = samples.reshape(*samples.shape[:2], -1)
    colours = 3 if page.photometric == RGB else 1
    kept, alpha = list(range(colours)), _find_alpha(page)
    if alpha is not None:
        kept.append(colours + alpha)
    if len(kept) < samples.shape[2]:
        samples = samples[..., kept]
        notes.append("its channels beyond colours and alpha are left out")
    largest = 2**page.bitspersample - 1
    if largest < 65535:
        samples = ((samples.astype(np.uint32) * 65535 + largest // 2) // largest).astype(np.uint16)
    if page.photometric == MINISWHITE:
        samples[..., 0] = 65535 - samples[..., 0]
    if alpha is not None and page.extrasamples[alpha] == PREMULTIPLIED:
        share = np.maximum(samples[..., -1:], 1).astype(np.float32)
        plain = samples[..., :-1] * (65535 / share)
        samples[..., :-1] = np.minimum(np.rint(plain), 65535)
    return np.ascontiguousarray(samples, dtype=np.uint16), icc_profile, notes


def encode_sixteen_bit_png(samples: np.ndarray) -> bytes:
    """Encode (H, W, 1..4) uint16 as a 16-bit PNG without metadata."""
    return imagecodecs.png_encode(np.ascontiguousarray(samples), level=PNG_LEVEL)


def encode_tiff(samples: np.ndarray, icc_profile: bytes | None) -> bytes:
    """Encode (H, W, 1..4) uint8 or uint16 as a TIFF, compressed without loss."""
    channels = samples.shape[2]
    encoded = io.BytesIO()
    tifffile.imwrite(
        encoded,
        samples if channels > 1 else samples[..., 0],
        photometric="rgb" if channels > 2 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression="zlib",
        predictor=True,
        iccprofile=icc_profile,
        metadata=None,
        software=False,
    )
    return encoded.getvalue()
