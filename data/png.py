"""PNG: pixels through libpng, metadata chunk by chunk, so that damage to one costs only that."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import imagecodecs
import numpy as np
from PIL import Image

from data.metadata import FIRST_ONLY, Header, exif_of_image

MARK = b"\x89PNG\r\n\x1a\n"
LEVEL = 3  # half the time of zlib's default, 6, for 5 to 10 % more bytes
LARGEST_SIDE = 1_000_000  # that libpng reads
LARGEST_PROFILE = 2**24  # bytes; what a JPEG can hold, in round numbers
TRANSPARENCY_BYTES = {0: (2,), 2: (6,), 3: range(1, 257)}  # of tRNS, by kind of colours
PALETTE, HAS_ALPHA = 3, 4  # kind of colours, and a bit of it
# Text that tells of orientation or holds EXIF; programs that predate the eXIf chunk write it.
TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")


class Chunk(NamedTuple):
    """Where a chunk stands in the file, and the length of its contents."""

    kind: bytes
    start: int
    length: int


def is_png(path: Path) -> bool:
    """Whether a file is a PNG."""
    with path.open("rb") as file:
        return file.read(len(MARK)) == MARK


def read_header(path: Path) -> Header:
    """Read a PNG's size and metadata, those after the pixels too.

    Raises:
        ValueError: its first chunk is damaged, or it is larger than is read.
    """
    with path.open("rb") as file:
        chunks = list(_chunks(file))
        width, height, _, colours, _ = _first(file, chunks)
        if max(width, height) > LARGEST_SIDE:
            raise ValueError(
                f"it has {width} x {height} pixels, and a png of more than {LARGEST_SIDE:,} a side "
                "is not read; save it as tif"
            )
        header = Header(width, height, bool(colours & HAS_ALPHA))
        exif, texts, palette = [], [], 0
        for chunk in chunks:
            contents = _contents(file, chunk) if chunk.kind in (b"iCCP", b"eXIf", b"acTL") else b""
            if chunk.kind == b"iCCP":
                header.icc_profile = _profile(contents, header.notes)
            elif chunk.kind == b"eXIf":
                exif.append(make_chunk(b"eXIf", contents or b"damaged"))
            elif chunk.kind == b"acTL" and _frames(contents) > 1:
                header.notes.append(FIRST_ONLY)
            elif chunk.kind == b"PLTE":
                palette = chunk.length // 3  # entries
            elif chunk.kind == b"tRNS":
                header.alpha = _is_transparency(file, chunk, colours, palette)
                if not header.alpha:
                    header.notes.append("its transparency is damaged and left out")
            elif chunk.kind in (b"tEXt", b"zTXt", b"iTXt"):
                texts += [text for text in [_told(file, chunk)] if text]
    header.orientation, header.exif = _exif(exif, texts)
    return header


def _first(file: BinaryIO, chunks: list[Chunk]) -> tuple[int, int, int, int, bytes]:
    """Read width, height, bit depth, kind of colours and the rest from the first chunk."""
    if not (chunks and chunks[0].kind == b"IHDR" and chunks[0].length == 13):
        raise ValueError("its header is missing; get a whole copy")
    contents = _contents(file, chunks[0])
    if contents is None:
        raise ValueError("its header is damaged; get a whole copy")
    return struct.unpack(">IIBB3s", contents)


def _chunks(file: BinaryIO) -> Iterator[Chunk]:
    """Yield the chunks up to the end's mark, the file's end or what is no chunk."""
    position = len(MARK)
    while True:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8 or not head[4:].isalpha():
            return
        length, kind = struct.unpack(">I4s", head)
        yield Chunk(kind, position, length)
        if kind == b"IEND":
            return
        position += 12 + length


def _contents(file: BinaryIO, chunk: Chunk) -> bytes | None:
    """Read a chunk's contents; None if they are cut off or their checksum is wrong."""
    file.seek(chunk.start + 4)
    data = file.read(chunk.length + 8)
    sound = len(data) == chunk.length + 8
    sound = sound and data[-4:] == struct.pack(">I", zlib.crc32(data[:-4]))
    return data[4:-4] if sound else None


def _frames(animation: bytes | None) -> int:
    return struct.unpack_from(">I", animation)[0] if animation and len(animation) == 8 else 1


