"""Photographs in and out."""

import errno
import io
import resource
import signal
import struct
import warnings
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from data import pillow_formats
from data import png as png_format
from data.images import (
    Photo,
    UnreadablePhoto,
    UnwritablePhoto,
    peek,
    read_photo,
    read_rgb,
    to_8_bits,
    upright_size,
    write_photo,
)
from data.metadata import upright_exif
from utils.errors import UserError

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MAKE, ORIENTATION, EXPOSURE, EXIF_IFD, GPS_IFD = 0x010F, 0x0112, 0x829A, 0x8769, 0x8825


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)


def exif(orientation: int = 1) -> Image.Exif:
    tags = Image.Exif()
    tags[MAKE] = "Maker"
    tags[ORIENTATION] = orientation
    tags[EXIF_IFD] = {EXPOSURE: 0.01, 0x927C: b"maker note"}
    tags[GPS_IFD] = {1: "N", 2: (48.0, 8.0, 30.0)}
    return tags


def chunk(kind: bytes, contents: bytes) -> bytes:
    checksum = zlib.crc32(kind + contents)
    return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", checksum)


def check_exif(path: Path) -> None:
    with Image.open(path) as image:
        tags = image.getexif()
        assert tags[MAKE] == "Maker"
        assert tags.get(ORIENTATION, 1) == 1
        assert float(tags.get_ifd(EXIF_IFD)[EXPOSURE]) == pytest.approx(0.01)
        assert tuple(map(float, tags.get_ifd(GPS_IFD)[2])) == (48.0, 8.0, 30.0)
        assert image.info.get("icc_profile") == ICC


# Reading


def png(pixels: np.ndarray, *chunks: bytes) -> bytes:
    png = imagecodecs.png_encode(np.ascontiguousarray(pixels))
    return png[:33] + b"".join(chunks) + png[33:]


def write_any(path: Path, pixels: np.ndarray, tags: Image.Exif) -> None:
    """Write uint8 pixels, or the same with 16 bits, by other means than ours."""
    sixteen_bit = pixels.astype(np.uint16) * 257
    if path.name.endswith("16.png"):
        path.write_bytes(png(sixteen_bit, chunk(b"eXIf", tags.tobytes()[6:])))
    elif path.name.endswith("16.tif"):
        turn = (ORIENTATION, 3, 1, tags[ORIENTATION], True)
        tifffile.imwrite(path, sixteen_bit, photometric="rgb", extratags=[turn])
    elif path.suffix == ".webp":
        Image.fromarray(pixels).save(path, exif=tags, lossless=True)
    else:
        Image.fromarray(pixels).save(path, exif=tags.tobytes(), quality=100)


@pytest.mark.parametrize("name", ["8.png", "8.jpg", "8.webp", "8.tif", "16.png", "16.tif"])
def test_orientation_is_applied_once(tmp_path: Path, name: str) -> None:
    stored = np.repeat(np.repeat(noise(3, 5, 1), 16, axis=0), 16, axis=1)  # blocks survive JPEG
    stored = np.repeat(stored, 3, axis=2)
    for orientation in range(1, 9):
        tags = exif(orientation)
        Image.fromarray(stored).save(tmp_path / "reference.png", exif=tags)
        with Image.open(tmp_path / "reference.png") as image:
            upright = np.array(ImageOps.exif_transpose(image)).astype(int)
        write_any(tmp_path / name, stored, tags)
        photo = read_photo(tmp_path / name)
        assert np.abs(to_8_bits(photo.pixels) - upright).max() <= 3
        assert upright_size(tmp_path / name) == upright.shape[1::-1]
        write_photo(photo, tmp_path / "again.jpg")
        assert np.abs(read_rgb(tmp_path / "again.jpg") - upright).max() <= 12  # not turned again


