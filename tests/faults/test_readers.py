"""Files damaged, cut off, blemished or mistaken for photographs: read or refused."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from data.images import UnreadablePhoto, peek, read_photo
from tests.heif import ALPHA, heic

ROOT = Path(__file__).resolve().parents[2]
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LOSSLESS = dict(compression="zlib", predictor=True, metadata=None)


def picture(rng: np.random.Generator, dtype: type = np.uint8) -> np.ndarray:
    """A smooth picture, (H, W, 3), of some size."""
    width, height = (int(side) for side in rng.integers(17, 90, 2))
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return pixels if dtype == np.uint8 else pixels.astype(np.uint16) * 257


def through_pillow(kind: str, **options: object):
    def encode(rng: np.random.Generator) -> bytes:
        encoded = io.BytesIO()
        tags = Image.Exif()
        tags[0x010F], tags[0x0112] = "Maker", int(rng.integers(1, 9))
        how = dict(options, exif=tags.tobytes(), icc_profile=ICC)
        how = how if kind in ("JPEG", "PNG", "WEBP", "AVIF") else options
        Image.fromarray(picture(rng)).save(encoded, kind, **how)
        return encoded.getvalue()

    return encode


def through_tifffile(dtype: type, **options: object):
    def encode(rng: np.random.Generator) -> bytes:
        encoded = io.BytesIO()
        how = dict(photometric="rgb", iccprofile=ICC, rowsperstrip=8, metadata=None)
        tifffile.imwrite(encoded, picture(rng, dtype), **(how | options))
        return encoded.getvalue()

    return encode


def deep_png(rng: np.random.Generator) -> bytes:
    return imagecodecs.png_encode(picture(rng, np.uint16))


def a_heic(rng: np.random.Generator) -> bytes:
    bits, turn = int(rng.choice([8, 10])), int(rng.integers(4))
    auxiliary = ALPHA if rng.random() < 0.5 else None
    return heic(bits, profile=ICC, xmp=b"<x/>", turn=turn, auxiliary=auxiliary)


ENCODERS = {
    "JPEG": through_pillow("JPEG"),
    "progressive JPEG": through_pillow("JPEG", progressive=True),
    "PNG": through_pillow("PNG"),
    "16-bit PNG": deep_png,
    "WebP": through_pillow("WEBP"),
    "TIFF": through_tifffile(np.uint8),
    "LZW TIFF": through_tifffile(np.uint8, compression="lzw"),
    "JPEG TIFF": through_tifffile(np.uint8, compression="jpeg", rowsperstrip=16),
    "16-bit TIFF": through_tifffile(np.uint16, compression="zlib", predictor=True),
    "tiled TIFF": through_tifffile(np.uint8, tile=(16, 16), rowsperstrip=None),
    "BMP": through_pillow("BMP"),
    "GIF": through_pillow("GIF"),
    "PPM": through_pillow("PPM"),
    "JPEG 2000": through_pillow("JPEG2000"),
}
Image.init()
if "AVIF" in Image.SAVE:
    ENCODERS["AVIF"] = through_pillow("AVIF")
ENCODERS["HEIC"] = a_heic


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip bytes, cut the file, or splice a piece of it elsewhere; most often near the header."""
    data = bytearray(data)
    reach = min(len(data), 400) if rng.random() < 0.6 else len(data)
    how = rng.integers(4)
    if how == 0:
        return bytes(data[: rng.integers(1, len(data))])
    if how == 1:
        start, end, at = (int(place) for place in rng.integers(0, len(data), 3))
        data[at:at] = data[start : min(end, start + 500)]
    elif how == 2:
        at = int(rng.integers(reach))
        data[at : at + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"])
    for at in rng.integers(0, reach, int(rng.integers(1, 6))):
        data[min(at, len(data) - 1)] = rng.integers(256)
    return bytes(data)


def test_mutated_files_are_read_or_refused(tmp_path, fault, count) -> None:
    rng = np.random.default_rng(0)
    for kind, encode in ENCODERS.items():
        whole = [encode(rng) for _ in range(5)]
        for number in range(count(30, 500)):
            (tmp_path / f"{kind}-{number}".replace(" ", "_")).write_bytes(
                mutated(whole[number % 5], rng)
            )
    paths = sorted(tmp_path.iterdir())
    for start in range(0, len(paths), 500):
        batch = paths[start : start + 500]
        run = [sys.executable, "-m", "tests.faults.reading", *map(str, batch)]
        done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=600)
        told = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
        for path in batch:
            kind = path.name.rsplit("-", 1)[0].replace("_", " ")
            with fault(f"mutated {kind}").case(path.name):
                what = told.get(path.name, f"the process ended with {done.returncode}")
                assert what in ("read", "unreadable"), what
        assert not done.stderr, done.stderr


