"""List, read and write photographs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from data import metadata, sixteen_bit
from utils.errors import WorkError
from utils.files import atomic_path

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
WRITTEN_SUFFIXES = JPEG_SUFFIXES | {".png", ".webp", ".tif", ".tiff", ".bmp"}
IMAGE_SUFFIXES = WRITTEN_SUFFIXES | {".gif", ".ppm", ".pgm", ".jp2", ".avif"}
# Files are recognised by their content, not by name. EPS is left out: reading it runs a program.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 500_000_000  # above any camera's; guards against small files that unpack to far more
JPEG_QUALITY = 95
JPEG_EXIF_LIMIT = 65_000  # bytes; JPEG stores EXIF in a single segment
WIDTH, HEIGHT, BITS_PER_SAMPLE = 256, 257, 258  # TIFF tags
STRIP = 256  # rows copied at a time

# What Pillow's modes are converted to; the second table holds for images with a transparent colour.
PLAIN_MODES = {"1": "L", "P": "RGB", "YCbCr": "RGB", "RGBX": "RGB"}
PLAIN_MODES |= {"La": "LA", "PA": "RGBA", "RGBa": "RGBA"}
TRANSPARENT_MODES = {"1": "LA", "L": "LA", "P": "RGBA", "RGB": "RGBA"}


class UnreadablePhoto(WorkError):
    """A file that cannot be read as a photograph; the message names it and gives the reason."""


class UnwritablePhoto(Exception):
    """A photograph that the format cannot hold; the message says why and what to do."""


@dataclass
class Photo:
    """An upright photograph with its metadata.

    Attributes:
        pixels: (H, W, 1 or 3) uint8 or uint16, grey or RGB.
        alpha: (H, W) of the same type, or None; not multiplied into the colours.
        icc_profile: the colour profile of `pixels`, or None for sRGB.
        exif: EXIF bytes without the "Exif" header, orientation 1, or None.
        notes: what could not be kept in reading, as sentences.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    notes: list[str] = field(default_factory=list)


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

    Palettes become RGB, CMYK becomes sRGB through its profile, black and white becomes grey. Of
    several frames or pages the first is read.

    Raises:
        UnreadablePhoto: the file is missing, empty, truncated, not an image, an image of an
            unsupported kind, or larger than MAX_PIXELS.
    """
    path = Path(path)
    with _decoding(path):
        if header := sixteen_bit.peek_sixteen_bit_tiff(path):
            _check_size(path, *header[:2])
            samples, icc_profile, notes = sixteen_bit.read_sixteen_bit_tiff(path)
            orientation, exif = metadata.exif_of_tiff(path)
        else:
            with _opened(path) as image:
                samples, icc_profile, notes = _decode(image, path)
                orientation, exif = metadata.exif_of_image(image)
                if image.format == "TIFF":  # Pillow has already turned it upright
                    exif = metadata.exif_of_tiff(path)[1]
    if exif and (exif := metadata.upright_exif(exif)) is None:
        notes.append("its EXIF is damaged and left out")
    samples = metadata.orient(samples, orientation)
    if samples.shape[2] in (1, 3):
        return Photo(samples, None, icc_profile, exif, notes)
    colours, alpha = np.ascontiguousarray(samples[..., :-1]), samples[..., -1].copy()
    return Photo(colours, alpha, icc_profile, exif, notes)


def peek(path: str | Path) -> tuple[int, bool]:
    """Read a photograph's number of pixels, and whether it has alpha, from its header.

    A file that cannot be read counts as 0 pixels; `read_photo` raises the error.
    """
    try:
        with _decoding(Path(path)):
            if header := sixteen_bit.peek_sixteen_bit_tiff(Path(path)):
                width, height, alpha = header
                return width * height, alpha
            with _opened(path) as image:
                transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
                return image.width * image.height, transparent or "transparency" in image.info
    except (UnreadablePhoto, MemoryError):
        return 0, False


def upright_size(path: str | Path) -> tuple[int, int]:
    """Read the (width, height) that a photograph has when upright, from its header alone.

    An orientation that a PNG stores after its pixels is missed.

    Raises:
        UnreadablePhoto: the header cannot be read.
    """
    with _decoding(Path(path)), _opened(path) as image:
        try:
            exif = Image.Image.getexif(image)  # PngImageFile's own method decodes the pixels
            sideways = exif.get(metadata.ORIENTATION) in metadata.SIDEWAYS
        except Exception:  # damaged EXIF, which `read_photo` leaves out too
            sideways = False
        size = image.size
        if image.format == "TIFF":  # newer Pillows give its upright size
            size = image.tag_v2[WIDTH], image.tag_v2[HEIGHT]
        return size[::-1] if sideways else size


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turn any error of a decoder, except a MemoryError, into UnreadablePhoto."""
    try:
        if path.stat().st_size == 0:
            raise UnreadablePhoto(f"{path} is empty (zero bytes)")
        yield
    except (UnreadablePhoto, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UnreadablePhoto(f"{path} is not an image that can be read") from error
    except FileNotFoundError as error:
        raise UnreadablePhoto(f"{path} is missing") from error
    except PermissionError as error:
        raise UnreadablePhoto(f"{path} may not be read: permission denied") from error
    except Exception as error:  # decoders raise all kinds of errors on damaged data
        raise UnreadablePhoto(f"{path} cannot be read: {error}") from error


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    Image.init()  # registers all of FORMATS
    Image.MAX_IMAGE_PIXELS = None  # Pillow's limit is below today's phones; see MAX_PIXELS
    formats = [name for name in FORMATS if name in Image.OPEN]
    with Image.open(path, formats=formats) as image:
        _check_size(path, *image.size)
        yield image


def _check_size(path: str | Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadablePhoto(
            f"{path} has {width} x {height} pixels; "
            f"more than {MAX_PIXELS // 1_000_000} megapixels are not read"
        )


def _decode(image: Image.Image, path: Path) -> tuple[np.ndarray, bytes | None, list[str]]:
    """Decode to samples (H, W, 1..4), their colour profile, and notes."""
    icc_profile = image.info.get("icc_profile") or None
    notes = []
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes.append(sixteen_bit.FIRST_ONLY)
    if sixteen_bit.is_sixteen_bit_png(path):
        return sixteen_bit.read_sixteen_bit_png(path), icc_profile, notes
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _to_array(image).astype(np.uint16), icc_profile, notes
    if _loses_bits(image):
        notes.append("read with 8 bits of its 16; save it as png or RGB tif to keep them")
    if image.mode == "CMYK":
        image, icc_profile, note = _convert_cmyk(image, icc_profile)
        notes += note
    transparent = TRANSPARENT_MODES if "transparency" in image.info else {}
    mode = transparent.get(image.mode) or PLAIN_MODES.get(image.mode, image.mode)
    if mode not in ("L", "LA", "RGB", "RGBA"):
        raise ValueError(f"its colours are of the kind {mode}; save it as RGB")
    image.load()
    return _to_array(image if image.mode == mode else image.convert(mode)), icc_profile, notes


def _loses_bits(image: Image.Image) -> bool:
    """Whether Pillow will read an image, not yet loaded, with fewer bits than the file has."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8
    decoder, _, _, arguments = image.tile[0] if image.tile else ("", (), 0, ())
    return image.format == "PPM" and decoder.startswith("ppm") and arguments[1] > 255


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


def _convert_cmyk(
    image: Image.Image, icc_profile: bytes | None
) -> tuple[Image.Image, bytes | None, list[str]]:
    """Convert CMYK to sRGB through its profile; without a profile, convert to plain RGB."""
    if icc_profile is None:
        return image.convert("RGB"), None, []
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    except (OSError, ImageCms.PyCMSError):
        note = "its CMYK profile is damaged: the colours are converted without it"
        return image.convert("RGB"), None, [note]
    return converted, srgb.tobytes(), []


def write_photo(photo: Photo, path: str | Path) -> list[str]:
    """Write a photograph, whole or not at all, in the format of the path's suffix.

    Args:
        photo: what to write.
        path: ends with one of WRITTEN_SUFFIXES; missing folders are created.

    Returns:
        What could not be kept in reading and writing, as sentences.

    Raises:
        UnwritablePhoto: the format cannot hold it: alpha in JPEG or BMP, too many pixels.
        UserError: the folder cannot be written to, or the disk is full; its cause is the OSError.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    notes = list(photo.notes)
    samples = photo.pixels
    if photo.alpha is not None:
        if not keeps_alpha(suffix):
            raise UnwritablePhoto(f"{suffix[1:]} cannot hold its alpha; save it as png")
        samples = np.dstack([samples, photo.alpha])
    if samples.dtype == np.uint16 and suffix not in (".png", ".tif", ".tiff"):
        samples = to_8_bits(samples)
        notes.append(f"saved with 8 bits of its 16, all that {suffix[1:]} holds")
    exif = photo.exif
    if exif and suffix in JPEG_SUFFIXES and len(exif) > JPEG_EXIF_LIMIT:
        exif = None
        notes.append("its EXIF is too large for a jpg and left out")
    encoded = _encode(samples, suffix, photo.icc_profile, exif)
    if exif and suffix in (".tif", ".tiff"):
        try:
            encoded = metadata.add_exif_to_tiff(encoded, exif)
        except Exception:  # Pillow raises all kinds of errors on odd tags
            notes.append("its EXIF has tags that do not fit into a tif and is left out")
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded)
    return notes


def keeps_alpha(suffix: str) -> bool:
    """Whether the format of a suffix, such as ".jpg", can hold alpha."""
    return suffix.lower() in (".png", ".webp", ".tif", ".tiff")


def _encode(
    samples: np.ndarray, suffix: str, icc_profile: bytes | None, exif: bytes | None
) -> bytes:
    """Encode (H, W, 1..4) with the profile and EXIF, where the format has a place for them."""
    if suffix in (".tif", ".tiff"):  # `write_photo` adds its EXIF
        return sixteen_bit.encode_tiff(samples, icc_profile)
    if samples.dtype == np.uint16:
        encoded = sixteen_bit.encode_sixteen_bit_png(samples)
        return metadata.add_metadata_to_png(encoded, icc_profile, exif)
    options = {} if suffix == ".bmp" else dict(icc_profile=icc_profile)
    if exif and suffix != ".bmp":
        options["exif"] = metadata.EXIF_HEADER + exif
    if suffix in JPEG_SUFFIXES:
        options |= dict(format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    elif suffix == ".webp":  # `exact` keeps the colours under transparent pixels
        options |= dict(format="WEBP", quality=JPEG_QUALITY, exact=True)
    elif suffix == ".png":
        options |= dict(format="PNG", compress_level=sixteen_bit.PNG_LEVEL)
    else:
        options |= dict(format="BMP")
    # Encode in memory: writing to a file, Pillow's JPEG and BMP encoders miss a full disk.
    encoded = io.BytesIO()
    try:
        Image.fromarray(samples if samples.shape[2] > 1 else samples[..., 0]).save(
            encoded, **options
        )
    except (OSError, ValueError) as error:
        height, width = samples.shape[:2]
        raise UnwritablePhoto(
            f"{width} x {height} pixels cannot be saved as {suffix[1:]} ({error}); save it as png"
        ) from error
    return encoded.getvalue()


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Round uint16 pixels to uint8; return uint8 pixels as they are."""
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