@pytest.mark.parametrize(
    ("mode", "channels", "alpha"),
    [("1", 1, 0), ("L", 1, 0), ("LA", 1, 1), ("P", 3, 0), ("RGB", 3, 0), ("RGBA", 3, 1)],
)
def test_modes_of_png(tmp_path: Path, mode: str, channels: int, alpha: int) -> None:
    colours = Image.fromarray(noise(20, 30, 4)[..., : 3 if mode == "P" else 4]).convert(mode)
    colours.save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert photo.pixels.shape == (20, 30, channels)
    assert photo.pixels.dtype == np.uint8
    assert (photo.alpha is not None) == alpha
    expected = np.array(colours.convert("L" if channels == 1 else "RGB"))
    assert (photo.pixels == expected.reshape(20, 30, channels)).all()
    assert read_rgb(tmp_path / "a.png").shape == (20, 30, 3)


def test_transparent_palette_entries_and_colours_become_alpha(tmp_path: Path) -> None:
    palette = Image.fromarray(noise(20, 30, 3)).quantize(16)
    palette.save(tmp_path / "p.png", transparency=3)
    palette.save(tmp_path / "p.gif", transparency=3)
    grey = noise(20, 30)
    Image.fromarray(grey).save(tmp_path / "l.png", transparency=int(grey[4, 5]))
    sixteen_bit = noise(20, 30, 3, dtype=np.uint16)
    key = chunk(b"tRNS", struct.pack(">3H", *sixteen_bit[4, 5]))
    (tmp_path / "16.png").write_bytes(png(sixteen_bit, key))

    for name in ("p.png", "p.gif"):
        alpha = read_photo(tmp_path / name).alpha
        assert ((alpha == 0) == (np.array(palette) == 3)).all(), name
    assert ((read_photo(tmp_path / "l.png").alpha == 0) == (grey == grey[4, 5])).all()
    photo = read_photo(tmp_path / "16.png")
    assert (photo.pixels == sixteen_bit).all()
    assert np.argwhere(photo.alpha == 0).tolist() == [[4, 5]]
    assert all(peek(tmp_path / name) == (600, True) for name in ("p.png", "l.png", "16.png"))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_stay_16_bits(tmp_path: Path, suffix: str, channels: int) -> None:
    samples = noise(20, 30, channels, dtype=np.uint16)
    source, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    if suffix == ".png":
        icc = chunk(b"iCCP", b"x\0\0" + zlib.compress(ICC))
        source.write_bytes(png(samples, icc, chunk(b"eXIf", exif().tobytes()[6:])))
    else:
        extra = ["unassalpha"] if channels in (2, 4) else None
        kind = "rgb" if channels > 2 else "minisblack"
        stored = samples if channels > 1 else samples[..., 0]
        tifffile.imwrite(
            source, stored, photometric=kind, extrasamples=extra, iccprofile=ICC, compression="lzw"
        )
    photo = read_photo(source)
    grey_with_alpha = suffix == ".tif" and channels == 2  # which Pillow does not read
    assert len(write_photo(photo, target)) == grey_with_alpha
    if suffix == ".png":
        written = imagecodecs.png_decode(target.read_bytes())
        check_exif(target)
    else:
        written = tifffile.imread(target)
        with tifffile.TiffFile(target) as file:
            assert file.pages.first.iccprofile == ICC
    assert written.dtype == np.uint16
    written = written[..., 2:] if grey_with_alpha else written
    assert (written.reshape(samples.shape) == samples).all()
    assert photo.icc_profile == ICC
    colours = samples[..., :-1] if channels in (2, 4) else samples
    assert (photo.pixels == colours).all()


