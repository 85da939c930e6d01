"""Which metadata reach the result: what the README's table says, and no more."""

import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from data.images import Photo, UnwritablePhoto, read_photo, write_photo
from data.metadata import Text
from data.png import make_chunk
from tests.heif import ALPHA, GAIN_MAP, heic

README = Path(__file__).resolve().parents[1] / "README.md"
SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WebP": ".webp", "HEIC": ".heic"}
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><a>\xc3\xa4</a></x:xmpmeta>"
DPI = (300, 150)
TEXT, CODE, GAMMA = "Gr\u00fc\u00dfe \u65e5", bytes([9, 16, 0, 1]), struct.pack(">I", 100_000)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (20, 30, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65535, (20, 30, 3), dtype=np.uint16)
TRANSPARENT = RNG.integers(0, 255, (20, 30, 4), dtype=np.uint8)
NOTES = {"depth": "8 bits", "texts": "its texts .Title. are"}  # of the others, their own name


def exif() -> bytes:
    tags = Image.Exif()
    tags[0x010F] = "Maker"
    return tags.tobytes()


def segment(kind: int, contents: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(contents) + 2) + contents


def through_pillow(kind: str, pixels: np.ndarray = PIXELS, **options: object) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, kind, **options)
    return encoded.getvalue()


def jpeg(*segments: bytes, **options: object) -> bytes:
    whole = through_pillow("JPEG", **options)
    return whole[:20] + b"".join(segments) + whole[20:]  # after JFIF's


def png(*chunks: bytes, pixels: np.ndarray = PIXELS) -> bytes:
    whole = imagecodecs.png_encode(pixels)
    return whole[:33] + b"".join(chunks) + whole[33:]


def tiff(pixels: np.ndarray = PIXELS, **options: object) -> bytes:
    encoded = io.BytesIO()
    tifffile.imwrite(encoded, pixels, photometric="rgb", metadata=None, **options)
    return encoded.getvalue()


BIM = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", 6) + b"\x1c\x02\x05\0\x01a"
FILES = {
    ("JPEG", "EXIF"): lambda: jpeg(exif=exif()),
    ("JPEG", "ICC"): lambda: jpeg(icc_profile=ICC),
    ("JPEG", "XMP"): lambda: jpeg(xmp=XMP),
    ("JPEG", "dpi"): lambda: jpeg(dpi=DPI),
    ("JPEG", "comment"): lambda: jpeg(comment=TEXT.encode()),
    ("JPEG", "IPTC"): lambda: jpeg(segment(0xED, BIM)),
    ("JPEG", "gain map"): lambda: jpeg(segment(0xE2, b"urn:iso:std:iso:ts:21496:-1\0" + bytes(4))),
    ("PNG", "EXIF"): lambda: png(make_chunk(b"eXIf", exif()[6:])),
    ("PNG", "ICC"): lambda: png(make_chunk(b"iCCP", b"x\0\0" + zlib.compress(ICC))),
    ("PNG", "XMP"): lambda: png(make_chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + XMP)),
    ("PNG", "dpi"): lambda: png(make_chunk(b"pHYs", struct.pack(">IIB", 11811, 5906, 1))),
    ("PNG", "comment"): lambda: png(make_chunk(b"iTXt", b"Comment" + bytes(5) + TEXT.encode())),
    ("PNG", "texts"): lambda: png(make_chunk(b"iTXt", b"Title" + bytes(5) + TEXT.encode())),
    ("PNG", "cICP"): lambda: png(make_chunk(b"cICP", CODE)),
    ("PNG", "gAMA"): lambda: png(make_chunk(b"gAMA", GAMMA)),
    ("PNG", "depth"): lambda: png(pixels=DEEP),
    ("PNG", "alpha"): lambda: png(pixels=TRANSPARENT),
    ("TIFF", "EXIF"): lambda: tiff(extratags=[(0x010F, 2, 0, "Maker", True)]),
    ("TIFF", "ICC"): lambda: tiff(iccprofile=ICC),
    ("TIFF", "XMP"): lambda: tiff(extratags=[(700, 1, len(XMP), XMP, True)]),
    ("TIFF", "dpi"): lambda: tiff(resolution=DPI, resolutionunit=2),
    ("TIFF", "depth"): lambda: tiff(DEEP),
    ("TIFF", "alpha"): lambda: tiff(TRANSPARENT, extrasamples=["unassalpha"]),
    ("TIFF", "IPTC"): lambda: tiff(extratags=[(33723, 1, 6, BIM[-6:], True)]),
    ("TIFF", "channels"): lambda: tiff(TRANSPARENT, extrasamples=["unspecified"]),
    ("WebP", "EXIF"): lambda: through_pillow("WEBP", exif=exif()),
    ("WebP", "ICC"): lambda: through_pillow("WEBP", icc_profile=ICC),
    ("WebP", "XMP"): lambda: through_pillow("WEBP", xmp=XMP),
    ("WebP", "alpha"): lambda: through_pillow("WEBP", TRANSPARENT),
    ("HEIC", "EXIF"): lambda: heic(exif=exif()[6:]),
    ("HEIC", "ICC"): lambda: heic(profile=ICC),
    ("HEIC", "XMP"): lambda: heic(xmp=XMP),
    ("HEIC", "cICP"): lambda: heic(codes=(CODE[0], CODE[1])),
    ("HEIC", "depth"): lambda: heic(10),
    ("HEIC", "alpha"): lambda: heic(auxiliary=ALPHA),
    ("HEIC", "gain map"): lambda: heic(auxiliary=GAIN_MAP),
}


