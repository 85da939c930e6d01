"""EXIF and XMP that fit the upright picture."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images import Photo, read_photo, write_photo
from data.metadata import sound_dpi, tells_resolution, upright_exif, upright_xmp

ORIENTATION, EXIF_IFD, WIDTH, HEIGHT = 0x0112, 0x8769, 0xA002, 0xA003
PIXELS = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)


def entry(order: str, tag: int, kind: int, value: int) -> bytes:
    packed = struct.pack(f"{order}HH" if kind == 3 else f"{order}I", *[value, 0][: 5 - kind])
    return struct.pack(f"{order}HHI", tag, kind, 1) + packed


def directory(order: str, *entries: bytes, then: int = 0) -> bytes:
    return (
        struct.pack(f"{order}H", len(entries)) + b"".join(entries) + struct.pack(f"{order}I", then)
    )


def camera_exif(order: str, end: bytes = b"") -> bytes:
    """EXIF as cameras write it: sizes as SHORT and LONG, and a thumbnail, perhaps before an end."""
    camera_at = 8 + 2 + 2 * 12 + 4
    thumbnail_at = camera_at + 2 + 2 * 12 + 4
    jpeg_at = thumbnail_at + 2 + 2 * 12 + 4
    main = [entry(order, ORIENTATION, 3, 6), entry(order, EXIF_IFD, 4, camera_at)]
    camera = [entry(order, WIDTH, 3, 30), entry(order, HEIGHT, 4, 20)]
    thumbnail = [entry(order, 0x0201, 4, jpeg_at), entry(order, 0x0202, 4, 9)]
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return b"".join(
        [
            mark + struct.pack(f"{order}I", 8),
            directory(order, *main, then=thumbnail_at),
            directory(order, *camera),
            directory(order, *thumbnail),
            b"THUMBNAIL",
            end,
        ]
    )


@pytest.mark.parametrize("order", "<>")
def test_sizes_fit_and_the_thumbnail_goes(tmp_path: Path, order: str) -> None:
    for end in (b"", b"maker note"):
        exif = camera_exif(order, end)
        Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + exif)
        photo = read_photo(tmp_path / "a.jpg")
        assert photo.pixels.shape == (30, 20, 3)
        assert photo.exif == upright_exif(exif, 20, 30)
        assert b"THUMBNAIL" not in photo.exif
        kept = len(exif) if end else len(exif) - 9
        assert len(photo.exif) == kept and photo.exif.endswith(end)
        for suffix in (".jpg", ".png", ".webp", ".tif"):
            assert write_photo(photo, tmp_path / f"b{suffix}") == []
            with Image.open(tmp_path / f"b{suffix}") as image:
                tags = image.getexif()
                sizes = [tags.get_ifd(EXIF_IFD)[tag] for tag in (WIDTH, HEIGHT)]
                assert sizes == [20, 30] == list(image.size)
                assert tags.get(ORIENTATION, 1) == 1
                assert not tags.get_ifd(1)  # the thumbnail's


def test_a_thumbnail_that_would_be_other_tags_is_left_alone() -> None:
    exif = camera_exif("<")
    place = exif.index(entry("<", 0x0201, 4, len(exif) - 9))
    lying = exif[:place] + entry("<", 0x0201, 4, 8) + exif[place + 12 :]
    told = upright_exif(lying, 20, 30)
    assert (told[8:10], told[-9:]) == (exif[8:10], b"THUMBNAIL")
    assert upright_exif(exif[:60], 20, 30) is not None  # the camera's tags are cut off
    assert upright_exif(exif[:20], 20, 30) is None


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        ('<a tiff:Orientation="6" b="6"/>', '<a tiff:Orientation="1" b="6"/>'),
        ("<tiff:Orientation>8</tiff:Orientation>", "<tiff:Orientation>1</tiff:Orientation>"),
        ("<a exif:PixelXDimension = '30'/>", "<a exif:PixelXDimension = '20'/>"),
        ('<a tiff:ImageWidth="30"', '<a tiff:ImageWidth="20"'),
        ('<a tiff:ImageLength="20"', '<a tiff:ImageLength="30"'),
        ("<exif:PixelYDimension>20<", "<exif:PixelYDimension>30<"),
        ('<a hdrgm:Version="1.0" b="c"/>', '<a b="c"/>'),
        ("<C:Directory><li>\n</li></C:Directory><D/>", "<D/>"),
        ('<a xmpNote:HasExtendedXMP="0123" b="c"/>', '<a b="c"/>'),
    ],
)
def test_xmp_fits_the_upright_picture_alone(packet: str, expected: str) -> None:
    assert upright_xmp(packet.encode(), 20, 30).decode() == expected


def test_xmp_turns_a_picture_once(tmp_path: Path) -> None:
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    for source in ("a.jpg", "a.webp"):
        Image.fromarray(PIXELS).save(tmp_path / source, xmp=packet, quality=100)
        photo = read_photo(tmp_path / source)
        assert photo.pixels.shape == (30, 20, 3)
        for suffix in (".jpg", ".png", ".webp", ".tif"):
            write_photo(photo, tmp_path / f"b{suffix}")
            assert read_photo(tmp_path / f"b{suffix}").pixels.shape == (30, 20, 3)


def test_extended_xmp_is_noted(tmp_path: Path) -> None:
    packet = b'<x:xmpmeta><a xmpNote:HasExtendedXMP="0123"/></x:xmpmeta>'
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", xmp=packet)
    assert read_photo(tmp_path / "a.jpg").notes == ["the second part of its XMP is left out"]


def test_the_resolution_turns_too(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[ORIENTATION] = 6
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", dpi=(300, 150), exif=tags)
    assert read_photo(tmp_path / "a.jpg").dpi == (150, 300)


def test_resolutions_that_cannot_be_true_are_none(tmp_path: Path) -> None:
    for told in (
        None,
        72,
        (72,),
        (0, 0),
        (1, 72),
        (72, 1),
        (float("nan"), 72),
        (72, 1e9),
        ("a", 1),
    ):
        assert sound_dpi(told) is None
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=camera_exif("<"))
    assert read_photo(tmp_path / "a.jpg").dpi is None  # where Pillow says 72


def test_whether_exif_tells_a_resolution() -> None:
    tags = Image.Exif()
    tags[ORIENTATION] = 1
    assert not tells_resolution(tags.tobytes()[6:])
    tags[0x011A] = 72.0
    assert tells_resolution(tags.tobytes()[6:])


def test_a_photograph_is_not_changed_by_writing_it(tmp_path: Path) -> None:
    photo = Photo(PIXELS, dpi=(300, 300), xmp=b"<x/>", notes=["a note"], colours={b"sRGB": b"\0"})
    before = photo.carried()
    for suffix in (".jpg", ".png", ".webp", ".tif", ".bmp"):
        assert write_photo(photo, tmp_path / f"a{suffix}")[0] == "a note"
    assert photo.carried() == before