def test_sixteen_bit_tiffs_of_other_programs(tmp_path: Path) -> None:
    grey, colour = noise(20, 30, dtype=np.uint16), noise(20, 30, 3, dtype=np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, grey, photometric="miniswhite")
    assert (read_photo(path).pixels[..., 0] == 65535 - grey).all()
    tifffile.imwrite(
        path, np.moveaxis(colour, 2, 0), photometric="rgb", planarconfig="separate", byteorder=">"
    )
    assert (read_photo(path).pixels == colour).all()
    alpha = np.full((20, 30, 1), 32768, np.uint16)
    premultiplied = np.dstack([np.rint(colour * (32768 / 65535)).astype(np.uint16), alpha])
    tifffile.imwrite(path, premultiplied, photometric="rgb", extrasamples=["assocalpha"])
    photo = read_photo(path)
    assert (photo.alpha == 32768).all()
    assert np.abs(photo.pixels.astype(int) - colour).max() <= 1
    tifffile.imwrite(path, np.stack([grey, grey]), photometric="minisblack")  # two pages
    assert "only the first" in read_photo(path).notes[0]


def test_only_what_is_alpha_makes_a_sixteen_bit_tiff_transparent(tmp_path: Path) -> None:
    samples, path = noise(20, 30, 5, dtype=np.uint16), tmp_path / "a.tif"
    for kinds in (["unspecified"], ["unspecified", "unassalpha"]):
        stored = samples[..., : 3 + len(kinds)]
        tifffile.imwrite(path, stored, photometric="rgb", extrasamples=kinds)
        photo = read_photo(path)
        assert (photo.pixels == samples[..., :3]).all()
        assert "channels" in photo.notes[0]
        assert peek(path) == (600, photo.alpha is not None) == (600, len(kinds) == 2)
    assert (photo.alpha == samples[..., 4]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiffs_of_inks_may_have_alpha(tmp_path: Path, dtype: type) -> None:
    path, full = tmp_path / "a.tif", np.iinfo(dtype).max
    inks, alpha = noise(20, 30, 4, dtype=dtype), noise(20, 30, dtype=dtype)
    how = dict(photometric="separated", extrasamples=["unassalpha"])
    tifffile.imwrite(path, np.dstack([inks, alpha]), **how)
    photo = read_photo(path)
    light = (full - inks.astype(np.int64)) / full
    expected = light[..., :3] * light[..., 3:] * full
    assert np.abs(photo.pixels - expected).max() <= 1
    assert photo.pixels.dtype == dtype
    assert (photo.alpha == alpha).all()
    tifffile.imwrite(path, inks, photometric="separated", extratags=[(332, 3, 1, 2, True)])
    with pytest.raises(UnreadablePhoto, match="its inks are others than cyan"):
        read_photo(path)


@pytest.mark.parametrize("compression", ["jpeg2000", 33003, 33005, "jpegxl", "jpegxr", "zlib"])
def test_tiffs_of_inks_and_alpha_may_be_compressed(tmp_path: Path, compression: str | int) -> None:
    plain, packed, samples = tmp_path / "a.tif", tmp_path / "b.tif", noise(20, 30, 5)
    how = dict(photometric="separated", extrasamples=["unassalpha"], metadata=None)
    tifffile.imwrite(plain, samples, **how)
    tifffile.imwrite(packed, samples, compression=compression, **how)
    expected, photo = read_photo(plain), read_photo(packed)
    assert np.array_equal(photo.pixels, expected.pixels)
    assert np.array_equal(photo.alpha, expected.alpha)
    assert photo.pixels.dtype == np.uint8 and photo.notes == []


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "packbits"])
def test_faxes_are_read(tmp_path: Path, compression: str) -> None:
    fax = Image.fromarray(noise(20, 30)).convert("1")
    fax.save(tmp_path / "a.tif", compression=compression)
    assert (read_photo(tmp_path / "a.tif").pixels[..., 0] == np.asarray(fax) * 255).all()


