"""What an inference run is given: files and folders, and the photographs in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data import raw
from data.images import IMAGE_SUFFIXES
from data.listing import list_files, require_there
from data.pairs import abridged
from data.raw import undeveloped
from data.result_names import names_file
from utils.errors import UserError, warn

OTHER_FILES_NAMED = 5  # the rest of those that are no photographs is counted


class Source(NamedTuple):
    """An input: a file or a folder, and the folder below the output for its results, "" for none.

    `place` ends with a separator.
    """

    path: str
    place: str


def find_photos(
    inputs: Sequence[str], output: str, recursive: bool
) -> tuple[list[str], list[str], list[str]]:
    """List the photographs to enhance, each once, without the results of earlier runs.

    Returns:
        The photographs; their paths as results, relative to the output folder, before any change
        of suffix; and a sentence for each folder that could not be listed, for each name that is no
        file's, for each RAW photograph that is not there as a photograph too, and for each of
        several inputs that holds no photograph.

    Raises:
        UserError: there are none, or the results would lie among them.
    """
    sources = _sources(inputs)
    if not names_file(inputs, output):
        _check_output(sources, output)
    photos, names, unlisted, others = [], [], [], []
    failures = []
    for source in sources:
        try:
            listed = _list_source(source, output, recursive)
        except UserError as error:
            failures.append(error)
            listed = [], [], [str(error)], []
        for total, part in zip((photos, names, unlisted, others), listed, strict=True):
            total += part
    if not photos:
        raise failures[0]
    if len(sources) > 1:
        photos, names = _each_once(photos, names)
    for sentence in unlisted:
        warn(sentence)
    if others:
        warn(f"no photographs, left alone: {abridged(others, OTHER_FILES_NAMED)}")
    return photos, names, unlisted


def _sources(inputs: Sequence[str]) -> list[Source]:
    """Check the inputs, and leave out those that are the same as an earlier one.

    Raises:
        UserError: one does not exist, or two have one name.
    """
    places, taken = {}, {}
    real = {folder: os.path.realpath(folder) for folder in set(map(os.path.dirname, inputs))}
    for path in inputs:
        require_there(path)
        is_folder, name = os.path.isdir(path), os.path.basename(os.path.abspath(path))
        place = (
            os.path.realpath(path) if is_folder else os.path.join(real[os.path.dirname(path)], name)
        )
        if place in places:
            continue
        other = taken.setdefault(name.casefold(), path)
        if other != path:
            raise UserError(
                f"inputs {other} and {path} are both named {name}, and so would be their results; "
                "enhance them one after the other, each to an --output of its own"
            )
        places[place] = Source(path, os.path.join(name, "") if is_folder and name else "")
    sources = list(places.values())
    return sources if len(sources) > 1 else [sources[0]._replace(place="")]


def _check_output(sources: Sequence[Source], output: str) -> None:
    """Check that the output may be a folder of results.

    Raises:
        UserError: it is a file or looks like one, or the results would lie among the photographs.
    """
    if os.path.isdir(output):
        folders = {(_folder(source), source.place) for source in sources}
        for folder, results in {(folder, p) for folder, place in folders for p in ("", place)}:
            path = Path(output, results)
            if path.is_dir() and path.samefile(folder):
                raise UserError(
                    f"--output {path} is the folder of the photographs themselves; choose another"
                )
    elif os.path.exists(output) or os.path.splitext(output)[1].lower() in IMAGE_SUFFIXES:
        raise UserError(f"--output {output} looks like a file; give a folder for the results")


def _folder(source: Source) -> str:
    """The folder of a source: itself, or the one that the file lies in."""
    if os.path.isdir(source.path):
        return source.path
    return os.path.dirname(source.path) or os.curdir


def _list_source(
    source: Source, output: str, recursive: bool
) -> tuple[list[str], list[str], list[str], list[str]]:
    """List one input.

    Returns:
        As `find_photos`, and the names of other files.

    Raises:
        UserError: it holds no photograph that is no result.
    """
    photos, others, unlisted = list_files(source.path, recursive)
    if os.path.isfile(source.path):
        return photos, [os.path.basename(source.path)], [], []
    results, listed = Path(os.path.realpath(output)), len(photos)
    if results.is_relative_to(os.path.realpath(source.path)):
        among = {
            parent: Path(os.path.realpath(parent)).is_relative_to(results)
            for parent in {os.path.dirname(photo) for photo in photos}
        }
        photos = [photo for photo in photos if not among[os.path.dirname(photo)]]
        if not photos:
            raise UserError(
                f"all photographs in {source.path} lie in --output {output}; choose another"
            )
        if len(photos) < listed:
            warn(f"left alone as results: {listed - len(photos)} in {output}")
    raws = set(undeveloped(others, photos))
    unlisted += [f"{path} is {raw.WHAT}" for path in others if path in raws]
    start = len(os.path.join(Path(source.path), ""))  # of the paths that `list_files` gives
    names, left = (
        [source.place + path[start:] for path in paths]
        for paths in (photos, [path for path in others if path not in raws])
    )
    return photos, names, unlisted, left


def _each_once(photos: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Leave out photographs that are given once more, by another way to their folder."""
    real, once = {}, {}
    for photo, name in zip(photos, names, strict=True):
        folder, file = os.path.split(photo)
        if folder not in real:
            real[folder] = os.path.realpath(folder)
        once.setdefault(os.path.join(real[folder], file), (photo, name))
    return [photo for photo, _ in once.values()], [name for _, name in once.values()]
