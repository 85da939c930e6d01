"""What travels with a photograph's pixels: orientation, EXIF and colour profile, as bytes.

EXIF is handled as the bytes that a file holds, a small TIFF structure without the "Exif" mark
that JPEG puts before it. The bytes are patched rather than rebuilt, so that maker notes, whose
offsets count from their start, stay readable.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

EXIF_MARK = b"Exif\0\0"
ORIENTATION = 0x0112
LYING = (5, 6, 7, 8)  # orientations of a photograph stored on its side
EXIF_FOLDERS = (0x8769, 0x8825)  # pointers to the camera's and the GPS's own tags
# Tags of a TIFF file that describe the photograph rather than how its pixels are stored:
# description, make, model, resolution (3), software, date, artist, host, ratings, copyright.
DESCRIPTIVE = {270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 18246, 18249, 33432}
DESCRIPTIVE |= set(range(40091, 40096))  # Windows' title, comment, author, keywords, subject
INTEROPERABILITY = 0xA005
BIG_TIFF = 43  # version number of TIFF files of more than 4 GB


def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels (H, W, ...) upright, given EXIF's orientation 1..8 (others count as 1)."""
    if orientation in LYING:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def upright_exif(exif: bytes) -> bytes | None:
    """Set EXIF's orientation to 1 and unlink the embedded thumbnail, which shows the old picture.

    Returns:
        Bytes without the "Exif" mark; None if they are damaged beyond use.
    """
    exif = bytearray(exif.removeprefix(EXIF_MARK))
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

    Bytes that cannot be read are b"damaged", which `upright_exif` refuses as such.
    """
    orientation = 1
    try:
        tags = image.getexif()  # also finds what PNG keeps behind the pixels, or as text
        orientation = tags.get(ORIENTATION, 1)
        exif = image.info.get("exif")
        return orientation, exif if exif or not tags else tags.tobytes()
    except Exception:  # Pillow stumbles over odd tags in many ways
        return orientation, b"damaged"


def exif_of_tiff(path: Path) -> tuple[int, bytes | None]:
    """Read the orientation of a TIFF file, and its descriptive tags as EXIF bytes.

    Bytes that cannot be built are b"damaged", which `upright_exif` refuses as such.
    """
    with tifffile.TiffFile(path) as file:
        orientation = file.pages.first.tags.valueof(ORIENTATION, 1)
    with path.open("rb") as file:
        try:
            tags = Image.Exif()
            start = None
            if (head := file.read(16))[2] == BIG_TIFF:  # which Pillow must be told
                tags.bigtiff, tags.endian = True, "<"
                (start,) = struct.unpack_from("<Q", head, 8)
            file.seek(0)
            tags.load_from_fp(file, start)
            kept = Image.Exif()
            for tag, value in _descriptive(tags).items():
                kept[tag] = value
            exif = kept.tobytes() if kept else None
        except Exception:  # Pillow stumbles over odd tags in many ways
            exif = b"damaged"
    return orientation, exif


def _descriptive(tags: Image.Exif) -> dict:
    """The tags to carry from EXIF to TIFF or back; a folder's value is a dictionary of tags."""
    kept = {tag: tags[tag] for tag in DESCRIPTIVE & set(tags)}
    for folder in EXIF_FOLDERS:
        contents = dict(tags.get_ifd(folder))
        contents.pop(INTEROPERABILITY, None)  # points to a place in the file it comes from
        if contents:
            kept[folder] = contents
    return kept


def add_exif_to_tiff(tiff: bytes, exif: bytes) -> bytes:
    """Add EXIF's tags to a TIFF file of one page.

    They go behind the pixels, then follows the page's directory again with entries for them; the
    header points there. A file of more than 4 GB, which counts in other units, stays as it is.
    """
    order = "<" if tiff[:2] == b"II" else ">"
    if struct.unpack_from(f"{order}H", tiff, 2) == (BIG_TIFF,):
        return tiff
    tags = Image.Exif()
    tags.load(EXIF_MARK + exif)
    added = ImageFileDirectory_v2(tiff[:8])
    for tag, value in _descriptive(tags).items():
        added[tag] = value
    tiff += b"\0" * (len(tiff) % 2)  # directories begin at even offsets
    block = added.tobytes(len(tiff))
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    entries = _entries(tiff, start, order) | _entries(block, 0, order)
    directory = struct.pack(f"{order}H", len(entries))
    directory += b"".join(entry for _, entry in sorted(entries.items()))
    directory += struct.pack(f"{order}I", 0)  # no further page
    pointer = struct.pack(f"{order}I", len(tiff) + len(block))
    return tiff[:4] + pointer + tiff[8:] + block + directory


def _entries(tiff: bytes, start: int, order: str) -> dict[int, bytes]:
    """The entries of the directory at `start`, 12 bytes each, by their tags."""
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    places = range(start + 2, start + 2 + 12 * count, 12)
    return {struct.unpack_from(f"{order}H", tiff, at)[0]: tiff[at : at + 12] for at in places}


def add_metadata_to_png(png: bytes, icc_profile: bytes | None, exif: bytes | None) -> bytes:
    """Insert a colour profile and EXIF into a PNG file, behind its signature and IHDR."""
    chunks = b""
    if icc_profile:
        chunks += _chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc_profile))
    if exif:
        chunks += _chunk(b"eXIf", exif)
    start = 33  # 8 bytes of signature, 25 of IHDR
    return png[:start] + chunks + png[start:]


def _chunk(kind: bytes, contents: bytes) -> bytes:
    checksum = zlib.crc32(kind + contents)
    return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", checksum)