def test_lab_becomes_srgb(tmp_path: Path) -> None:
    colours = Image.fromarray(noise(3, 4, 3) // 2 + 64).resize((30, 20))
    to_lab = (ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(colours, ImageCms.buildTransform(*to_lab))
    lab.save(tmp_path / "8.tif")
    stored = np.asarray(lab).astype(np.uint16) * [257, 256, 256]  # a and b in 1/256
    stored = stored.astype(np.uint16)
    tags = dict(photometric=8, metadata=None)
    tifffile.imwrite(tmp_path / "16.tif", stored, **tags)
    for name, dtype in (("8.tif", np.uint8), ("16.tif", np.uint16)):
        photo = read_photo(tmp_path / name)
        assert photo.pixels.dtype == dtype
        off = np.abs(to_8_bits(photo.pixels).astype(int) - np.asarray(colours))
        assert off.mean() < 0.7
        assert off.max() <= 12  # Lab is coarse where colours are dark


def test_tiffs_of_few_bits_and_palettes(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for bits in (1, 2, 4, 10, 12, 14):
        largest, full = 2**bits - 1, 255 if bits <= 8 else 65535
        levels = noise(20, 31, dtype=np.uint16) % (largest + 1)
        dtype = bool if bits == 1 else np.uint8 if bits <= 8 else np.uint16
        tifffile.imwrite(path, levels.astype(dtype), bitspersample=bits, photometric="minisblack")
        expected = np.rint(levels / largest * full)
        assert np.abs(read_photo(path).pixels[..., 0] - expected).max() <= (bits > 8), bits
    palette = Image.fromarray(noise(20, 30, 3)).quantize(200)
    palette.save(path, compression="tiff_lzw")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (read_photo(path).pixels == np.asarray(palette.convert("RGB"))).all()


def test_a_tiffs_further_channels_are_left_out_with_a_note(tmp_path: Path) -> None:
    samples = noise(20, 30, 5)
    tifffile.imwrite(tmp_path / "a.tif", samples, photometric="rgb", extrasamples=[0, 0])
    photo = read_photo(tmp_path / "a.tif")
    assert (photo.pixels == samples[..., :3]).all()
    assert photo.alpha is None
    assert photo.notes == ["its channels beyond colours and alpha are left out"]


def test_the_first_page_that_is_no_preview_is_read(tmp_path: Path) -> None:
    path, pixels, small = tmp_path / "a.tif", noise(20, 30, 3), noise(5, 6, 3)
    how = dict(photometric="rgb", metadata=None)
    with tifffile.TiffWriter(path) as file:
        file.write(small, subfiletype=1, extratags=[(MAKE, 2, 0, "Wrong", True)], **how)
        file.write(
            pixels, extratags=[(MAKE, 2, 0, "Maker", True), (ORIENTATION, 3, 1, 3, True)], **how
        )
    photo = read_photo(path)
    assert (photo.pixels == pixels[::-1, ::-1]).all()
    assert b"Maker" in photo.exif and photo.notes == []
    with tifffile.TiffWriter(path) as file:  # below the preview
        file.write(small, subfiletype=1, subifds=1, **how)
        file.write(pixels, **how)
    assert (read_photo(path).pixels == pixels).all()
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, **how)
        file.write(small, subfiletype=1, **how)
    assert (read_photo(path).pixels == pixels).all() and read_photo(path).notes == []
    tifffile.imwrite(path, small, subfiletype=1, **how)  # there is nothing else
    assert (read_photo(path).pixels == small).all()


def test_a_damaged_second_page_costs_only_itself(tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.tif", noise(20, 30, 3)
    with tifffile.TiffWriter(path) as file:
        for _ in range(2):
            file.write(pixels, photometric="rgb", metadata=None)
    with tifffile.TiffFile(path) as file:
        second = file.pages[1].offset
    whole = path.read_bytes()
    path.write_bytes(whole[:second] + b"\xff\xff" * 9 + whole[second + 18 :])
    assert (read_photo(path).pixels == pixels).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_big_tiff_keeps_its_orientation_and_exif(tmp_path: Path, dtype: type) -> None:
    pixels = noise(20, 30, 3, dtype=dtype)
    tags = [(ORIENTATION, 3, 1, 3, True), (MAKE, 2, 0, "Maker", True)]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", bigtiff=True, iccprofile=ICC, extratags=tags)
    photo = read_photo(path)
    assert (photo.pixels == pixels[::-1, ::-1]).all()
    assert (photo.icc_profile, photo.notes) == (ICC, [])
    assert b"Maker" in photo.exif


def profile_where_only_black_counts() -> bytes:
    """A CMYK profile, the smallest there is, in which only black ink darkens."""
    ramp = bytes(range(256))
    corners = (bytes([0 if ink % 2 else 255, 128, 128]) for ink in range(16))  # black runs fastest
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])  # 4 inks to Lab on a grid of 2
    table += struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))  # the unit matrix
    table += ramp * 4 + b"".join(corners) + ramp * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)  # D50
    tags = struct.pack(">I", 2)
    tags += b"A2B0" + struct.pack(">2I", 156, len(table))
    tags += b"wtpt" + struct.pack(">2I", 156 + len(table), len(white))
    head = struct.pack(">I4sI", 128 + len(tags) + len(table) + len(white), b"test", 0x02400000)
    head += b"prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28) + white[8:]
    return head.ljust(128, b"\0") + tags + table + white


