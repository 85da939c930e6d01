"""A photograph's metadata: orientation, EXIF and colour profile.

EXIF is kept as the bytes of the file, a small TIFF structure without the "Exif" header that JPEG
puts before it. The bytes are patched, not rebuilt: maker notes hold offsets into them and would
become unreadable.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

EXIF_HEADER = b"Exif\0\0"
ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
EXIF_DIRECTORIES = (0x8769, 0x8825)  # pointers to the camera's and the GPS's tags
# TIFF tags that describe the photograph, not the storage of its pixels:
# description, make, model, resolution (3), software, date, artist, host, ratings, copyright.
DESCRIPTIVE = {270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 18246, 18249, 33432}
DESCRIPTIVE |= set(range(40091, 40096))  # Windows title, comment, author, keywords, subject
INTEROPERABILITY = 0xA005
BIG_TIFF = 43  # version number of the TIFF variant for more than 4 GB
FIRST_ONLY = "only the first of its frames or pages was read"


@dataclass
class Header:
    """What a file says of its photograph beside the pixels.

    Attributes:
        width: as stored, before the orientation is applied.
        height: likewise.
        alpha: whether it has alpha.
        orientation: as EXIF numbers it, 1 to 8; others count as 1.
        exif: EXIF bytes as stored, or None; b"damaged" if they cannot be read.
        icc_profile: the colour profile, or None for sRGB; a reader that converts colours sets it.
        notes: what cannot be kept, as sentences; reading the pixels may add some.
    """

    width: int
    height: int
    alpha: bool
    orientation: int = 1
    exif: bytes | None = None
    icc_profile: bytes | None = None
    notes: list[str] = field(default_factory=list)


def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels (H, W, ...) upright, given the EXIF orientation (outside 1..8 counts as 1)."""
    if orientation in SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def upright_exif(exif: bytes) -> bytes | None:
    """Set the orientation in EXIF to 1 and drop the thumbnail, which shows the old picture.

    Returns:
        Bytes without the "Exif" header; None if they are damaged beyond use.
    """
    exif = bytearray(exif.removeprefix(EXIF_HEADER))
    order = {b"II": "<", b"MM": ">"}.get(bytes(exif[:2]))
    try:
        if order is None:
            return None
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            if struct.unpack_from(f"{order}H", exif, entry) == (ORIENTATION,):
                struct.pack_into(f"{order}HIHH", exif, entry + 2, 3, 1, 1, 0)  # one SHORT: 1
        struct.pack_into(f"{order}I", exif, start + 2 + 12 * count, 0)
    except struct.error:
        return None
    return bytes(exif)


def exif_of_image(image: Image.Image) -> tuple[int, bytes | None]:
    """Read the orientation and the EXIF bytes of an image that Pillow has opened.

    EXIF that cannot be read becomes b"damaged", for which `upright_exif` returns None.
    """
    orientation = 1
    try:
        tags = Image.Image.getexif(image)  # also of text; PngImageFile's own decodes the pixels
        orientation = tags.get(ORIENTATION, 1)
        exif = image.info.get("exif")
        return orientation, exif if exif or not tags else tags.tobytes()
    except Exception:  # Pillow raises all kinds of errors on odd tags
        return orientation, b"damaged"


def exif_of_tiff(path: Path, start: int) -> bytes | None:
    """Read a TIFF's descriptive tags, of the directory at `start`, as EXIF bytes.

    EXIF that cannot be built becomes b"damaged", for which `upright_exif` returns None.
    """
    with path.open("rb") as file:
        try:
            tags = Image.Exif()
            head = file.read(4)
            tags.endian = "<" if head[:2] == b"II" else ">"
            tags.bigtiff = BIG_TIFF in head[2:]
            tags.load_from_fp(file, start)
            kept = Image.Exif()
            for tag, value in _descriptive(tags).items():
                kept[tag] = value
            return kept.tobytes() if kept else None
        except Exception:  # Pillow raises all kinds of errors on odd tags
            return b"damaged"


def _descriptive(tags: Image.Exif) -> dict:
    """Select the tags to carry between EXIF and TIFF; a directory's value is a dict of tags."""
    kept = {tag: tags[tag] for tag in DESCRIPTIVE & set(tags)}
    for directory in EXIF_DIRECTORIES:
        contents = dict(tags.get_ifd(directory))
        contents.pop(INTEROPERABILITY, None)  # an offset into the original file
        if contents:
            kept[directory] = contents
    return kept


def add_exif_to_tiff(tiff: bytes, exif: bytes) -> bytes:
    """Add EXIF's tags to a TIFF file of one page.

    The tags are appended after the pixels, followed by a copy of the page's directory with entries
    for them, to which the header then points. A file of more than 4 GB stays as it is.
    """
    order = "<" if tiff[:2] == b"II" else ">"
    if struct.unpack_from(f"{order}H", tiff, 2) == (BIG_TIFF,):
        return tiff
    tags = Image.Exif()
    tags.load(EXIF_HEADER + exif)
    added = ImageFileDirectory_v2(tiff[:8])
    for tag, value in _descriptive(tags).items():
        added[tag] = value
    tiff += b"\0" * (len(tiff) % 2)  # directories start at even offsets
    block = added.tobytes(len(tiff))
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    entries = _entries(tiff, start, order) | _entries(block, 0, order)
    directory = struct.pack(f"{order}H", len(entries))
    directory += b"".join(entry for _, entry in sorted(entries.items()))
    directory += struct.pack(f"{order}I", 0)  # no further page
    pointer = struct.pack(f"{order}I", len(tiff) + len(block))
    return tiff[:4] + pointer + tiff[8:] + block + directory


def _entries(tiff: bytes, start: int, order: str) -> dict[int, bytes]:
    """Map the tags of the directory at `start` to their entries of 12 bytes."""
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    places = range(start + 2, start + 2 + 12 * count, 12)
    return {struct.unpack_from(f"{order}H", tiff, at)[0]: tiff[at : at + 12] for at in places}