def is_there(what: str, path: Path) -> bool:
    """Whether a result has something, by other readers than ours."""
    if what == "depth" and path.suffix in (".png", ".tif"):
        read = imagecodecs.png_decode if path.suffix == ".png" else imagecodecs.tiff_decode
        return read(path.read_bytes()).dtype == np.uint16
    with Image.open(path) as image:
        image.load()
        tags, info = image.getexif(), image.info
        resolution = info.get("dpi") or (tags.get(0x011A, 0), tags.get(0x011B, 0))
        comment = info.get("comment") or info.get("Comment") or ""
        found = {
            "EXIF": tags.get(0x010F) == "Maker",
            "ICC": info.get("icc_profile") == ICC,
            "XMP": (info.get("xmp") or b"").rstrip(b"\0") == XMP,
            "dpi": tuple(round(float(side)) for side in resolution) == DPI,
            "comment": (comment.decode() if isinstance(comment, bytes) else comment) == TEXT,
            "texts": info.get("Title") == TEXT,
            "cICP": make_chunk(b"cICP", CODE) in path.read_bytes(),
            "gAMA": info.get("gamma") == 1.0,
            "alpha": image.mode == "RGBA",
        }
    return found.get(what, False)


def table() -> dict[tuple[str, str], list[str]]:
    """The README's table: what is kept from one format to another."""
    lines = README.read_text(encoding="utf-8").splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("| from "))
    _, *targets = cells(lines[start])
    kept = {}
    for line in lines[start + 2 : start + 2 + len(SUFFIXES)]:
        source, *each = cells(line)
        kept |= {(source, to): what.split(", ") for to, what in zip(targets, each, strict=True)}
    return kept


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


TABLE = table()


def test_the_table_has_all_pairs_and_nothing_unheard_of() -> None:
    assert set(TABLE) == {(source, to) for source in SUFFIXES for to in SUFFIXES if to != "HEIC"}
    for (source, _), kept in TABLE.items():
        assert {(source, what) for what in kept} <= set(FILES)


@pytest.mark.parametrize("to", ["JPEG", "PNG", "TIFF", "WebP"])
@pytest.mark.parametrize(("source", "what"), FILES)
def test_what_is_kept(tmp_path: Path, source: str, what: str, to: str) -> None:
    path, result = tmp_path / f"a{SUFFIXES[source]}", tmp_path / f"b{SUFFIXES[to]}"
    path.write_bytes(FILES[source, what]())
    photo = read_photo(path)
    if what in TABLE[source, to]:
        assert write_photo(photo, result) == []
        assert is_there(what, result)
    elif what == "alpha":
        with pytest.raises(UnwritablePhoto, match="cannot hold its alpha; save it as png"):
            write_photo(photo, result)
    else:
        (note,) = write_photo(photo, result)
        assert NOTES.get(what, what).replace(".Title.", "(Title)") in note
        assert not is_there(what, result)


