"""RAW photographs, of which every program that reads them must be told."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.images import UnreadablePhoto, peek, read_photo
from data.raw import SUFFIXES, undeveloped

HEADS = {  # as cameras write them
    "a.raf": b"FUJIFILMCCD-RAW 0201",
    "a.orf": b"IIRO\x08\0\0\0",
    "a.rw2": b"IIU\0\x18\0\0\0",
    "a.cr2": b"II*\0\x10\0\0\0CR\x02\0",
    "a.cr3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
}


@pytest.mark.parametrize("name", [*HEADS, "called.jpg"])
def test_they_are_named_for_what_they_are(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(HEADS.get(name, HEADS["a.raf"]) + bytes(99))
    with pytest.raises(UnreadablePhoto, match=f"{name} is a RAW photograph: develop it first"):
        read_photo(tmp_path / name)
    assert peek(tmp_path / name) == (0, False)


def test_tiffs_that_are_raw_are_not_read_for_their_previews(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    for name in ("a.nef", "a.ARW", "a.dng"):
        tifffile.imwrite(tmp_path / name, pixels, photometric="rgb")
        with pytest.raises(UnreadablePhoto, match="a RAW photograph: develop it first"):
            read_photo(tmp_path / name)
    version = (50706, 1, 4, bytes([1, 4, 0, 0]), True)
    tifffile.imwrite(tmp_path / "dng.tif", pixels, photometric="rgb", extratags=[version])
    tifffile.imwrite(tmp_path / "cfa.tif", pixels[..., 0], photometric="cfa")
    for name in ("dng.tif", "cfa.tif"):
        with pytest.raises(UnreadablePhoto, match="it is a RAW photograph: develop it first"):
            read_photo(tmp_path / name)


def test_a_jpeg_under_a_raw_name_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (9, 8)).save(tmp_path / "a.nef", "JPEG")
    assert read_photo(tmp_path / "a.nef").pixels.shape == (8, 9, 3)


def test_those_without_a_photograph_beside_them() -> None:
    files = ["a.nef", "b.CR2", "sub/a.dng", "a.txt", "c.xmp"]
    assert undeveloped(files, ["a.jpg", "B.jpg"]) == ["b.CR2", "sub/a.dng"]
    assert {".nef", ".cr2", ".cr3", ".arw", ".dng", ".raf", ".orf", ".rw2"} < SUFFIXES
