"""TIFF through tifffile, with imagecodecs' compressions; Pillow knows fewer, and halves 16 bits."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from tifffile import EXTRASAMPLE, PHOTOMETRIC, SAMPLEFORMAT

from data import colours, raw
from data.metadata import (
    CENTIMETRES_PER_INCH,
    FIRST_ONLY,
    INCH,
    ORIENTATION,
    RESOLUTION,
    Header,
    Metadata,
    exif_of_tiff,
    sound_dpi,
)

MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# How many channels have the colours, by kind:
CHANNELS = {
    PHOTOMETRIC.MINISWHITE: 1,
    PHOTOMETRIC.MINISBLACK: 1,
    PHOTOMETRIC.RGB: 3,
    PHOTOMETRIC.PALETTE: 1,
    PHOTOMETRIC.SEPARATED: 4,
    PHOTOMETRIC.YCBCR: 3,
    PHOTOMETRIC.CIELAB: 3,
    PHOTOMETRIC.ICCLAB: 3,
}
UNSUPPORTED_SAMPLES = {SAMPLEFORMAT.INT: "signed integers", SAMPLEFORMAT.IEEEFP: "floats"}
ALPHA = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)
INK_SET, CMYK = 332, 1  # a tag, and its value for these four inks
XMP, IPTC, DNG_VERSION = 700, 33723, 50706  # further tags
BYTE = 1  # a tag's type
RAW_COLOURS = (PHOTOMETRIC.CFA, PHOTOMETRIC.LINEAR_RAW)
MOST_CHANNELS = 64  # a header that says more is taken for damaged
LARGEST_TILE = 2**24  # pixels; of a small image, whose tiles may be larger than itself


def is_tiff(path: Path) -> bool:
    """Whether a file is a TIFF, a BigTIFF included."""
    with path.open("rb") as file:
        return file.read(4) in MARKS


@contextmanager
def _main_page(path: Path) -> Iterator[tifffile.TiffPage]:
    """Open a TIFF's first page that is no reduced preview.

    Raises:
        ValueError: its kind is not supported, or its header cannot be true.
    """
    with tifffile.TiffFile(path) as file:
        page = next(filter(None, _full_pages(file)), file.pages.first)
        _require_supported(page)
        yield page


def _full_pages(file: tifffile.TiffFile) -> Iterator[tifffile.TiffPage | None]:
    """Yield the pages that are no reduced previews, then such below the first; damaged as None."""
    first = file.pages.first
    for pages in (file.pages, first.pages or ()):
        for number in range(len(pages)):
            try:
                page = pages.get(number)
            except Exception:  # tifffile raises all kinds of errors
                yield None
                continue
            if not page.is_reduced:
                yield page


def _require_supported(page: tifffile.TiffPage) -> None:
    if page.photometric in RAW_COLOURS or DNG_VERSION in page.parent.pages.first.tags:
        raise ValueError(f"it is {raw.WHAT}")
    bits = page.bitspersample
    if isinstance(bits, tuple):
        raise ValueError(f"its channels have {bits} bits; save it with 8 or 16 bits each")
    lab = page.photometric == PHOTOMETRIC.CIELAB  # of which a and b are signed in any case
    if (page.sampleformat in UNSUPPORTED_SAMPLES and not lab) or bits > 16:
        kind = UNSUPPORTED_SAMPLES.get(page.sampleformat, "integers")
        raise ValueError(f"its pixels are {bits}-bit {kind}; save it with 8 or 16 bits, unsigned")
    if page.imagedepth > 1:
        raise ValueError(f"it is a volume of {page.imagedepth} slices; save one of them")
    if page.photometric not in CHANNELS:
        kind = getattr(page.photometric, "name", page.photometric)
        raise ValueError(f"its colours are of the kind {kind}; save it as RGB")
    if page.photometric == PHOTOMETRIC.SEPARATED and page.tags.valueof(INK_SET, CMYK) != CMYK:
        raise ValueError("its inks are others than cyan, magenta, yellow, black; save it as RGB")
    if page.photometric == PHOTOMETRIC.YCBCR and page.is_subsampled and not _decodes_to_rgb(page):
        raise ValueError("its colours are subsampled, but not by JPEG; save it as RGB")
    if not CHANNELS[page.photometric] <= page.samplesperpixel <= MOST_CHANNELS:
        raise ValueError(f"it has {page.samplesperpixel} channels; save it as RGB")
    colours_told = page.colormap is not None and page.colormap.shape[-1] >= 2**bits
    if page.photometric == PHOTOMETRIC.PALETTE and not colours_told:
        raise ValueError("its palette is missing or too short; get a whole copy")
    if page.is_tiled:
        tile = math.prod((page.tilewidth, page.tilelength, page.tiledepth))
        if tile > max(LARGEST_TILE, 4 * page.imagewidth * page.imagelength):
            raise ValueError("its tiles are far larger than itself; get a whole copy")


def _find_alpha(page: tifffile.TiffPage) -> int | None:
    """Find which of a page's channels is alpha, if any."""
    colours = CHANNELS[page.photometric]
    kinds = page.extrasamples[: page.samplesperpixel - colours]
    return next((colours + k for k, kind in enumerate(kinds) if kind in ALPHA), None)


def read_header(path: Path) -> Header:
    """Read the size and metadata of a TIFF's main page.

    Raises:
        ValueError: its kind is not supported, or its header cannot be true.
        tifffile.TiffFileError: it is damaged.
    """
    with _main_page(path) as page:
        header = Header(page.imagewidth, page.imagelength, _find_alpha(page) is not None)
        header.icc_profile = page.iccprofile
        header.orientation = page.tags.valueof(ORIENTATION, 1)
        header.xmp = _bytes(page.tags.valueof(XMP))
        header.dpi = _dpi(page)
        if len(list(islice(_full_pages(page.parent), 2))) > 1:
            header.notes.append(FIRST_ONLY)
        if IPTC in page.tags:
            header.notes.append("its IPTC is left out")
        start = page.offset
    header.exif = exif_of_tiff(path, start)
    return header