# Whole pixels, a blemish beside them


def jpeg_options(rng: np.random.Generator) -> dict:
    options = dict(quality=int(rng.integers(30, 100)), subsampling=int(rng.integers(3)))
    options["progressive"] = bool(rng.integers(2))
    if rng.random() < 0.4:
        options["restart_marker_blocks"] = int(rng.integers(1, 9))
    return options


def jpeg(rng: np.random.Generator) -> tuple[bytes, np.ndarray]:
    """A JPEG of some kind, and the pixels that Pillow reads."""
    encoded = io.BytesIO()
    mode = str(rng.choice(["RGB", "L", "CMYK"]))
    Image.fromarray(picture(rng)).convert(mode).save(encoded, "JPEG", **jpeg_options(rng))
    image = Image.open(io.BytesIO(encoded.getvalue()))
    pixels = np.asarray(image if mode == "L" else image.convert("RGB"))
    return encoded.getvalue(), pixels.reshape(*pixels.shape[:2], -1)


def test_jpegs_whose_pixels_are_whole_are_read(tmp_path, fault, count) -> None:
    rng, path = np.random.default_rng(1), tmp_path / "a.jpg"
    for number in range(count(20, 200)):
        data, pixels = jpeg(rng)
        junk = bytes(rng.integers(0, 255, 50, dtype=np.uint8))
        for what, damaged in (
            ("no end", data[:-2]),
            ("half an end", data[:-1]),
            ("junk after the end", data + junk),
            ("junk for the end", data[:-2] + junk),
            ("a broken comment", data[:2] + b"\xff\xfe\0\x09" + junk[:7] + data[2:]),
        ):
            path.write_bytes(damaged)
            with fault("JPEG with a blemish").case(f"{what} {number}"):
                photo = read_photo(path)
                assert np.array_equal(photo.pixels, pixels)
                assert photo.notes == ["its end mark is missing, though its pixels are whole"] * (
                    what in ("no end", "half an end", "junk for the end")
                )


def test_jpegs_that_lack_pixels_are_refused(tmp_path, fault, count) -> None:
    rng, path = np.random.default_rng(2), tmp_path / "a.jpg"
    for number in range(count(60, 600)):
        data, pixels = jpeg(rng)
        cut = int(rng.integers(data.index(b"\xff\xda") + 20, len(data) - 2))
        path.write_bytes(data[:cut] + (b"\xff\xd9" if number % 3 else b""))
        with fault("JPEG that lacks pixels").case(f"{number}, cut at {cut} of {len(data)}"):
            try:
                photo = read_photo(path)
            except UnreadablePhoto as error:
                assert path.name in str(error)
                continue
            wrong = np.argwhere((photo.pixels != pixels).any(axis=2))
            if number % 3 and photo.notes == []:  # in the last block, colours are not looked at
                assert len(wrong) == 0 or (np.ptp(wrong, axis=0) <= 17).all()
            else:
                assert len(wrong) == 0 or "lacks detail" in photo.notes[0]


# PNG


def chunk(kind: bytes, contents: bytes) -> bytes:
    checksum = zlib.crc32(kind + contents)
    return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", checksum)


def packed(samples: np.ndarray, depth: int) -> bytes:
    """Rows of samples (H, W, C) as PNG stores them, each with filter 0."""
    if 0 in samples.shape:
        return b""
    rows = samples.reshape(len(samples), -1).astype(">u2" if depth == 16 else np.uint8)
    if depth < 8:
        bits = np.unpackbits(rows[..., None], axis=2)[..., 8 - depth :]
        rows = np.packbits(bits.reshape(len(rows), -1), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in rows)


PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
PASSES += [(1, 0, 2, 1)]  # Adam7: first row and column, steps of both
KINDS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
STEPS = [(kind, depth) for kind, depths in KINDS.items() for depth in depths]


