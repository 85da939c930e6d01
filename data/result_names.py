"""How the results of photographs are named."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence

from data.images import HEIF_SUFFIXES, WRITTEN_SUFFIXES, keeps_alpha

LONGEST_NAME = 255  # bytes, the limit of usual file systems
STEM, WHOLE, HASHED = range(3)  # what a result's name has of its photograph's


def choose_suffix(photo: str, kind: str, alpha: bool) -> tuple[str, tuple[str, ...]]:
    """Choose the suffix of a result.

    Args:
        photo: the photograph's path or name.
        kind: "png", "jpg", or "same" for the photograph's own, of HEIC and AVIF "jpg".
        alpha: whether it has alpha.

    Returns:
        The suffix, and a note where it is not the one asked for.
    """
    suffix = os.path.splitext(photo)[1] if kind == "same" else f".{kind}"
    if suffix.lower() in HEIF_SUFFIXES and not alpha:
        return ".jpg", (f"saved as jpg, since {suffix} files are not written",)
    if suffix.lower() not in WRITTEN_SUFFIXES:
        return ".png", (f"saved as png, since {suffix or 'nameless'} files are not written",)
    if alpha and not keeps_alpha(suffix):
        return ".png", (f"saved as png, since {suffix} cannot hold its alpha",)
    return suffix, ()


def name_results(
    photos: Sequence[str], suffixes: Sequence[str], taken: Sequence[str] = ()
) -> list[str]:
    """Name the results of photographs, each differently, also on a disk that ignores case.

    A result has its photograph's stem. Where two stems collide, as of a.jpg and a.tif, all that
    collide keep the whole name: a.jpg.png and a.tif.png. Where even that is taken or too long, the
    start of the name and a hash of the path are used. So a name depends neither on the order of the
    photographs nor on what an earlier run left behind.

    Args:
        photos: paths relative to the input folder.
        suffixes: of the results.
        taken: paths relative to the output folder that no result may have.

    Returns:
        Paths relative to the output folder.
    """
    names = [_stem(photo, STEM) + suffix for photo, suffix in zip(photos, suffixes, strict=True)]
    forms = [STEM] * len(names)
    taken = {name.casefold() for name in taken}
    while True:
        folded = [name.casefold() for name in names]
        uses = Counter(folded)
        unfit = [
            k
            for k, name in enumerate(names)
            if uses[folded[k]] > 1 or folded[k] in taken or _is_too_long(name)
        ]
        if all(forms[k] == HASHED for k in unfit):
            return names
        for k in unfit:
            forms[k] = min(forms[k] + 1, HASHED)
            names[k] = _stem(photos[k], forms[k]) + suffixes[k]


def _stem(photo: str, form: int) -> str:
    """A result's path without its suffix, in the forms STEM, WHOLE and HASHED."""
    if form == STEM:
        return os.path.splitext(photo)[0]
    if form == WHOLE:
        return photo
    folder, name = os.path.split(photo)
    digest = hashlib.sha256(os.fsencode(photo)).hexdigest()[:8]
    return os.path.join(folder, f"{name[:60]}.{digest}")


def _is_too_long(path: str) -> bool:
    if 4 * len(path) <= LONGEST_NAME:  # whatever its characters are
        return False
    return len(os.fsencode(os.path.basename(path))) > LONGEST_NAME
