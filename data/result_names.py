"""How the results of photographs are named."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence

from data.encoding import JPEG_SUFFIXES
from data.images import HEIF_SUFFIXES, WRITTEN_SUFFIXES, keeps_alpha
from utils.errors import UserError

DEFAULT_KIND = "png"
LONGEST_NAME = 255  # bytes, the limit of usual file systems
STEM, WHOLE, HASHED = range(3)  # what a result's name has of its photograph's


def choose_suffix(photo: str, kind: str, alpha: bool) -> tuple[str, tuple[str, ...]]:
    """Choose the suffix of a result.

    Args:
        photo: the photograph's path or name.
        kind: "png", "jpg" or another suffix without its dot; or "same" for the photograph's own, of
            HEIC and AVIF "jpg".
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


def result_kind(inputs: Sequence[str], output: str, asked: str | None, tail: str) -> str:
    """Decide the format of the results: what was asked for, or what the output's name says.

    Args:
        inputs, output: files or folders.
        asked: "png", "jpg", "same", or None for the default.
        tail: what the results' stems are to end with.

    Returns:
        As `choose_suffix` takes it.

    Raises:
        UserError: the output is a file whose format is not written, or not the one asked for; or
            it leaves no place for `tail`.
    """
    if not names_file(inputs, output):
        return asked or DEFAULT_KIND
    suffix = os.path.splitext(output)[1]
    if suffix.lower() not in WRITTEN_SUFFIXES:
        written = ", ".join(sorted(WRITTEN_SUFFIXES))
        raise UserError(
            f"--output {output}: {suffix} files are not written; end it with one of {written}, "
            f"or with {os.sep} if it is a folder"
        )
    if asked and not same_format(choose_suffix(inputs[0], asked, alpha=False)[0], suffix):
        raise UserError(f"--format {asked} contradicts --output {output}; leave one of them out")
    if tail:
        raise UserError(
            f"--suffix is for results in a folder, and --output {output} names one file"
        )
    return suffix[1:]


def names_file(inputs: Sequence[str], output: str) -> bool:
    """Whether the output names the result: it has a suffix and is no folder, the input one file."""
    return (
        len(inputs) == 1
        and os.path.isfile(inputs[0])
        and not os.path.isdir(output)
        and not output.endswith((os.sep, os.altsep or os.sep))
        and bool(os.path.splitext(output)[1])
    )


def results_folder(inputs: Sequence[str], output: str) -> str:
    """The folder that has to be there for the results."""
    return os.path.dirname(output) or os.curdir if names_file(inputs, output) else output


def same_format(one: str, other: str) -> bool:
    """Whether two suffixes, such as ".jpg" and ".JPEG", are of one format."""
    one, other = one.lower(), other.lower()
    families = (JPEG_SUFFIXES, {".tif", ".tiff"})
    return one == other or any(one in family and other in family for family in families)


def name_file(photo: str, output: str) -> tuple[list[str], list[str | None]]:
    """Name the result of one photograph as the output is; returns the same as `name_in_folder`."""
    target = os.path.join(os.path.dirname(output) or os.curdir, os.path.basename(output))
    if os.path.exists(target) and os.path.samefile(photo, target):  # however it is spelled
        raise UserError(f"--output {output} would replace the photograph; choose another name")
    suffix = os.path.splitext(target)[1]
    return [target], [None if keeps_alpha(suffix) else f"{target}.png"]


def name_in_folder(
    names: Sequence[str], output: str, kind: str, tail: str = ""
) -> tuple[list[str], list[str | None]]:
    """Name the results of photographs.

    Args:
        names: of the photographs, as `find_photos` gives them.
        output: the output folder.
        kind, tail: as of `share_work`.

    Returns:
        For each photograph its result; and its result if it has alpha, where that differs.
    """
    suffixes = [choose_suffix(name, kind, alpha=False)[0] for name in names]
    results = name_results(names, [tail + suffix for suffix in suffixes])
    # Whether a photograph has alpha is not known yet, so that it may need a second name:
    unsure = [k for k, suffix in enumerate(suffixes) if not keeps_alpha(suffix)]
    others = name_results([names[k] for k in unsure], [f"{tail}.png"] * len(unsure), taken=results)
    folder, pngs = os.path.join(output, ""), [None] * len(names)
    for k, other in zip(unsure, others, strict=True):
        pngs[k] = folder + other
    return [folder + result for result in results], pngs


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
        suffixes: of the results, and what else their names are to end with.
        taken: paths relative to the output folder that no result may have.

    Returns:
        Paths relative to the output folder.
    """
    names = [
        _stem(photo, STEM, suffix) + suffix for photo, suffix in zip(photos, suffixes, strict=True)
    ]
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
            names[k] = _stem(photos[k], forms[k], suffixes[k]) + suffixes[k]


def _stem(photo: str, form: int, suffix: str) -> str:
    """A result's path without its suffix, in the forms STEM, WHOLE and HASHED."""
    if form == STEM:
        return os.path.splitext(photo)[0]
    if form == WHOLE:
        return photo
    folder, name = os.path.split(photo)
    digest = hashlib.sha256(os.fsencode(photo)).hexdigest()[:8]
    room = LONGEST_NAME - len(os.fsencode(f".{digest}{suffix}"))
    return os.path.join(folder, f"{name[: room // 4]}.{digest}")  # whatever its characters are


def _is_too_long(path: str) -> bool:
    if 4 * len(path) <= LONGEST_NAME:  # whatever its characters are
        return False
    return len(os.fsencode(os.path.basename(path))) > LONGEST_NAME
