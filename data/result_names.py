"""How the results of photographs are named."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.images import HEIF_SUFFIXES, WRITTEN_SUFFIXES, keeps_alpha

LONGEST_NAME = 255  # bytes, the limit of usual file systems


def choose_suffix(photo: Path, kind: str, alpha: bool) -> tuple[str, tuple[str, ...]]:
    """Choose the suffix of a result.

    Args:
        photo: the photograph.
        kind: "png", "jpg", or "same" for the photograph's own, of HEIC and AVIF "jpg".
        alpha: whether it has alpha.

    Returns:
        The suffix, and a note where it is not the one asked for.
    """
    suffix = photo.suffix if kind == "same" else f".{kind}"
    if suffix.lower() in HEIF_SUFFIXES and not alpha:
        return ".jpg", (f"saved as jpg, since {suffix} files are not written",)
    if suffix.lower() not in WRITTEN_SUFFIXES:
        return ".png", (f"saved as png, since {suffix or 'nameless'} files are not written",)
    if alpha and not keeps_alpha(suffix):
        return ".png", (f"saved as png, since {suffix} cannot hold its alpha",)
    return suffix, ()


def name_results(photos: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    """Name the results of photographs, each differently, also on a disk that ignores case.

    A result has its photograph's stem. Where two stems collide, as of a.jpg and a.tif, all that
    collide keep the whole name: a.jpg.png and a.tif.png. Where even that is taken or too long, the
    start of the name and a hash of the path are used. So a name depends neither on the order of the
    photographs nor on what an earlier run left behind.

    Args:
        photos: paths relative to the input folder.
        suffixes: of the results.

    Returns:
        Paths relative to the output folder.
    """
    choices = []
    for photo, suffix in zip(photos, suffixes, strict=True):
        digest = hashlib.sha256(os.fsencode(photo)).hexdigest()[:8]
        full, hashed = photo.name + suffix, f"{photo.name[:60]}.{digest}{suffix}"
        choices.append((photo.with_suffix(suffix), photo.with_name(full), photo.with_name(hashed)))
    chosen = [0] * len(photos)
    while True:
        names = [choice[i] for choice, i in zip(choices, chosen, strict=True)]
        uses = Counter(str(name).casefold() for name in names)
        unfit = [
            k
            for k, name in enumerate(names)
            if uses[str(name).casefold()] > 1 or len(os.fsencode(name.name)) > LONGEST_NAME
        ]
        if all(chosen[k] == 2 for k in unfit):
            return names
        for k in unfit:
            chosen[k] = min(chosen[k] + 1, 2)
