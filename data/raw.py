"""RAW photographs: what a camera's sensor saw, for a program that develops it into a picture."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

DEVELOP = "develop them first"
WHAT = "a RAW photograph: develop it first"
NAMES = (
    "3fr arw cr2 cr3 crw dcr dng erf fff iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2"
)
SUFFIXES = frozenset(f".{name}" for name in [*NAMES.split(), "srf", "srw", "x3f"])
# How files begin that only cameras write; the others are TIFFs, known by their suffix:
MARKS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM")
LATER_MARKS = {8: b"CR\2\0", 4: b"ftypcrx ", 6: b"HEAPCCDR"}  # at their places
JPEG_MARK = b"\xff\xd8"


def is_raw(path: Path) -> bool:
    """Whether a file is a RAW photograph, by its content or, unless it is a JPEG, its suffix."""
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(MARKS) or any(head[k:].startswith(m) for k, m in LATER_MARKS.items()):
        return True
    return path.suffix.lower() in SUFFIXES and not head.startswith(JPEG_MARK)


def undeveloped(files: Iterable[str], photos: Iterable[str]) -> list[str]:
    """Find the files with a RAW photograph's suffix beside which no photograph has their stem."""
    raws = [file for file in files if os.path.splitext(file)[1].lower() in SUFFIXES]
    developed = {os.path.splitext(photo)[0] for photo in photos} if raws else set()
    return [file for file in raws if os.path.splitext(file)[0] not in developed]
