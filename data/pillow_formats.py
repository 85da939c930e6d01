"""Photographs of all formats that Pillow reads for us: JPEG, WebP, BMP, GIF and others."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image

from data import colours, jpeg
from data.metadata import COMMENT, FIRST_ONLY, Header, Text, exif_of_image, sound_dpi

# Files are recognised by their content, not by name. EPS is left out: reading it runs a program.
FORMATS = ("JPEG", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
STRIP = 256  # rows copied at a time

# What Pillow's modes are converted to; the second table holds for images with a transparent colour.
PLAIN_MODES = {"1": "L", "P": "RGB", "YCbCr": "RGB", "RGBX": "RGB"}
PLAIN_MODES |= {"La": "LA", "PA": "RGBA", "RGBa": "RGBA"}
TRANSPARENT_MODES = {"1": "LA", "L": "LA", "P": "RGBA", "RGB": "RGBA"}
# Where a file says how many bits it has: after which mark, and how far. JPEG 2000's SIZ segment has
# the samples' bits less one there, AVIF's av1C box two flags: more than 8, and then 12.
DEPTH_MARKS = {"JPEG2000": (b"\xff\x4f\xff\x51", 38), "AVIF": (b"av1C", 2)}
AV1_BITS = (8, 8, 10, 12)
LONGEST_HEAD = 65_536  # bytes in which those marks lie
# What decodes them with all their bits, where imagecodecs was built with it:
DEEP_DECODERS = {"JPEG2000": imagecodecs.jpeg2k_decode, "AVIF": imagecodecs.avif_decode}
AVAILABLE = {"JPEG2000": imagecodecs.JPEG2K.available, "AVIF": imagecodecs.AVIF.available}
DEEP_MODES = ("I;16", "LA", "RGB", "RGBA")  # Pillow's names for what is then read so


@contextmanager
def opened(file: Path | io.BytesIO, formats: Sequence[str] = FORMATS) -> Iterator[Image.Image]:
    """Open an image of any size in Pillow, if it is of one of the formats."""
    Image.init()  # registers the formats
    Image.MAX_IMAGE_PIXELS = None  # Pillow's limit is below today's phones; ours is MAX_PIXELS
    known = [name for name in formats if name in Image.OPEN]
    with Image.open(file, formats=known) as image:
        yield image


def read_header(path: Path) -> Header:
    """Read an image's size and metadata.

    Raises:
        Exception: it cannot be read; Pillow raises all kinds of errors.
    """
    with opened(path) as image:
        alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
        header = Header(image.width, image.height, alpha)
        header.orientation, header.exif = exif_of_image(image)
        header.icc_profile = image.info.get("icc_profile") or None
        if "icc_profile" in image.info and not header.icc_profile:
            header.notes.append("its colour profile is damaged and left out")
        if isinstance(image.info.get("xmp"), bytes):
            header.xmp = image.info["xmp"] or None
        if not _is_jpeg(image) or image.info.get("jfif_unit") in (
            1,
            2,
        ):  # else from EXIF or made up
            header.dpi = sound_dpi(image.info.get("dpi"))
        header.texts = [Text(COMMENT, comment) for comment in _comments(image)]
        if _is_jpeg(image):
            header.notes += jpeg.left_out(image)
        if _has_more_frames(image):
            header.notes.append(FIRST_ONLY)
        if _depth(image) > 8 and not (image.mode.startswith("I") or _is_kept_deep(image)):
            header.notes.append("read with only 8 bits a colour; save it as png or tif to keep all")
    return header


def _is_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO")  # as Pillow calls those of several pictures


def _comments(image: Image.Image) -> list[str]:
    """Read an image's comments, as UTF-8 or else Latin-1."""
    if _is_jpeg(image):
        comments = [contents for name, contents in image.applist if name == "COM"]
    else:
        comments = [image.info.get("comment") or b""] if image.format == "GIF" else []
    texts = []
    for comment in comments:
        try:
            texts.append(comment.decode())
        except (UnicodeDecodeError, AttributeError):  # or it is text already
            texts.append(comment.decode("latin-1") if isinstance(comment, bytes) else comment)
    return [text.rstrip("\0") for text in texts if text.rstrip("\0")]