def _bytes(value: object) -> bytes | None:
    """Return a tag's value if it is of bytes, which is how it should be stored."""
    return value if isinstance(value, bytes) and value else None


def _dpi(page: tifffile.TiffPage) -> tuple[float, float] | None:
    """Read a page's resolution, if it tells one in a unit."""
    across, down, unit = (page.tags.valueof(tag) for tag in RESOLUTION)
    scale = {INCH: 1, 3: CENTIMETRES_PER_INCH}.get(unit)
    try:
        return scale and sound_dpi([scale * over / under for over, under in (across, down)])
    except (TypeError, ValueError, ZeroDivisionError):  # missing or odd
        return None


def read_samples(path: Path, header: Header) -> np.ndarray:
    """Read the pixels of a TIFF's main page; `header` gets notes and what becomes of its profile.

    Returns:
        (H, W, C) uint8, or uint16 of more than 8 bits, scaled to the full range; with 2 or 4
        channels the last one is alpha, not multiplied into the colours.

    Raises:
        ValueError: as `read_header`, or pixels are missing.
        tifffile.TiffFileError: it is damaged.
    """
    with _main_page(path) as page:
        _require_pixels(page)
        samples = page.asarray(squeeze=False)[:, 0]  # (S, H, W, C), S or C being 1
        colormap = page.colormap  # (RGB, entries) uint16, or None
    samples = np.moveaxis(samples, 0, -1).reshape(*samples.shape[1:3], -1)
    kept, alpha = list(range(CHANNELS[page.photometric])), _find_alpha(page)
    if alpha is not None:
        kept.append(alpha)
    if len(kept) < samples.shape[2]:
        samples = samples[..., kept]
        header.notes.append("its channels beyond colours and alpha are left out")
    if page.photometric == PHOTOMETRIC.PALETTE:
        plain = (colormap >> 8).astype(np.uint8).T[samples[..., 0].astype(np.intp)]
        if alpha is None:
            return plain
        return np.dstack(
            [plain, colours.to_8_bits(colours.stretch(samples[..., 1:], page.bitspersample))]
        )
    samples = colours.stretch(samples, page.bitspersample)
    if alpha is not None and page.extrasamples[alpha - len(kept) + 1] == EXTRASAMPLE.ASSOCALPHA:
        colours.divide_by_alpha(samples)
    return _to_rgb(page, samples, header)


def _require_pixels(page: tifffile.TiffPage) -> None:
    """Raise a ValueError if strips or tiles are missing; tifffile would fill them with zeros."""
    places = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    end = page.parent.filehandle.size
    whole = all(start > 0 and 0 < length <= end - start for start, length in places)
    if not (whole and len(places) >= math.prod(page.chunked)):
        raise ValueError("parts of its pixels are missing; get a whole copy")


def _to_rgb(page: tifffile.TiffPage, samples: np.ndarray, header: Header) -> np.ndarray:
    """Convert samples of a page, perhaps with alpha, to grey or RGB in the full range."""
    count = CHANNELS[page.photometric]
    plain, alpha = samples[..., :count], samples[..., count:]
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        plain = np.iinfo(samples.dtype).max - plain
    elif page.photometric == PHOTOMETRIC.SEPARATED:
        plain, header.icc_profile, notes = colours.cmyk_to_rgb(plain, header.icc_profile)
        header.notes += notes
    elif page.photometric in (PHOTOMETRIC.CIELAB, PHOTOMETRIC.ICCLAB):
        if page.photometric == PHOTOMETRIC.CIELAB:  # a and b are signed
            middle = np.iinfo(samples.dtype).max // 2 + 1
            plain = plain ^ np.array([0, middle, middle], samples.dtype)
            if plain.dtype == np.uint16:  # L of 100 is 0xFFFF here, 0xFF00 in a profile
                plain[..., 0] -= plain[..., 0] >> 8
        plain, header.icc_profile = colours.lab_to_srgb(plain), None
    elif page.photometric == PHOTOMETRIC.YCBCR and not _decodes_to_rgb(page):
        image = Image.frombytes("YCbCr", plain.shape[1::-1], colours.to_8_bits(plain).tobytes())
        plain, alpha = np.asarray(image.convert("RGB")), colours.to_8_bits(alpha)
    return plain if alpha.shape[2] == 0 else np.dstack([plain, alpha])


def _decodes_to_rgb(page: tifffile.TiffPage) -> bool:
    """Whether a page's compression, JPEG for instance, has its own way from YCbCr to RGB."""
    return page.compression in tifffile.TIFF.IMAGE_COMPRESSIONS


def encode(samples: np.ndarray, metadata: Metadata) -> bytes:
    """Encode (H, W, 1..4) uint8 or uint16 as a TIFF, compressed without loss.

    Of the metadata, the profile, the resolution and XMP are written, for the rest see
    `metadata.add_exif_to_tiff`.
    """
    channels, xmp = samples.shape[2], metadata.xmp
    encoded = io.BytesIO()
    tifffile.imwrite(
        encoded,
        samples if channels > 1 else samples[..., 0],
        photometric="rgb" if channels > 2 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression="zlib",
        predictor=True,
        resolution=metadata.dpi,
        resolutionunit=INCH if metadata.dpi else None,
        extratags=[(XMP, BYTE, len(xmp), xmp, True)] if xmp else (),
        iccprofile=metadata.icc_profile,
        metadata=None,
        software=False,
    )
    return encoded.getvalue()
