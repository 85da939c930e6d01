"""A photograph's metadata: orientation, EXIF, XMP, colour profile and more.

EXIF is kept as the bytes of the file, a small TIFF structure without the "Exif" header that JPEG
puts before it. The bytes are patched, not rebuilt: maker notes hold offsets into them and would
become unreadable.
"""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

EXIF_HEADER = b"Exif\0\0"
ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
EXIF_DIRECTORIES = (0x8769, 0x8825)  # pointers to the camera's and the GPS's tags
RESOLUTION = (0x011A, 0x011B, 0x0128)  # across, down, and their unit
INCH, CENTIMETRES_PER_INCH = 2, 2.54  # a unit; the other, 3, is the centimetre
WIDTHS, HEIGHTS = (0x0100, 0xA002), (0x0101, 0xA003)  # TIFF's tags and EXIF's PixelX/YDimension
THUMBNAIL_START, THUMBNAIL_LENGTH = 0x0201, 0x0202
XMP_WIDTHS = (b"tiff:ImageWidth", b"exif:PixelXDimension")
XMP_HEIGHTS = (b"tiff:ImageLength", b"exif:PixelYDimension")
XMP_VALUE = rb"(\s*=\s*[\"']\s*|\s*>\s*)\d+"  # after a name, as an attribute or an element
# Of XMP what speaks of further pictures or parts in the file, none of which are carried over:
XMP_POINTERS = re.compile(
    rb"""\s(hdrgm:\w+|xmpNote:HasExtendedXMP)\s*=\s*("[^"]*"|'[^']*')|"""
    rb"""<(\w+:Directory)\b.*?</\3>""",
    re.DOTALL,
)
COMMENT = "Comment"  # PNG's keyword for what a JPEG has as its comment
# TIFF tags that describe the photograph, not the storage of its pixels:
# description, make, model, resolution (3), software, date, artist, host, ratings, copyright.
DESCRIPTIVE = {270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 18246, 18249, 33432}
DESCRIPTIVE |= set(range(40091, 40096))  # Windows title, comment, author, keywords, subject
INTEROPERABILITY = 0xA005
BIG_TIFF = 43  # version number of the TIFF variant for more than 4 GB
FIRST_ONLY = "only the first of its frames or pages was read"


class Text(NamedTuple):
    """A text as PNG has it; of a JPEG's comment the keyword is COMMENT."""

    keyword: str
    text: str
    language: str = ""
    translated: str = ""  # the keyword, in that language