def _is_transparency(file: BinaryIO, chunk: Chunk, colours: int, palette: int) -> bool:
    """Whether libpng heeds the chunk; `palette` is the number of colours told before it."""
    fits = chunk.length in TRANSPARENCY_BYTES.get(colours, ())
    fits &= colours != PALETTE or chunk.length <= palette
    return fits and _contents(file, chunk) is not None


def _told(file: BinaryIO, chunk: Chunk) -> bytes | None:
    """Read a text, whole with its checksum, if it is sound and one of TEXTS."""
    file.seek(chunk.start + 8)
    if not file.read(min(chunk.length, 32)).startswith(TEXTS):
        return None
    contents = _contents(file, chunk)
    return None if contents is None else make_chunk(chunk.kind, contents)


def _profile(contents: bytes | None, notes: list[str]) -> bytes | None:
    """Unpack a colour profile; note it if it cannot be."""
    _, _, packed = (contents or b"").partition(b"\0")  # its name comes first
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(packed[1:], LARGEST_PROFILE)  # after the method's number
        if unpacker.eof and profile:
            return profile
    except zlib.error:
        pass
    notes.append("its colour profile is damaged and left out")
    return None


def _exif(exif: list[bytes], texts: list[bytes]) -> tuple[int, bytes | None]:
    """Let Pillow read the orientation and EXIF from chunks; as `exif_of_image` returns them."""
    head = MARK + make_chunk(b"IHDR", struct.pack(">IIBB3x", 1, 1, 8, 0))
    for chunks in ([*exif, *texts], exif):  # a text too large for Pillow must not cost the EXIF
        try:
            png = io.BytesIO(head + b"".join(chunks) + make_chunk(b"IEND", b""))
            with Image.open(png, formats=["PNG"]) as image:
                return exif_of_image(image)
        except Exception:  # Pillow raises all kinds of errors on odd texts
            continue
    return 1, b"damaged"


def read_samples(path: Path, header: Header) -> np.ndarray:
    """Read a PNG's pixels.

    Returns:
        (H, W, C) uint8, or uint16 of a PNG of 16 bits; with 2 or 4 channels the last one is alpha.

    Raises:
        ValueError: pixels are missing or damaged.
        imagecodecs.PngError: likewise.
    """
    with path.open("rb") as file:
        parts = []
        for chunk in _chunks(file):
            if chunk.kind in (b"IHDR", b"PLTE", b"IDAT") or (
                chunk.kind == b"tRNS" and header.alpha
            ):
                file.seek(chunk.start)
                parts.append(file.read(chunk.length + 12))
    end = make_chunk(b"IEND", b"")
    if any(part[-4:] != struct.pack(">I", zlib.crc32(part[4:-4])) for part in parts):
        parts = _checked(parts)
        header.notes.append("the checksums of its pixels are wrong, though the pixels are whole")
    samples = imagecodecs.png_decode(MARK + b"".join(parts) + end)
    return samples.reshape(*samples.shape[:2], -1)


def _checked(parts: list[bytes]) -> list[bytes]:
    """Rewrite the pixels' chunks with right checksums, if what they hold can be unpacked.

    Raises:
        ValueError: the pixels are damaged.
    """
    head = [part for part in parts if part[4:8] != b"IDAT"]
    lengths = (int.from_bytes(part[:4], "big") for part in parts)
    pixels = b"".join(
        part[8 : 8 + length]
        for part, length in zip(parts, lengths, strict=True)
        if part[4:8] == b"IDAT"
    )
    unpacker = zlib.decompressobj()
    try:
        piece = pixels
        while piece and not unpacker.eof:
            unpacker.decompress(piece, 2**20)
            piece = unpacker.unconsumed_tail
    except zlib.error as error:
        raise ValueError("its pixels are damaged; get a whole copy") from error
    return [*head, make_chunk(b"IDAT", pixels)]


def encode(samples: np.ndarray, icc_profile: bytes | None, exif: bytes | None) -> bytes:
    """Encode (H, W, 1..4) uint16 as a 16-bit PNG with its metadata."""
    png = imagecodecs.png_encode(samples.copy(), level=LEVEL)  # plain strides, of 1 x 1 too
    chunks = b""
    if icc_profile:
        chunks += make_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc_profile))
    if exif:
        chunks += make_chunk(b"eXIf", exif)
    start = len(MARK) + 25  # after IHDR
    return png[:start] + chunks + png[start:]


def make_chunk(kind: bytes, contents: bytes) -> bytes:
    """Build a chunk: its length, kind, contents and checksum."""
    checksum = zlib.crc32(kind + contents)
    return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", checksum)