class Drawn:
    """A PNG of some kind with what it should be read as.

    Attributes:
        head: its chunks before the pixels.
        data: its pixels before compression.
        pixels: (H, W, 1 or 3), alpha: (H, W) or None.
    """

    def __init__(self, rng: np.random.Generator, kind: int, depth: int) -> None:
        height, width = (int(side) for side in rng.integers(1, 40, 2))
        samples = rng.integers(0, 2**depth, (height, width, CHANNELS[kind]))
        interlaced, see_through = rng.integers(2, size=2)
        shape = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
        self.head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", shape)
        largest, full = 2**depth - 1, 65535 if depth == 16 else 255
        self.alpha = None
        if kind == 3:
            palette = rng.integers(0, 256, (2**depth, 3))
            shares = rng.integers(0, 256, 2**depth)
            self.head += chunk(b"PLTE", palette.astype(np.uint8).tobytes())
            self.pixels = palette[samples[..., 0]]
            if see_through:
                self.head += chunk(b"tRNS", shares.astype(np.uint8).tobytes())
                self.alpha = shares[samples[..., 0]]
        else:
            scaled = samples * full // largest
            self.pixels = scaled[..., : 1 if kind in (0, 4) else 3]
            if kind in (4, 6):
                self.alpha = scaled[..., -1]
            elif see_through:
                key = samples[0, 0]
                self.head += chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
                self.alpha = (samples != key).any(axis=2) * full
        passes = PASSES if interlaced else [(0, 0, 1, 1)]
        self.data = b"".join(packed(samples[r::v, c::h], depth) for r, c, v, h in passes)

    def file(self, *chunks: bytes, data: bytes | None = None) -> bytes:
        """The file, with further chunks before the pixels or with other data."""
        stream = zlib.compress(self.data if data is None else data)
        half = len(stream) // 2
        parts = [chunk(b"IDAT", stream[:half]), chunk(b"IDAT", stream[half:])]
        return b"".join([self.head, *chunks, *parts, chunk(b"IEND", b"")])

    def check(self, path: Path) -> list[str]:
        """Read it, compare, and return the notes."""
        photo = read_photo(path)
        assert np.array_equal(photo.pixels, self.pixels)
        assert (photo.alpha is None) == (self.alpha is None)
        assert self.alpha is None or np.array_equal(photo.alpha, self.alpha)
        height, width = self.pixels.shape[:2]
        assert peek(path) == (width * height, self.alpha is not None)
        return photo.notes


def test_pngs_of_all_kinds_are_read_exactly(tmp_path, fault, count) -> None:
    rng, path = np.random.default_rng(3), tmp_path / "a.png"
    for number in range(count(60, 600)):
        kind, depth = STEPS[number % len(STEPS)]
        png = Drawn(rng, kind, depth)
        path.write_bytes(png.file())
        with fault("PNG of any kind").case(f"{number}: kind {kind}, {depth} bits"):
            assert png.check(path) == []


def test_pngs_with_a_blemish_beside_the_pixels_are_read(tmp_path, fault, count) -> None:
    rng, path = np.random.default_rng(4), tmp_path / "a.png"
    noise = rng.integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(ICC))
    lost, kept = "its colour profile is damaged and left out", None
    text = "a text in it is damaged or too large and left out"
    blemishes = {
        "much text": ([chunk(b"tEXt", b"a\0" + noise)], kept),
        "much packed text": ([chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9_000_000)))], kept),
        "an endless text": ([chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**25)))], text),
        "many texts": ([chunk(b"tEXt", b"a\0" + noise[:900_000])] * 19, text),
        "a large profile": ([chunk(b"iCCP", b"x\0\0" + zlib.compress(ICC + noise))], kept),
        "a broken text": ([chunk(b"zTXt", b"a\0\0nonsense")], text),
        "a profile cut off": ([chunk(b"iCCP", b"x\0\0" + zlib.compress(ICC)[:-30])], lost),
        "a profile of noise": ([chunk(b"iCCP", noise[:500])], lost),
        "an endless profile": ([chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2**25)))], lost),
        "a wrong checksum": ([profile[:-1] + b"?"], lost),
        "a text's wrong checksum": ([chunk(b"tEXt", b"a\0b")[:-1] + b"?"], text),
        "EXIF of noise": ([chunk(b"eXIf", noise[:99])], "its EXIF is damaged and left out"),
        "an unknown chunk": ([chunk(b"abCd", noise[:99])], kept),
        "a broken animation": ([chunk(b"acTL", b"?")], kept),
    }
    for number in range(count(1, 10)):
        for what, (chunks, note) in blemishes.items():
            png = Drawn(rng, *STEPS[rng.integers(len(STEPS))])
            path.write_bytes(png.file(*chunks))
            with fault("PNG with a blemish").case(f"{what} {number}"):
                assert png.check(path) == ([note] if note else [])
    wrong = "the checksums of its pixels are wrong, though the pixels are whole"
    for number in range(count(15, 150)):
        png = Drawn(rng, *STEPS[number % len(STEPS)])
        whole = png.file()
        at = whole.index(b"IDAT") - 4
        end = at + 12 + int.from_bytes(whole[at : at + 4], "big")
        for what, data, note in (
            ("junk after the end", whole + noise[:99], []),
            ("junk for the end", whole[:-12] + noise[:99], []),
            ("no end", whole[:-12], []),
            ("no end, no checksum", whole[:-14], [wrong]),
            ("a wrong checksum", whole[: end - 4] + b"\1\2\3\4" + whole[end:], [wrong]),
        ):
            path.write_bytes(data)
            with fault("PNG with a blemish").case(f"{what} {number}"):
                assert png.check(path) == note


