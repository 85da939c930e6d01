"""What an inference run has to do: which photographs, where their results go, and who does which.

All of it is decided from names and file sizes; a photograph is opened only when its turn comes.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from data.inputs import find_photos
from data.listing import ask, look_up
from data.result_names import name_file, name_in_folder, names_file
from utils.errors import UserError


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


def share_work(
    inputs: Sequence[str],
    output: str,
    kind: str,
    *,
    tail: str = "",
    recursive: bool = False,
    skip_existing: bool = False,
    parts: int = 1,
) -> tuple[list[list[Job]], int, bool]:
    """Find the photographs, and share those that have no result yet out.

    Args:
        inputs: files and folders.
        output: a folder; or a file, for one input file.
        kind: "png", "jpg", "same" for each photograph's own, or as `result_kind` has it of a file.
        tail: what the results' stems end with.
        recursive: include the folders below.
        skip_existing: leave out photographs that have a result.
        parts: how many processes share the work.

    Returns:
        The part of each process, by rank; how many photographs were skipped; whether something
        could not be listed, which is said.

    Raises:
        UserError: there are no photographs, or the output is no place for their results.
    """
    photos, names, unlisted = find_photos(inputs, output, recursive)
    if names_file(inputs, output):
        targets, pngs = name_file(photos[0], output)
    else:
        targets, pngs = name_in_folder(names, output, kind, tail)
    jobs, there = plan(photos, targets, pngs)
    todo = [job for job in jobs if not (skip_existing and job.target in there)]
    return share_out(todo, parts), len(jobs) - len(todo), bool(unlisted)


def plan(
    photos: Sequence[str], targets: Sequence[str], pngs: Sequence[str | None]
) -> tuple[list[Job], set[str]]:
    """Make the jobs, without opening a photograph.

    Args:
        photos: what to enhance.
        targets, pngs: their results, as `name_in_folder` gives them.

    Returns:
        The jobs, and the files that are in their results' folders already.

    Raises:
        UserError: a result would replace a photograph.
    """
    jobs, inodes = [], set()
    for photo, target, png in zip(photos, targets, pngs, strict=True):
        inode, size = look_up(photo)
        inodes.add(inode)
        jobs.append(Job(photo, target, png, size))
    there = _files_beside(jobs)
    suspects = {path for path, inode in there.items() if inode in inodes}
    if suspects:  # seldom, and the exact comparison takes long
        _refuse_to_replace(jobs, suspects)
    return jobs, set(there)


def _files_beside(jobs: Sequence[Job]) -> dict[str, int]:
    """The files in the folders where results go, and their numbers in the file system."""
    found = {}
    for folder in {job.target[: -len(os.path.basename(job.target))] for job in jobs}:
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if ask(entry.is_file):
                    found[folder + entry.name] = entry.inode()  # spelled as the targets are
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