@dataclass(kw_only=True)
class Metadata:
    """What is carried from a file to its result beside the pixels.

    Attributes:
        icc_profile: the colour profile, or None for sRGB.
        exif: EXIF bytes, or None.
        xmp: an XMP packet, or None.
        dpi: pixels per inch across and down, or None.
        texts: PNG's texts, a JPEG's comment.
        colours: what tells of colours in PNG's own way: contents of cICP, gAMA, cHRM and sRGB.
        notes: what cannot be kept, as sentences.
    """

    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    texts: list[Text] = field(default_factory=list)
    colours: dict[bytes, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def carried(self) -> dict:
        """Return these attributes by name, without those of a kind of metadata."""
        return {each.name: getattr(self, each.name) for each in fields(Metadata)}


@dataclass
class Header(Metadata):
    """What a file says of its photograph, as stored; a reader that converts colours changes it.

    EXIF that cannot be read is b"damaged"; reading the pixels may add notes.

    Attributes:
        width: as stored, before the orientation is applied.
        height: likewise.
        alpha: whether it has alpha.
        orientation: as EXIF numbers it, 1 to 8; others count as 1.
    """

    width: int
    height: int
    alpha: bool
    orientation: int = 1

    def upright(self) -> Metadata:
        """Return the metadata that fit the picture when it is turned upright."""
        kept = Metadata(**self.carried())
        size = self.upright_size()
        if kept.exif:
            kept.exif = upright_exif(kept.exif, *size)
            if kept.exif is None:
                kept.notes.append("its EXIF is damaged and left out")
        if kept.xmp:
            if b"HasExtendedXMP" in kept.xmp:
                kept.notes.append("the second part of its XMP is left out")
            kept.xmp = upright_xmp(kept.xmp, *size)
        if kept.dpi and self.orientation in SIDEWAYS:
            kept.dpi = kept.dpi[::-1]
        return kept

    def upright_size(self) -> tuple[int, int]:
        """Return width and height of the picture when it is turned upright."""
        sideways = self.orientation in SIDEWAYS
        return (self.height, self.width) if sideways else (self.width, self.height)


def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels (H, W, ...) upright, given the EXIF orientation (outside 1..8 counts as 1)."""
    if orientation in SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def upright_exif(exif: bytes, width: int, height: int) -> bytes | None:
    """Set the orientation in EXIF to 1 and drop the thumbnail, which shows the old picture.

    Args:
        exif: the bytes, with or without the "Exif" header.
        width: of the upright picture, for the sizes that EXIF tells, if it does.
        height: likewise.

    Returns:
        Bytes without the "Exif" header; None if they are damaged beyond use.
    """
    exif = bytearray(exif.removeprefix(EXIF_HEADER))
    order = {b"II": "<", b"MM": ">"}.get(bytes(exif[:2]))
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        places = _places(exif, start, order)
        end = start + 2 + 12 * len(places)
        (thumbnail,) = struct.unpack_from(f"{order}I", exif, end)
        struct.pack_into(f"{order}I", exif, end, 0)
    except struct.error:
        return None
    for tag, place in list(places):
        if tag == EXIF_DIRECTORIES[0]:
            with suppress(struct.error):  # the camera's tags are damaged
                places += _places(exif, *struct.unpack_from(f"{order}I", exif, place + 8), order)
    for tag, place in places:
        if tag == ORIENTATION:
            struct.pack_into(f"{order}HIHH", exif, place + 2, 3, 1, 1, 0)  # one SHORT: 1
        elif tag in WIDTHS + HEIGHTS:  # one LONG
            side = width if tag in WIDTHS else height
            struct.pack_into(f"{order}HII", exif, place + 2, 4, 1, side)
    with suppress(struct.error, KeyError):  # there is none
        tags = dict(_places(exif, thumbnail, order))
        (first,) = struct.unpack_from(f"{order}I", exif, tags[THUMBNAIL_START] + 8)
        (length,) = struct.unpack_from(f"{order}I", exif, tags[THUMBNAIL_LENGTH] + 8)
        if thumbnail and thumbnail < first < first + length <= len(exif):
            exif[first : first + length] = b"" if first + length == len(exif) else bytes(length)
    return bytes(exif)


def upright_xmp(xmp: bytes, width: int, height: int) -> bytes:
    """Set the orientation in XMP to 1, the sizes it tells to these, and drop XMP_POINTERS."""
    values = {b"tiff:Orientation": 1}
    values |= dict.fromkeys(XMP_WIDTHS, width) | dict.fromkeys(XMP_HEIGHTS, height)
    for name, value in values.items():
        xmp = re.sub(name + XMP_VALUE, name + rb"\g<1>%d" % value, xmp)
    return XMP_POINTERS.sub(b"", xmp)


def sound_dpi(dpi: object) -> tuple[float, float] | None:
    """Return a resolution as Pillow tells it, if it is a pair of numbers that may be true."""
    try:
        across, down = map(float, dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 1 < across < 2**16 and 1 < down < 2**16 else None


def exif_of_dpi(dpi: tuple[float, float]) -> bytes:
    """Make EXIF that tells a resolution alone."""
    tags = Image.Exif()
    for tag, value in zip(RESOLUTION, (*dpi, INCH), strict=True):
        tags[tag] = value
    return tags.tobytes().removeprefix(EXIF_HEADER)


def tells_resolution(exif: bytes) -> bool:
    """Whether EXIF as `upright_exif` returns it tells a resolution."""
    order = "<" if exif[:2] == b"II" else ">"
    start = struct.unpack_from(f"{order}I", exif, 4)
    return RESOLUTION[0] in dict(_places(exif, *start, order))


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
    return {tag: tiff[place : place + 12] for tag, place in _places(tiff, start, order)}


def _places(tiff: bytes, start: int, order: str) -> list[tuple[int, int]]:
    """List the tags of the directory at `start` and where their entries of 12 bytes begin.

    Raises:
        struct.error: the directory is cut off.
    """
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    places = range(start + 2, start + 2 + 12 * count, 12)
    if places.stop > len(tiff):
        raise struct.error("the directory is cut off")
    return [(struct.unpack_from(f"{order}H", tiff, place)[0], place) for place in places]
