"""PNG: pixels through libpng, metadata chunk by chunk, so that damage to one costs only that."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import imagecodecs
import numpy as np
from PIL import Image

from data.metadata import FIRST_ONLY, Header, Metadata, Text, exif_of_image, sound_dpi

MARK = b"\x89PNG\r\n\x1a\n"
LEVEL = 3  # half the time of zlib's default, 6, for 5 to 10 % more bytes
LARGEST_SIDE = 1_000_000  # that libpng reads
LARGEST_PROFILE = 2**24  # bytes; what a JPEG can hold, in round numbers
TRANSPARENCY_BYTES = {0: (2,), 2: (6,), 3: range(1, 257)}  # of tRNS, by kind of colours
PALETTE, HAS_ALPHA = 3, 4  # kind of colours, and a bit of it
# Text that tells of orientation or holds EXIF; programs that predate the eXIf chunk write it.
TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
XMP, OLD_EXIF = "XML:com.adobe.xmp", "Raw profile type exif"  # the keywords of these texts
TEXT_KINDS = (b"tEXt", b"zTXt", b"iTXt")
LARGEST_TEXTS = 2**24  # bytes, all together; Pillow reads four times as many
COLOUR_KINDS = {b"cICP": 4, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1}  # and their lengths
SRGB_PRIMARIES = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
METRES_PER_INCH = 0.0254


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
            elif chunk.kind in TEXT_KINDS:
                texts += [text for text in [_told(file, chunk)] if text]
        header.orientation, header.exif = _exif(exif, texts)
        _read_descriptions(file, chunks, header)
    return header


def _read_descriptions(file: BinaryIO, chunks: list[Chunk], header: Header) -> None:
    """Read into a header the texts, the resolution and what is told of colours."""
    room = LARGEST_TEXTS
    for chunk in chunks:
        if chunk.kind in TEXT_KINDS:
            text = _text(_contents(file, chunk), chunk.kind, room) if chunk.length <= room else None
            if text is None:
                header.notes.append("a text in it is damaged or too large and left out")
            elif text.keyword == XMP:
                header.xmp = text.text.encode()
            elif text.keyword != OLD_EXIF:
                header.texts.append(text)
            room -= min(room, len(text.text) if text else chunk.length)
        elif chunk.length == COLOUR_KINDS.get(chunk.kind):
            contents = _contents(file, chunk)
            if contents:
                header.colours[chunk.kind] = contents
        elif chunk.kind == b"pHYs" and chunk.length == 9:
            across, down, unit = struct.unpack(">IIB", _contents(file, chunk) or bytes(9))
            if unit == 1:  # the metre
                header.dpi = sound_dpi((across * METRES_PER_INCH, down * METRES_PER_INCH))


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


def _text(contents: bytes | None, kind: bytes, room: int) -> Text | None:
    """Read a text of a kind; None if it is damaged or has more bytes than there is room for."""
    keyword, _, rest = (contents or b"").partition(b"\0")
    name = keyword.decode("latin-1")
    try:
        if not name:
            return None
        if kind == b"tEXt":
            return Text(name, rest.decode("latin-1"))
        if kind == b"zTXt":
            return Text(name, _unpack(rest[1:], room).decode("latin-1"))
        packed, (language, translated, text) = rest[0], rest[2:].split(b"\0", 2)
        text = _unpack(text, room) if packed else text
        return Text(name, text.decode(), language.decode("latin-1"), translated.decode())
    except (ValueError, IndexError):  # not packed, not UTF-8, or cut off
        return None


def _unpack(packed: bytes, room: int) -> bytes:
    """Unpack what zlib has packed.

    Raises:
        ValueError: it is damaged, or has more bytes than there is room for.
    """
    unpacker = zlib.decompressobj()
    try:
        contents = unpacker.decompress(packed, max(room, 1))
    except zlib.error as error:
        raise ValueError("damaged") from error
    if not unpacker.eof:
        raise ValueError("cut off or too large")
    return contents


def _profile(contents: bytes | None, notes: list[str]) -> bytes | None:
    """Unpack a colour profile; note it if it cannot be."""
    _, _, packed = (contents or b"").partition(b"\0")  # its name comes first
    try:
        profile = _unpack(packed[1:], LARGEST_PROFILE)  # after the method's number
    except ValueError:
        profile = b""
    if not profile:
        notes.append("its colour profile is damaged and left out")
    return profile or None


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


def encode(samples: np.ndarray) -> bytes:
    """Encode (H, W, 1..4) uint16 as a 16-bit PNG."""
    return imagecodecs.png_encode(samples.copy(), level=LEVEL)  # plain strides, of 1 x 1 too


def add_metadata(png: bytes, metadata: Metadata) -> bytes:
    """Add chunks for all metadata to a PNG that has none."""
    chunks = [make_chunk(kind, contents) for kind, contents in metadata.colours.items()]
    if metadata.icc_profile:
        packed = zlib.compress(metadata.icc_profile)
        chunks.append(make_chunk(b"iCCP", b"ICC Profile\0\0" + packed))
    if metadata.dpi:
        across, down = (round(side / METRES_PER_INCH) for side in metadata.dpi)
        chunks.append(make_chunk(b"pHYs", struct.pack(">IIB", across, down, 1)))
    if metadata.exif:
        chunks.append(make_chunk(b"eXIf", metadata.exif))
    chunks += [_text_chunk(text) for text in metadata.texts]
    if metadata.xmp:
        chunks.append(make_chunk(b"iTXt", XMP.encode() + b"\0" * 5 + metadata.xmp))
    start = len(MARK) + 25  # after IHDR
    return b"".join([png[:start], *chunks, png[start:]])


def _text_chunk(text: Text) -> bytes:
    """Build the chunk of a text, as tEXt where Latin-1 and no language will do."""
    keyword = text.keyword.encode("latin-1")
    plain = text.text.replace("\0", "")  # which may not stand in it
    if not (text.language or text.translated):
        with suppress(UnicodeEncodeError):
            return make_chunk(b"tEXt", keyword + b"\0" + plain.encode("latin-1"))
    parts = [keyword, b"\0\0" + text.language.encode(), text.translated.encode(), plain.encode()]
    return make_chunk(b"iTXt", b"\0".join(parts))


def make_chunk(kind: bytes, contents: bytes) -> bytes:
    """Build a chunk: its length, kind, contents and checksum."""
    checksum = zlib.crc32(kind + contents)
    return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", checksum)