def test_pngs_that_lack_pixels_are_refused(tmp_path, fault, count) -> None:
    rng, path = np.random.default_rng(5), tmp_path / "a.png"
    for number in range(count(60, 600)):
        png = Drawn(rng, *STEPS[number % len(STEPS)])
        left = int(rng.integers(0, len(png.data)))
        damaged = png.file(data=png.data[:left])
        if number % 2:
            whole = png.file()
            damaged = whole[: rng.integers(len(png.head), len(whole) - 20)]
        path.write_bytes(damaged)
        with (
            fault("PNG that lacks pixels").case(f"{number}"),
            pytest.raises(UnreadablePhoto, match=r"a\.png"),
        ):
            read_photo(path)


# TIFF


IMAGES = ["png", "jpegxr", "jpeg2000", "webp", "jpeg", "lerc"]  # formats within TIFF
COMPRESSIONS = [None, "lzw", "zlib", "packbits", "zstd", "lzma", *IMAGES]
LOSSY = {"webp": 80, "jpeg": 80, "jpeg2000": 3}  # and by how much of 255 at most


def tiff_samples(rng: np.random.Generator, dtype: type, channels: int) -> np.ndarray:
    colour = picture(rng, dtype)
    return np.dstack([colour, 255 - colour[..., :1], colour[..., 1:2]])[..., :channels]


def test_tiffs_of_all_kinds_are_read(tmp_path, fault, count) -> None:
    rng, path = np.random.default_rng(6), tmp_path / "a.tif"
    for number in range(count(len(COMPRESSIONS) * 8, 600)):
        compression = COMPRESSIONS[number % len(COMPRESSIONS)]
        channels = int(rng.choice([1, 3, 4] if compression in IMAGES else [1, 2, 3, 4]))
        dtype = rng.choice([np.uint8, np.uint16])
        if compression in ("webp", "jpeg"):
            dtype, channels = np.uint8, 3
        samples = tiff_samples(rng, dtype, channels)
        how = dict(photometric="rgb" if channels > 2 else "minisblack", compression=compression)
        how["extrasamples"] = ["unassalpha"] if channels in (2, 4) else None
        how["byteorder"] = "<" if compression in IMAGES else str(rng.choice(["<", ">"]))
        if rng.random() < 0.5 and compression != "jpeg":
            how["tile"] = (16, 32)
        stored = samples if channels > 1 else samples[..., 0]
        if channels > 1 and rng.random() < 0.3 and compression not in IMAGES:
            stored, how["planarconfig"] = np.moveaxis(samples, -1, 0), "separate"
        tifffile.imwrite(path, stored, metadata=None, **how)
        with fault("TIFF of any kind").case(f"{number}: {how}, {channels} {np.dtype(dtype)}"):
            photo = read_photo(path)
            near = LOSSY.get(compression, 0) * np.iinfo(dtype).max / 255
            colours = samples[..., :-1] if channels in (2, 4) else samples
            assert photo.pixels.dtype == dtype
            assert np.abs(photo.pixels.astype(int) - colours).max() <= near
            assert (photo.alpha is None) == (channels in (1, 3))
            assert photo.notes == []