def test_cmyk_becomes_srgb_through_its_profile(tmp_path: Path) -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    cyan.save(tmp_path / "cyan.tif", icc_profile=profile_where_only_black_counts())
    photo = read_photo(tmp_path / "cyan.tif")
    assert photo.pixels.min() >= 254
    profile = ImageCms.ImageCmsProfile(io.BytesIO(photo.icc_profile))
    assert profile.profile.xcolor_space == "RGB "  # and no longer the one of the inks
    write_photo(photo, tmp_path / "cyan.png")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "bare.jpg", quality=100)
    photo = read_photo(tmp_path / "bare.jpg")
    assert photo.pixels[0, 0].tolist() == pytest.approx([255, 0, 0], abs=3)
    assert photo.icc_profile is None
    # An RGB profile is no profile for four inks: the colours are converted without it.
    Image.new("CMYK", (8, 8)).save(tmp_path / "wrong.jpg", icc_profile=ICC)
    photo = read_photo(tmp_path / "wrong.jpg")
    assert "CMYK profile" in photo.notes[0]
    assert photo.icc_profile is None


def test_read_rgb_rounds_16_bits_and_repeats_grey(tmp_path: Path) -> None:
    levels = np.array([[0, 128, 129, 257 * 100 + 128, 257 * 100 + 129, 65535]], np.uint16)
    (tmp_path / "a.png").write_bytes(png(levels))
    assert read_rgb(tmp_path / "a.png")[0].tolist() == [[v] * 3 for v in (0, 0, 1, 100, 101, 255)]


