"""Whether a JPEG has all its pixels, and what it has that cannot be kept.

The format has no checksum, and decoders fill what is missing with grey. But they skip bytes between
the end of a scan and the next mark: so other bytes are put there, and if they change the picture,
the decoder has used them for pixels that were missing.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

MARK = b"\xff\xd8"
END = b"\xff\xd9"
NEXT_MARK = re.compile(rb"\xff+([\x01-\xfe])")
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF, without the tables between them
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
ARITHMETIC = set(range(0xC9, 0xD0))  # may leave out zeros at a scan's end, so bytes matter there
RESTARTS = range(0xD0, 0xD8)  # between the stretches of a scan
END_OF_IMAGE, START_OF_SCAN = 0xD9, 0xDA
FILLER = bytes(165 * number % 255 for number in range(1, 65))  # mixed bits, no mark
MID_GREY = 128
IPTC = 0x0404  # the number of a Photoshop resource
GAIN_MAPS = (b"hdrgm:Version", b"urn:iso:std:iso:ts:21496:-1")  # Ultra HDR; ISO 21496-1
PICTURES = 0xB002  # MPF's tag: 16 bytes for each picture, which begin with its kind
PICTURE_KINDS = 0xFFFFFF
PREVIEWS = (0x010001, 0x010002)  # kinds of pictures that show the same one, smaller


@dataclass
class Scans:
    """The scans of a JPEG.

    Attributes:
        marks: where the marks that end a stretch of coded pixels begin, and their numbers.
        ended: whether the end of the image was found.
        frame: the number of its kind of frame, or 0.
        components: how many colours it has.
        exact: pairs of a component and the number of a coefficient that the scans give in full.
    """

    marks: list[tuple[int, int]] = field(default_factory=list)
    ended: bool = False
    frame: int = 0
    components: int = 0
    exact: set[tuple[int, int]] = field(default_factory=set)

    def can_be_whole(self) -> bool:
        """Whether no scan is missing: those there give all coefficients, if they are whole."""
        return 0 < 64 * self.components == len(self.exact)


def find_scans(data: bytes) -> Scans:
    """Find the scans of a JPEG's first image."""
    scans = Scans()
    position, coded = len(MARK), False
    while match := NEXT_MARK.search(data, position):
        mark = match[1][0]
        if coded:
            scans.marks.append((match.start(), mark))
        position = match.end()
        if mark in RESTARTS:
            continue
        coded = mark == START_OF_SCAN
        if mark == END_OF_IMAGE:
            scans.ended = True
            break
        length = int.from_bytes(data[position : position + 2], "big")
        segment = data[position + 2 : position + length]
        try:
            if mark in FRAMES:
                scans.frame, scans.components = mark, segment[5]
            elif coded:
                _add_scan(segment, scans)
        except (IndexError, struct.error):  # a cut segment
            break
        position += length
    return scans


def _add_scan(segment: bytes, scans: Scans) -> None:
    """Note which coefficients a scan gives to the last bit."""
    count = segment[0]
    first, last, bits = struct.unpack_from("3B", segment, 1 + 2 * count)
    if bits & 15 == 0:
        names = segment[1 : 1 + 2 * count : 2]
        scans.exact |= {(name, k) for name in names for k in range(first, min(last, 63) + 1)}


def may_lack_pixels(scans: Scans, samples: np.ndarray) -> bool:
    """Whether it is worth decoding a JPEG with fillers: else no pixel was filled with grey.

    Args:
        scans: of the file.
        samples: (H, W, C) uint8 as decoded, the colours not converted.
    """
    if scans.frame in ARITHMETIC:
        return False
    if not scans.ended or scans.frame in PROGRESSIVE:
        return True
    grey = True
    for down, right in ((3, 3), (3, 5), (5, 3), (5, 5)):  # a block's pixels that are looked at
        rows = np.minimum(np.arange(down, len(samples) + down, 8), len(samples) - 1)
        columns = np.minimum(np.arange(right, samples.shape[1] + right, 8), samples.shape[1] - 1)
        pixels = samples[np.ix_(rows, columns)].astype(np.int16)
        grey &= (np.abs(pixels - MID_GREY) <= 1).all(axis=2)
    return bool(grey.any())


def with_fillers(data: bytes, scans: Scans) -> bytes:
    """Insert bytes where a decoder skips them if the pixels before them are whole.

    After the last stretch of a scan a further one is inserted, in case whole ones are missing.
    """
    parts, start, restarts = [], 0, 0
    for end, mark in scans.marks:
        parts += [data[start:end], FILLER]
        if mark in RESTARTS:
            restarts += 1
        else:
            parts += [bytes([0xFF, RESTARTS[restarts % 8]]), FILLER]
            restarts = 0
        start = end
    return b"".join([*parts, data[start:]])


def left_out(image: Image.Image) -> list[str]:
    """Say what else a JPEG, opened in Pillow, has, as sentences."""
    notes = []
    if IPTC in image.info.get("photoshop", {}):
        notes.append("its IPTC is left out")
    segments = b"".join(contents for name, contents in image.applist if name in ("APP1", "APP2"))
    if any(mark in segments for mark in GAIN_MAPS):
        notes.append("its gain map is left out, so it is no HDR picture any more")
    elif _further_pictures(image.info.get("mp", b"")):
        notes.append("its further pictures are left out, such as a gain map or a depth map")
    return notes


def _further_pictures(directory: bytes) -> int:
    """Count the pictures that MPF's directory tells of, without the first one and its previews."""
    try:
        tags = Image.Exif()
        tags.load(b"Exif\0\0" + directory)
        entries = tags.get(PICTURES, b"")
        order = "<" if directory[:2] == b"II" else ">"
        kinds = [kind & PICTURE_KINDS for (kind, *_) in struct.iter_unpack(f"{order}4I", entries)]
    except Exception:  # Pillow raises all kinds of errors on odd tags
        return 0
    return sum(kind not in PREVIEWS for kind in kinds[1:])