def test_all_at_once(tmp_path: Path) -> None:
    """Of a PNG to a PNG, and to a JPEG, of both depths; the texts with their languages."""
    texts = [Text("Title", "a"), Text("Titel", TEXT, "de", "\u65e5"), Text("Comment", "b")]
    texts.append(Text("Title", "\u00fc", "de"))
    for pixels in (PIXELS, DEEP):
        photo = Photo(pixels, icc_profile=ICC, exif=exif()[6:], xmp=XMP, dpi=DPI, texts=texts)
        photo.colours = {b"cICP": CODE, b"gAMA": GAMMA}
        assert write_photo(photo, tmp_path / "a.png") == []
        again = read_photo(tmp_path / "a.png")
        assert (again.texts, again.colours) == (texts, photo.colours)
        assert (again.icc_profile, again.exif, again.xmp) == (ICC, photo.exif, XMP)
        assert again.dpi == pytest.approx(DPI, abs=0.02)
        notes = write_photo(again, tmp_path / "a.jpg")
        assert sum("(Titel, Title)" in note for note in notes) == 1
        with Image.open(tmp_path / "a.jpg") as image:
            assert image.info["comment"] == b"b"
            assert image.info["dpi"] == DPI
            assert image.info["xmp"] == XMP


def test_exif_in_a_text_is_no_text(tmp_path: Path) -> None:
    packed = zlib.compress(f"\nexif\n  {len(exif())}\n{exif().hex()}\n".encode())
    old = make_chunk(b"zTXt", b"Raw profile type exif\0\0" + packed)
    (tmp_path / "a.png").write_bytes(png(old))
    photo = read_photo(tmp_path / "a.png")
    assert b"Maker" in photo.exif and photo.texts == []


def test_what_only_says_srgb_is_not_missed(tmp_path: Path) -> None:
    srgb = [31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000]
    for chunks in (
        {b"gAMA": struct.pack(">I", 45455), b"cHRM": struct.pack(">8I", *srgb)},
        {b"cICP": bytes([1, 13, 0, 1])},
        {b"sRGB": b"\0", b"gAMA": GAMMA},
    ):
        assert write_photo(Photo(PIXELS, colours=chunks), tmp_path / "a.jpg") == []
    (note,) = write_photo(Photo(PIXELS, colours={b"cHRM": bytes(32)}), tmp_path / "a.jpg")
    assert "gAMA" in note


def test_what_is_too_large_for_a_jpeg_is_left_out(tmp_path: Path) -> None:
    large = Photo(PIXELS, xmp=XMP.ljust(65_503), texts=[Text("Comment", "x" * 65_534)])
    notes = write_photo(large, tmp_path / "a.jpg")
    assert [note.split(" is left out")[0] for note in notes] == ["its XMP", "its comment"]
    fits = Photo(PIXELS, xmp=XMP.ljust(65_502), texts=[Text("Comment", "x" * 65_533)])
    assert write_photo(fits, tmp_path / "a.jpg") == []


def test_a_webp_tells_its_resolution_in_exif(tmp_path: Path) -> None:
    (note,) = write_photo(Photo(PIXELS, dpi=DPI, exif=exif()[6:]), tmp_path / "a.webp")
    assert "resolution" in note
    tags = Image.Exif()
    tags[0x011A] = 300.0
    assert write_photo(Photo(PIXELS, dpi=DPI, exif=tags.tobytes()[6:]), tmp_path / "a.webp") == []


def test_several_comments_become_one(tmp_path: Path) -> None:
    comments = segment(0xFE, "\u00fc".encode("latin-1")), segment(0xFE, b"b\0")
    (tmp_path / "a.jpg").write_bytes(jpeg(*comments))
    photo = read_photo(tmp_path / "a.jpg")
    assert [text.text for text in photo.texts] == ["\u00fc", "b"]
    write_photo(photo, tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.info["comment"].decode() == "\u00fc\nb"


def test_colours_that_are_converted_are_not_told_of_as_before(tmp_path: Path) -> None:
    """A profile too large for a PNG is applied, and what the codes say holds no more."""
    photo = Photo(PIXELS, icc_profile=ICC.ljust(2**20 + 1, b"\0"), colours={b"cICP": CODE})
    assert any("converted to sRGB" in note for note in write_photo(photo, tmp_path / "a.png"))
    assert read_photo(tmp_path / "a.png").colours == {}
