"""HEIC and other HEIF photographs, as iPhones take them, through libheif."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pi_heif

from data import colours
from data.metadata import FIRST_ONLY, Header

# Kinds of files that begin so, at byte 4; AVIF is left to another reader.
BRANDS = ("heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1")
MARKS = tuple(b"ftyp" + brand.encode() for brand in BRANDS)
ENTRY = re.compile(rb"(.{4})infe([\2\3])", re.DOTALL)  # of what it has: length, box, version
LONGEST_HEAD = 65_536  # bytes in which other kinds that it has are named
GAIN_MAP, TONE_MAP = "hdrgainmap", b"tmap"  # Apple's; of ISO 21496-1
UNSPECIFIED, SRGB = (2, 2), (1, 13)  # codes of primaries and of a transfer function


def is_heif(path: Path) -> bool:
    """Whether a file is a HEIF of HEVC pictures."""
    with path.open("rb") as file:
        head = file.read(40)
    return head[4:].startswith(MARKS) and b"avif" not in head[8:]


def _open(path: Path) -> pi_heif.HeifFile:
    """Open a HEIF.

    Raises:
        ValueError: the kinds of what it has are damaged, which would crash pi_heif.
        Exception: it cannot be read; pi_heif raises all kinds of errors.
    """
    data = path.read_bytes()
    for entry in ENTRY.finditer(data):
        first = entry.start(2) + (8 if entry[2] == b"\2" else 10)  # after flags and numbers
        try:
            data[first : entry.start() + int.from_bytes(entry[1], "big")].decode()
        except UnicodeDecodeError as error:
            raise ValueError("its list of contents is damaged; get a whole copy") from error
    return pi_heif.open_heif(data, convert_hdr_to_8bit=False, hdr_to_16bit=False)


def read_header(path: Path) -> Header:
    """Read the size and metadata of a HEIF's primary picture.

    libheif turns it upright by the file's own marks, which EXIF's orientation repeats.

    Raises:
        Exception: it cannot be read; pi_heif raises all kinds of errors.
    """
    file = _open(path)
    header = Header(*file.size, file.has_alpha)
    header.icc_profile = file.info.get("icc_profile") or None
    header.exif, header.xmp = file.info["exif"] or None, file.info.get("xmp") or None
    codes = file.info.get("nclx_profile", {})
    code = codes.get("color_primaries", 2), codes.get("transfer_characteristics", 2)
    if code not in (UNSPECIFIED, SRGB):  # told where there is no profile
        header.colours[b"cICP"] = bytes([*code, 0, 1])  # RGB of the full range
    with path.open("rb") as stream:
        tone_mapped = TONE_MAP in stream.read(LONGEST_HEAD)
    if tone_mapped or any(GAIN_MAP in kind for kind in file.info["aux"]):
        header.notes.append("its gain map is left out, so it is no HDR picture any more")
    if file.info["depth_images"]:
        header.notes.append("its depth map is left out")
    if len(file) > 1:
        header.notes.append(FIRST_ONLY)
    return header


def read_samples(path: Path, header: Header) -> np.ndarray:
    """Read the pixels of a HEIF's primary picture.

    Returns:
        (H, W, C) uint8, or uint16 of more than 8 bits, scaled to the full range; with 2 or 4
        channels the last one is alpha, not multiplied into the colours.

    Raises:
        Exception: pixels are missing or damaged; pi_heif raises all kinds of errors.
    """
    file = _open(path)
    samples = np.array(file)  # a copy: the memory behind `file` ends with it
    samples = samples.reshape(*samples.shape[:2], -1)
    if samples.shape[:2] != (header.height, header.width):
        raise ValueError("it has another size than its header says; get a whole copy")
    bits = file.info["bit_depth"] if samples.dtype == np.uint16 else 8
    samples = colours.stretch(samples, bits)
    if file.premultiplied_alpha:
        colours.divide_by_alpha(samples)
    return samples
