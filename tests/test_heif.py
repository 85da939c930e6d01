"""HEIC photographs, among others under wrong names."""

import gc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from data import heif
from data.images import UnreadablePhoto, peek, read_photo, upright_size, write_photo
from tests.heif import ALPHA, GAIN_MAP, HALVES, QUARTERS, heic

P3_CODES = (12, 13)  # primaries of Display P3 with sRGB's transfer function
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def tags(orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", orientation
    exif[0x8769] = {0xA002: 128, 0xA003: 64}
    return exif.tobytes()[6:]


def quarters(pixels: np.ndarray) -> list:
    height, width = pixels.shape[:2]
    rows, columns = [height // 4, 3 * height // 4], [width // 4, 3 * width // 4]
    return pixels[np.ix_(rows, columns)].tolist()


@pytest.mark.parametrize("name", ["a.heic", "a.jpg", "a.HIF", "a.nef"])
def test_eight_bits_under_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(heic())
    photo = read_photo(path)
    assert photo.pixels.shape == (64, 128, 3)
    assert np.abs(np.subtract(quarters(photo.pixels), QUARTERS[8])).max() <= 2
    assert (photo.alpha, photo.icc_profile, photo.notes) == (None, None, [])
    assert peek(path) == (64 * 128, False)


def test_ten_bits_fill_sixteen(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(heic(10))
    photo = read_photo(path)
    assert photo.pixels.dtype == np.uint16
    expected = np.array(QUARTERS[10]) * (65535 / 1023)
    assert np.abs(quarters(photo.pixels) - expected).max() <= 2 * 65


@pytest.mark.parametrize("turn", range(4))
def test_it_is_turned_once(tmp_path: Path, turn: int) -> None:
    """The container says how; cameras write the same into EXIF, which must not turn it again."""
    path = tmp_path / "a.heic"
    path.write_bytes(heic(turn=turn, exif=tags((1, 8, 3, 6)[turn])))
    photo = read_photo(path)
    expected = np.rot90(np.array(QUARTERS[8]), turn)
    assert np.abs(quarters(photo.pixels) - expected).max() <= 2
    size = (64, 128) if turn % 2 else (128, 64)
    assert upright_size(path) == size == photo.pixels.shape[1::-1]
    write_photo(photo, tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as image:
        exif = image.getexif()
        assert exif[0x0112] == 1
        assert [exif.get_ifd(0x8769)[tag] for tag in (0xA002, 0xA003)] == list(size)


def test_pixels_outlive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(heic(auxiliary=ALPHA))
    header = heif.read_header(path)
    read, copies = [], []
    for _ in range(10):  # the memory of one that is gone would be the next one's
        read.append(heif.read_samples(path, header))
        gc.collect()
        np.full(read[0].shape, 7, np.uint8).sum()
        copies.append(read[-1].copy())
    assert all(np.array_equal(array, copies[0]) for array in [*read, *copies])
    owner = read[0]
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert owner.flags.owndata  # numpy's own memory, not that of a file that is closed


def test_alpha(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(heic(auxiliary=ALPHA))
    photo = read_photo(path)
    assert peek(path) == (64 * 128, True)
    assert np.abs(photo.alpha[:, [9, -9]].astype(int) - HALVES).max() <= 2
    assert photo.notes == []


def test_a_profile_or_else_a_code_tells_of_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(heic(profile=ICC))
    assert (read_photo(path).icc_profile, read_photo(path).colours) == (ICC, {})
    path.write_bytes(heic(codes=P3_CODES))
    assert read_photo(path).colours == {b"cICP": bytes([*P3_CODES, 0, 1])}
    path.write_bytes(heic())  # sRGB's
    assert read_photo(path).colours == {}


def test_a_gain_map_is_left_out_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(heic(auxiliary=GAIN_MAP))
    photo = read_photo(path)
    assert photo.alpha is None
    assert ["gain map" in note for note in photo.notes] == [True]


def test_a_file_cut_off_is_named(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.heic", heic(exif=tags())
    for length in (30, 200, len(whole) - 150):
        path.write_bytes(whole[:length])
        with pytest.raises(UnreadablePhoto, match=r"a\.heic"):
            read_photo(path)


def test_a_damaged_list_of_contents_crashes_nothing(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.heic", heic(xmp=b"<x/>")
    for kind in (b"mime", b"application/rdf+xml"):
        path.write_bytes(whole.replace(kind, b"\xff" * len(kind)))
        with pytest.raises(UnreadablePhoto, match="its list of contents is damaged"):
            read_photo(path)