def test_tiffs_that_lack_pixels_are_refused(tmp_path, fault, count) -> None:
    rng, path = np.random.default_rng(7), tmp_path / "a.tif"
    losses = {"no place": ("dataoffsets", 0), "no bytes": ("databytecounts", 0)}
    losses |= {"beyond the end": ("dataoffsets", 10**8), "too long": ("databytecounts", 10**8)}
    for number in range(count(60, 600)):
        dtype = (np.uint8, np.uint16)[number % 2]
        compression = [None, "zlib", "lzw", "packbits"][number % 4]
        tifffile.imwrite(
            path, picture(rng, dtype), photometric="rgb", rowsperstrip=5, compression=compression
        )
        what, (kind, value) = list(losses.items())[number // 4 % 4]
        with tifffile.TiffFile(path, mode="r+b") as file:
            page = file.pages.first
            values = list(getattr(page, kind))
            values[rng.integers(len(values))] = value
            tag = page.tags["StripOffsets" if kind == "dataoffsets" else "StripByteCounts"]
            tag.overwrite(values, dtype="I")
        refused = pytest.raises(UnreadablePhoto, match=r"a\.tif")
        with fault("TIFF that lacks pixels").case(f"{what} {number}, {compression}"), refused:
            read_photo(path)


def test_tiff_headers_that_lie_are_refused(tmp_path, fault, count) -> None:
    rng, path = np.random.default_rng(8), tmp_path / "a.tif"
    lies = dict.fromkeys(("ImageWidth", "ImageLength"), r"a\.tif")
    lies |= dict.fromkeys(("TileWidth", "TileLength"), r"a\.tif .*tiles are far larger")
    lies["SamplesPerPixel"] = r"a\.tif .* 60000 channels"
    for number in range(count(10, 60)):
        for name, sentence in lies.items():
            tifffile.imwrite(
                path, picture(rng), photometric="rgb", tile=(16, 16), compression="zlib"
            )
            with tifffile.TiffFile(path, mode="r+b") as file:
                tag = file.pages.first.tags[name]
                many = 60_000 if name == "SamplesPerPixel" else 2 ** int(rng.integers(21, 31))
                tag.overwrite(many, dtype="H" if many < 2**16 else "I")
            refused = pytest.raises(UnreadablePhoto, match=sentence)
            with fault("TIFF that lies").case(f"{name} {many} {number}"), refused:
                read_photo(path)


# Other formats, and files that are no photographs


def test_files_cut_off_are_refused_or_whole(tmp_path, fault, count) -> None:
    rng, path = np.random.default_rng(9), tmp_path / "cut"
    for number in range(count(5, 60)):
        for kind, encode in ENCODERS.items():
            if kind == "progressive JPEG":  # whose pixels a cut blurs; see above
                continue
            data = encode(rng)
            path.write_bytes(data)
            whole = read_photo(path).pixels
            length = int(rng.integers(len(data) // 3, len(data)))
            path.write_bytes(data[:length])
            with fault("file cut off").case(f"{kind} {number}: {length} of {len(data)}"):
                try:
                    assert np.array_equal(read_photo(path).pixels, whole)
                except UnreadablePhoto as error:
                    assert str(path) in str(error)


STAND_INS = {
    "Git LFS pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12\n",
    "HTML page": "<!DOCTYPE html>\n<title>{}</title>",
    "HTML page ": "\n <HTML><head>{}</head></HTML>",
    "HTML page  ": '<?xml version="1.0"?>\n<html xmlns="x">{}</html>',
    "XML text": '\ufeff<?xml version="1.0"?><Error><Code>{}</Code></Error>',
    "JSON text": '{{"message": "Not Found {}"}}',
}


def test_files_that_stand_in_for_photographs_are_recognised(tmp_path, fault, count) -> None:
    for number in range(count(2, 10)):
        for what, text in STAND_INS.items():
            for suffix in (".jpg", ".png", ".tif"):
                path = tmp_path / f"{number}{suffix}"
                path.write_text(text.format(number), encoding="utf-8")
                named = pytest.raises(
                    UnreadablePhoto, match=f"{number}{suffix} is an? {what.strip()}"
                )
                with fault("no photograph").case(f"{what} {suffix}"), named:
                    read_photo(path)
