"""What else a JPEG has beside its picture."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images import read_photo

PREVIEW, UNDEFINED = 0x010001, 0


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("kind", "noted"), [(PREVIEW, 0), (UNDEFINED, 1)])
def test_further_pictures_but_previews_are_noted(
    tmp_path: Path, order: str, kind: int, noted: int
) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    entries = b"".join(struct.pack(f"{order}4I", each, 9, 0, 0) for each in (0x030000, kind))
    mark = b"II*\0" if order == "<" else b"MM\0*"
    directory = mark + struct.pack(f"{order}IH", 8, 2)
    directory += struct.pack(f"{order}HHII", 0xB001, 4, 1, 2)
    directory += struct.pack(f"{order}HHII", 0xB002, 7, len(entries), 38)
    directory += struct.pack(f"{order}I", 0) + entries
    segment = b"MPF\0" + directory
    head = struct.pack(">BBH", 0xFF, 0xE2, len(segment) + 2) + segment
    path.write_bytes(whole[:20] + head + whole[20:])
    notes = read_photo(path).notes
    assert ["further pictures" in note for note in notes] == [True] * noted
