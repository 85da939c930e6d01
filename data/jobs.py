"""What an inference run has to do: which photographs, where their results go, and who does which.

All of it is decided from names and file sizes; a photograph is opened only when its turn comes.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from data import raw
from data.images import IMAGE_SUFFIXES, keeps_alpha
from data.listing import ask, list_files, look_up
from data.pairs import abridged
from data.raw import undeveloped
from data.result_names import choose_suffix, name_results
from utils.errors import UserError, warn

OTHER_FILES_NAMED = 5  # the rest of those that are no photographs is counted


class Job(NamedTuple):
    """A photograph and where its result goes; text, since a folder may have 200,000 of them.

    Attributes:
        source: the photograph.
        target: its result.
        png: its result if it has alpha, where the format of `target` cannot hold that.
        size: of the photograph, in bytes; 0 if it is missing.
    """

    source: str
    target: str
    png: str | None
    size: int


def find_photos(source: Path, output: Path, recursive: bool) -> tuple[list[str], list[str]]:
    """List the photographs to enhance, without the results of earlier runs.

    Returns:
        The photographs, and a sentence for each folder that could not be listed, for each name
        that is no file's and for each RAW photograph that is not there as a photograph too.

    Raises:
        UserError: there are none, or the results would lie among them.
    """
    photos, others, unlisted = list_files(source, recursive)
    folder = source if os.path.isdir(source) else source.parent
    if os.path.isdir(output):
        if output.samefile(folder):
            raise UserError(
                f"--output {output} is the folder of the photographs themselves; choose another"
            )
    elif os.path.exists(output) or output.suffix.lower() in IMAGE_SUFFIXES:
        raise UserError(f"--output {output} looks like a file; give a folder for the results")
    results = Path(os.path.realpath(output))
    if not os.path.isfile(source) and results.is_relative_to(os.path.realpath(folder)):
        listed = len(photos)
        among = {
            parent: Path(os.path.realpath(parent)).is_relative_to(results)
            for parent in {os.path.dirname(photo) for photo in photos}
        }
        photos = [photo for photo in photos if not among[os.path.dirname(photo)]]
        if not photos:
            raise UserError(f"all photographs in {source} lie in --output {output}; choose another")
        if len(photos) < listed:
            warn(f"left alone as results: {listed - len(photos)} in {output}")
    raws = undeveloped(others, photos)
    unlisted += [f"{path} is {raw.WHAT}" for path in raws]
    for sentence in unlisted:
        warn(sentence)
    raws = set(raws)
    if others := [path for path in others if path not in raws]:
        names = abridged(_below(source, others), OTHER_FILES_NAMED)
        warn(f"no photographs, left alone: {names}")
    return photos, unlisted


def _below(folder: Path, paths: Sequence[str]) -> list[str]:
    """Paths relative to the folder that `list_files` found them in."""
    start = len(os.path.join(folder, ""))
    return [path[start:] for path in paths]


def plan(
    photos: Sequence[str], source: Path, output: Path, kind: str
) -> tuple[list[Job], set[str]]:
    """Decide where the result of each photograph goes.

    Args:
        photos: what to enhance, below `source`, as `find_photos` gives them.
        source: the input folder or file.
        output: the output folder.
        kind: "png", "jpg", or "same" for each photograph's own.

    Returns:
        The jobs, and the files that are in their results' folders already.

    Raises:
        UserError: a result would replace a photograph.
    """
    names = _below(source, photos) if os.path.isdir(source) else [source.name]
    suffixes = [choose_suffix(name, kind, alpha=False)[0] for name in names]
    results = name_results(names, suffixes)
    # Whether a photograph has alpha is not known yet, so that it may need a second name:
    unsure = [k for k, suffix in enumerate(suffixes) if not keeps_alpha(suffix)]
    others = name_results([names[k] for k in unsure], [".png"] * len(unsure), taken=results)
    pngs = dict(zip(unsure, others, strict=True))
    folder, jobs, inodes = os.path.join(output, ""), [], set()
    for k, photo in enumerate(photos):
        inode, size = look_up(photo)
        inodes.add(inode)
        jobs.append(Job(photo, folder + results[k], folder + pngs[k] if k in pngs else None, size))
    there = _files_beside(jobs)
    suspects = {path for path, inode in there.items() if inode in inodes}
    if suspects:  # seldom, and the exact comparison takes long
        _refuse_to_replace(jobs, suspects)
    return jobs, set(there)


def _files_beside(jobs: Sequence[Job]) -> dict[str, int]:
    """The files in the folders where results go, and their numbers in the file system."""
    found = {}
    for folder in {job.target.rpartition(os.sep)[0] for job in jobs}:
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if ask(entry.is_file):
                    found[entry.path] = entry.inode()
    return found


def _refuse_to_replace(jobs: Sequence[Job], suspects: set[str]) -> None:
    """Check that no result would replace a photograph.

    Args:
        jobs: the plan.
        suspects: files that may be photographs; no others are.

    Raises:
        UserError: one would.
    """
    originals = {os.path.realpath(job.source) for job in jobs}
    for job in jobs:
        for target in (job.target, job.png):
            if target in suspects and os.path.realpath(target) in originals:
                raise UserError(
                    f"the result of {job.source} would replace the photograph {target}; "
                    "choose another --output"
                )


def share_out(jobs: Sequence[Job], parts: int) -> list[list[Job]]:
    """Share jobs out so that the sizes of all parts are about the same.

    The largest job that is left goes to the part that has least. The same jobs always give the same
    parts.

    Args:
        jobs: in their order.
        parts: how many.

    Returns:
        The parts, with their jobs in the order of `jobs`; some may be empty.
    """
    loads = [(0, part) for part in range(parts)]
    taken: list[list[int]] = [[] for _ in range(parts)]
    for k in sorted(range(len(jobs)), key=lambda k: -jobs[k].size):
        load, part = loads[0]
        taken[part].append(k)
        heapq.heapreplace(loads, (load + jobs[k].size, part))
    return [[jobs[k] for k in sorted(part)] for part in taken]