def test_unreadable_files_are_named_with_the_reason(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(whole, "JPEG")
    sixteen_bit = png(noise(64, 64, 3, dtype=np.uint16))
    tifffile.imwrite(tmp_path / "whole.tif", noise(64, 64, 3, dtype=np.uint16), photometric="rgb")
    broken = {
        "empty.jpg": b"",
        "text.jpg": b"no photograph",
        "truncated.jpg": whole.getvalue()[:-500],
        "head.jpg": whole.getvalue()[:100],
        "truncated.png": sixteen_bit[:-5000],
        "truncated.tif": (tmp_path / "whole.tif").read_bytes()[:-5000],
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n",
        "huge.png": b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", b""),
    }
    reasons = {"empty.jpg": "zero bytes", "text.jpg": "not an image", "huge.png": "500 megapixels"}
    for name, contents in broken.items():
        (tmp_path / name).write_bytes(contents)
        for read in (read_photo, read_rgb):
            with pytest.raises(UnreadablePhoto, match=reasons.get(name, "cannot|not")) as error:
                read(tmp_path / name)
            assert name in str(error.value)
    for dtype, reason in (("f4", "32-bit floats"), ("i1", "8-bit signed"), ("i2", "16-bit signed")):
        tifffile.imwrite(tmp_path / "odd.tif", np.zeros((8, 8, 3), dtype), photometric="rgb")
        with pytest.raises(UnreadablePhoto, match=reason):
            read_photo(tmp_path / "odd.tif")
    for dtype in (np.uint8, np.uint16):
        how = dict(photometric="minisblack", volumetric=True, tile=(4, 16, 16))
        tifffile.imwrite(tmp_path / "odd.tif", noise(4, 16, 16, dtype=dtype), **how)
        with pytest.raises(UnreadablePhoto, match="a volume of 4 slices"):
            read_photo(tmp_path / "odd.tif")
    with pytest.raises(UnreadablePhoto, match="missing"):
        read_photo(tmp_path / "missing.jpg")
    assert peek(tmp_path / "text.jpg") == (0, False)


def test_a_photo_of_200_megapixels_is_no_bomb(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert peek(tmp_path / "a.png") == (200_000_000, False)


# Writing


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("source", ["a.jpg", "a.tif"])
def test_profile_and_exif_travel(tmp_path: Path, source: str, suffix: str) -> None:
    image = Image.fromarray(noise(20, 30, 3))
    image.save(tmp_path / source, exif=exif(3).tobytes(), icc_profile=ICC)
    write_photo(read_photo(tmp_path / source), tmp_path / f"b{suffix}")
    check_exif(tmp_path / f"b{suffix}")
    write_photo(read_photo(tmp_path / f"b{suffix}"), tmp_path / f"c{suffix}")
    check_exif(tmp_path / f"c{suffix}")


def test_the_old_thumbnail_is_dropped_and_maker_notes_stay_in_place() -> None:
    # One directory with an orientation and a maker note's pointer, then a thumbnail's directory.
    for order, mark in (("<", b"II"), (">", b"MM")):
        first = struct.pack(f"{order}H", 1) + struct.pack(f"{order}HHIHH", ORIENTATION, 3, 1, 6, 0)
        raw = (
            mark + struct.pack(f"{order}HI", 42, 8) + first + struct.pack(f"{order}I", 99) + b"note"
        )
        patched = upright_exif(b"Exif\0\0" + raw, 30, 20)
        expected = first[:-4] + struct.pack(f"{order}HH", 1, 0) + struct.pack(f"{order}I", 0)
        assert patched == raw[:8] + expected + b"note"
    assert upright_exif(b"Exif\0\0II*\0\x08\0\0\0\xff\xff", 30, 20) is None
    assert upright_exif(b"nonsense", 30, 20) is None


def test_damaged_exif_does_not_stop_a_photo(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[MAKE] = "Maker"
    raw = bytearray(tags.tobytes()[6:])
    raw[12:14] = b"\0\xff"  # no such type
    odd = Photo(noise(20, 30, 3), exif=bytes(raw))
    for suffix in (".png", ".tif", ".jpg", ".webp"):
        write_photo(odd, tmp_path / f"odd{suffix}")
        assert read_photo(tmp_path / f"odd{suffix}").pixels.shape == (20, 30, 3)

    Image.fromarray(odd.pixels).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    text = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  10\nzzzz\n")
    for name, damaged in (("b.png", chunk(b"eXIf", b"MM")), ("c.png", chunk(b"zTXt", text))):
        (tmp_path / name).write_bytes(png(noise(20, 30, 3), damaged))
    for name in ("a.jpg", "b.png", "c.png"):
        photo = read_photo(tmp_path / name)
        assert photo.pixels.shape == (20, 30, 3)
        assert photo.exif is None
        assert photo.notes == ["its EXIF is damaged and left out"]
        assert upright_size(tmp_path / name) == (30, 20)


def test_text_too_large_for_pillow_does_not_cost_a_png_its_exif(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(2**22))
    texts = [chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + packed)]
    texts.append(chunk(b"eXIf", exif(6).tobytes()[6:]))
    (tmp_path / "a.png").write_bytes(png(noise(20, 30, 3), *texts))
    photo = read_photo(tmp_path / "a.png")
    assert photo.pixels.shape == (30, 20, 3)
    assert b"Maker" in photo.exif
    assert photo.notes == []


def test_a_damaged_profile_does_not_stop_a_jpeg(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(noise(20, 30, 3)).save(whole, "JPEG", icc_profile=ICC)
    (tmp_path / "a.jpg").write_bytes(whole.getvalue().replace(b"PROFILE\0\1\1", b"PROFILE\0\1\2"))
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.pixels.shape == (20, 30, 3)
    assert (photo.icc_profile, photo.notes) == (
        None,
        ["its colour profile is damaged and left out"],
    )


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_alpha_is_kept_untouched(tmp_path: Path, suffix: str) -> None:
    photo = Photo(noise(20, 30, 3), alpha=noise(20, 30) // 128 * 255)
    write_photo(photo, tmp_path / f"a{suffix}")
    again = read_photo(tmp_path / f"a{suffix}")
    assert (again.alpha == photo.alpha).all()
    if suffix != ".webp":  # which loses a little
        assert (again.pixels == photo.pixels).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (1, 7, 3), (7, 1, 1)])
def test_the_smallest_photographs(tmp_path: Path, shape: tuple[int, ...]) -> None:
    for suffix in (".png", ".tif", ".bmp"):
        for dtype in (np.uint8, np.uint16):
            height, width, channels = shape  # a slice, as colours beside alpha are
            photo = Photo(noise(height, width, channels + 1, dtype=dtype)[..., :channels])
            write_photo(photo, tmp_path / f"a{suffix}")
            expected = to_8_bits(photo.pixels) if suffix == ".bmp" else photo.pixels
            assert (read_photo(tmp_path / f"a{suffix}").pixels == expected).all()


def test_grey_stays_grey(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg", ".tif", ".bmp"):
        write_photo(Photo(noise(20, 30, 1)), tmp_path / f"a{suffix}")
        with Image.open(tmp_path / f"a{suffix}") as image:
            assert image.mode == "L"


def test_what_a_format_cannot_hold_is_said(tmp_path: Path) -> None:
    sixteen_bit = Photo(noise(20, 30, 3, dtype=np.uint16))
    assert "8 bits" in write_photo(sixteen_bit, tmp_path / "a.jpg")[0]
    see_through = Photo(noise(20, 30, 3), alpha=noise(20, 30))
    for name in ("b.jpg", "b.bmp"):
        with pytest.raises(UnwritablePhoto, match="alpha"):
            write_photo(see_through, tmp_path / name)
    with pytest.raises(UnwritablePhoto, match="70000 x 1 pixels"):
        write_photo(Photo(np.zeros((1, 70_000, 3), np.uint8)), tmp_path / "c.jpg")
    long = Photo(noise(20, 30, 3), exif=exif().tobytes()[6:] + bytes(70_000))
    assert "EXIF is left out, as a jpg has no room" in write_photo(long, tmp_path / "d.jpg")[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "d.jpg"]


def test_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    """Under a limit on the size of files, where writing fails as it does on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        for suffix in (".png", ".jpg", ".webp", ".tif", ".bmp"):
            for dtype in (np.uint8, np.uint16):
                with pytest.raises(UserError) as error:
                    write_photo(Photo(noise(99, 99, 3, dtype=dtype)), tmp_path / f"a{suffix}")
                assert error.value.__cause__.errno == errno.EFBIG, suffix
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_more_than_8_bits_are_kept(tmp_path: Path) -> None:
    deep = noise(40, 50, 4, dtype=np.uint16)
    jpeg2k, avif = imagecodecs.jpeg2k_encode, imagecodecs.avif_encode
    for channels in (1, 2, 3, 4):
        samples = deep[..., :channels].squeeze()
        files = {
            "16.jp2": (jpeg2k(samples, level=0), samples),
            "12.jp2": (jpeg2k(samples >> 4, level=0, bitspersample=12), (samples >> 4) / 4095),
            "8.jp2": (jpeg2k(to_8_bits(samples), level=0), to_8_bits(samples)),
        }
        if channels > 2:
            files |= {
                "10.avif": (avif(samples >> 6, level=100, bitspersample=10), (samples >> 6) / 1023),
                "12.avif": (avif(samples >> 4, level=100, bitspersample=12), (samples >> 4) / 4095),
            }
        for name, (contents, expected) in files.items():
            (tmp_path / name).write_bytes(contents)
            photo = read_photo(tmp_path / name)
            assert (photo.pixels.dtype == np.uint8) == name.startswith("8."), name
            expected = expected.reshape(40, 50, channels)
            expected = expected * 65535 if expected.dtype == float else expected
            colours = expected[..., : 3 if channels > 2 else 1]
            assert np.abs(photo.pixels - colours.astype(float)).max() <= 1, (name, channels)
            if channels in (2, 4):
                assert np.abs(photo.alpha - expected[..., -1].astype(float)).max() <= 1
            assert photo.notes == []


def test_more_than_8_bits_that_cannot_be_kept_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a grey AVIF, and where imagecodecs was built without the decoder."""
    deep, path = noise(40, 50, 3, dtype=np.uint16), tmp_path / "a"
    note = ["read with only 8 bits a colour; save it as png or tif to keep all"]
    path.write_bytes(imagecodecs.avif_encode(deep[..., 0] >> 6, bitspersample=10))
    assert read_photo(path).notes == note
    path.write_bytes(b"P5 50 40 1023\n" + (deep[..., 0] >> 6).astype(">u2").tobytes())
    assert read_photo(path).notes == []
    path.write_bytes(imagecodecs.jpeg2k_encode(deep, level=0))
    monkeypatch.setitem(pillow_formats.AVAILABLE, "JPEG2000", False)
    assert (read_photo(path).notes, read_photo(path).pixels.dtype) == (note, np.uint8)


def test_a_png_of_a_side_that_nobody_reads_is_not_written(tmp_path: Path) -> None:
    for kind in (np.uint8, np.uint16):
        with pytest.raises(UnwritablePhoto, match="save it as tif"):
            write_photo(Photo(np.zeros((1, 1_000_001, 3), kind)), tmp_path / "long.png")


def test_transparency_that_no_palette_has_is_left_out(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((4, 4), np.uint8), "P")
    image.putpalette([1, 2, 3, 4, 5, 6])
    image.save(tmp_path / "a.png", bits=8, transparency=bytes(2))
    sound = (tmp_path / "a.png").read_bytes()
    start = sound.index(b"tRNS") - 4
    chunk, rest = sound[start : start + 14], sound[:start] + sound[start + 14 :]
    for name, place, length in (("longer", start, 3), ("earlier", sound.index(b"PLTE") - 4, 2)):
        new = png_format.make_chunk(b"tRNS", bytes(length)) if length != 2 else chunk
        (tmp_path / f"{name}.png").write_bytes(rest[:place] + new + rest[place:])
        assert not peek(tmp_path / f"{name}.png")[1]
        photo = read_photo(tmp_path / f"{name}.png")
        assert photo.alpha is None and any("transparency" in note for note in photo.notes)
    assert peek(tmp_path / "a.png")[1]


def test_a_grey_profile_is_applied_where_grey_becomes_rgb(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8, 1) * 4
    profile = imagecodecs.cms_profile("gray", gamma=1.0)
    photo = Photo(grey, icc_profile=profile)
    assert any("converted to sRGB" in note for note in write_photo(photo, tmp_path / "a.webp"))
    with Image.open(tmp_path / "a.webp") as image:
        assert image.mode == "RGB" and "icc_profile" not in image.info
    assert not write_photo(photo, tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png").icc_profile == profile