def _has_more_frames(image: Image.Image) -> bool:
    """Whether there are frames beyond the first; a photograph's preview is none."""
    try:
        return image.format != "MPO" and getattr(image, "is_animated", False)
    except Exception:  # a later frame is damaged
        return True


def _is_kept_deep(image: Image.Image) -> bool:
    """Whether an image that Pillow would read with too few bits is decoded with all."""
    return AVAILABLE.get(image.format, False) and image.mode in DEEP_MODES


def _depth(image: Image.Image) -> int:
    """Tell how many bits a colour of an image has that is not yet loaded."""
    if image.format == "PPM":
        decoder, _, _, arguments = image.tile[0] if image.tile else ("", (), 0, ())
        deep = decoder.startswith("ppm") and arguments[1] > 255
        return arguments[1].bit_length() if deep else 8
    if image.format not in DEPTH_MARKS:
        return 8
    mark, offset = DEPTH_MARKS[image.format]
    image.fp.seek(0)
    head = image.fp.read(LONGEST_HEAD)
    place = head.find(mark) + len(mark) + offset
    if mark not in head or place >= len(head):
        return 8
    flags = head[place]
    return (flags & 127) + 1 if image.format == "JPEG2000" else AV1_BITS[flags >> 5 & 3]


def read_samples(path: Path, header: Header) -> np.ndarray:
    """Read an image's pixels; `header` gets notes and what becomes of its profile.

    Returns:
        (H, W, C) uint8, or uint16 of grey with more than 8 bits; with 2 or 4 channels the last one
        is alpha.

    Raises:
        Exception: pixels are missing or damaged; Pillow raises all kinds of errors.
    """
    data = path.read_bytes()
    samples, mode = _decode_jpeg(data, header) if data.startswith(jpeg.MARK) else _decode(data)
    if mode == "CMYK":
        samples, header.icc_profile, notes = colours.cmyk_to_rgb(samples, header.icc_profile)
        header.notes += notes
    return samples


def _decode_jpeg(data: bytes, header: Header) -> tuple[np.ndarray, str]:
    """Decode a JPEG as `_decode` does, also without its end mark, if no pixel is missing."""
    scans = jpeg.find_scans(data)
    cut_off = ValueError("it is cut off, so pixels are missing; get a whole copy")
    whole = data if scans.ended else data + jpeg.END
    if not scans.ended and (scans.frame in jpeg.ARITHMETIC or not scans.can_be_whole()):
        raise cut_off
    samples, mode = _decode(whole)
    if jpeg.may_lack_pixels(scans, samples):
        again, _ = _decode(jpeg.with_fillers(whole, jpeg.find_scans(whole)))
        if not np.array_equal(samples, again):
            raise cut_off
    if not scans.ended:
        header.notes.append("its end mark is missing, though its pixels are whole")
    elif not scans.can_be_whole():
        header.notes.append("its last scans are missing, so it lacks detail; get a whole copy")
    return samples, mode


def _decode(data: bytes) -> tuple[np.ndarray, str]:
    """Decode to samples (H, W, 1..4) and Pillow's name for the kind of their colours."""
    with opened(io.BytesIO(data)) as image:
        bits = _depth(image)
        if bits > 8 and _is_kept_deep(image):
            samples = DEEP_DECODERS[image.format](data)
            samples = samples[0] if samples.ndim == 4 else samples  # of several frames
            samples = colours.stretch(samples.reshape(*samples.shape[:2], -1), bits)
            return samples, image.mode
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
            return _to_array(image).astype(np.uint16), image.mode
        transparent = TRANSPARENT_MODES if "transparency" in image.info else {}
        mode = transparent.get(image.mode) or PLAIN_MODES.get(image.mode, image.mode)
        if mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
            raise ValueError(f"its colours are of the kind {mode}; save it as RGB")
        image.load()
        return _to_array(image if image.mode == mode else image.convert(mode)), mode


def _to_array(image: Image.Image) -> np.ndarray:
    """Copy an image to (H, W, C) in strips; at once, Pillow would hold three copies."""
    width, height = image.size
    samples = None
    for top in range(0, height, STRIP):
        strip = np.asarray(image.crop((0, top, width, min(top + STRIP, height))))
        strip = strip.reshape(len(strip), width, -1)
        if samples is None:
            samples = np.empty((height, width, strip.shape[2]), strip.dtype)
        samples[top : top + STRIP] = strip
    return samples
