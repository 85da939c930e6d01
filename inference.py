"""Enhance backlit photographs: a folder in, a folder out.

    python inference.py --input photos/ --output enhanced/ --unet_pretrain_dir weights.pth

Exit status: 0 all done; 1 some photographs failed or folders could not be listed, each is named;
2 nothing was started; 130 interrupted. Whatever happens, a file in the output folder is a whole
photograph.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import logging
import os
import sys
import tempfile
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.images import (
    IMAGE_SUFFIXES,
    WRITTEN_SUFFIXES,
    Photo,
    UnreadablePhoto,
    UnwritablePhoto,
    keeps_alpha,
    list_files,
    peek,
    read_photo,
    write_photo,
)
from models.enhancer import UNetEnhancer
from models.fast_light_map import enhance_photo_fast
from models.tiling import enhance_photo
from utils.checkpoint import DEFAULT_WEIGHTS, find_weights, restore
from utils.errors import UserError, exit_with, printable
from utils.memory import keep_freed_memory, release_freed_memory
from utils.options import choose_device, count, share

FAILED, INTERRUPTED = 1, 130  # exit statuses
NAMED_FILES = 5  # so many files that are no photographs are named
LONGEST_NAME = 255  # bytes that a disk takes
# Errors that the next photograph would meet too
FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


@dataclass(frozen=True)
class Job:
    """A photograph, where its result goes, its size by its header, and what to tell of that."""

    source: Path
    target: Path
    megapixels: float
    notes: tuple[str, ...] = ()


@dataclass
class Tally:
    """What has become of the photographs, counted and shown."""

    bar: tqdm
    photos: int
    counts: Counter = field(default_factory=Counter)

    def enhanced(self, job: Job, notes: Sequence[str]) -> None:
        """Count a photograph that is saved and say what could not be kept of it."""
        self._count("enhanced")
        for note in notes:
            self.say(f"{job.source}: {note}")

    def failed(self, sentence: str) -> None:
        """Count a photograph that has no result and say why."""
        self._count("failed")
        self.say(f"failed: {sentence}")

    def _count(self, what: str) -> None:
        self.counts[what] += 1
        done = self.counts["enhanced"] + self.counts["failed"]
        self.bar.set_description_str(f"{done}/{self.photos} photos")

    def advance(self, pixels: float) -> None:
        """Move the bar; sums of many parts can come out a hair beyond its end."""
        self.bar.update(min(pixels / 1e6, self.bar.total - self.bar.n))

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        self.bar.write(printable(line), file=sys.stderr)

    def __str__(self) -> str:
        return ", ".join(
            f"{self.counts[what]} {what}" for what in ("enhanced", "skipped", "failed")
        )


def main(args: argparse.Namespace) -> int:
    """Enhance what `args.input` holds.

    Returns:
        The exit status.

    Raises:
        UserError: something is wrong with the arguments; nothing was enhanced.
    """
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata; what matters is raised
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    keep_freed_memory()
    # Check everything before the first photograph:
    if not (args.input and args.output):
        raise UserError("--input or --output is empty; give a path for each")
    source, output = Path(args.input), Path(args.output)
    photos, unlisted = find_photos(source, output, args.recursive)
    device = choose_device(args.device)
    if args.amp and device.type != "cuda":
        raise UserError(f"--amp needs CUDA and the device is {device}; leave it out")
    enhancer = UNetEnhancer(padding_mode="reflect")
    restore(enhancer, find_weights(args.unet_pretrain_dir), "enhancer weights")
    enhancer = enhancer.eval().to(device, memory_format=torch.channels_last)
    jobs = plan(photos, source, output, args.format)
    require_writable(output)

    # Leave out what is done:
    todo = [job for job in jobs if not (args.skip_existing and os.path.isfile(job.target))]
    tally = Tally(progress_bar(todo), len(todo), Counter(skipped=len(jobs) - len(todo)))

    how = dict(device=device, tile=args.tile, amp=args.amp, progress=tally.advance)

    def enhance(photo: Photo) -> Photo:
        colours = np.broadcast_to(photo.pixels, (*photo.pixels.shape[:2], 3))
        if args.light_map_scale < 1:
            enhanced = enhance_photo_fast(enhancer, colours, args.light_map_scale, **how)
        else:
            enhanced = enhance_photo(enhancer, colours, **how)
        release_freed_memory()  # different tiles would leave gaps in it
        # One light map serves all channels, so that grey stays grey: any channel will do.
        return replace(photo, pixels=enhanced[..., : photo.pixels.shape[2]])

    # Enhance the rest:
    stopped = FAILED if unlisted else 0
    with tally.bar:
        try:
            enhance_all(todo, enhance, tally)
        except KeyboardInterrupt:
            tally.say("interrupted; --skip_existing goes on from here")
            stopped = INTERRUPTED
        except UserError as error:
            tally.say(f"stopped: {error}")
            stopped = FAILED
    print(tally)
    return stopped or (FAILED if tally.counts["failed"] else 0)


def find_photos(source: Path, output: Path, recursive: bool) -> tuple[list[Path], list[str]]:
    """List the photographs to enhance, without the results of earlier runs.

    Returns:
        The photographs, and a sentence for each folder that could not be listed.

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
    if not os.path.isfile(source) and results.is_relative_to(folder.resolve()):
        listed = len(photos)
        photos = [p for p in photos if not p.parent.resolve().is_relative_to(results)]
        if not photos:
            raise UserError(f"all photographs in {source} lie in --output {output}; choose another")
        if len(photos) < listed:
            print(f"left alone as results: {listed - len(photos)} in {output}", file=sys.stderr)
    for sentence in unlisted:
        print(printable(sentence), file=sys.stderr)
    if others:
        names = [printable(str(path.relative_to(source))) for path in others]
        more = f" and {len(names) - NAMED_FILES} more" if len(names) > NAMED_FILES else ""
        print(
            f"no photographs, left alone: {', '.join(names[:NAMED_FILES])}{more}", file=sys.stderr
        )
    return photos, unlisted


def plan(photos: Sequence[Path], source: Path, output: Path, kind: str) -> list[Job]:
    """Give each photograph the place of its result.

    Args:
        photos: what to enhance, below `source`.
        source: the input folder or file.
        output: the output folder.
        kind: "png", "jpg", or "same" for each photograph's own.

    Raises:
        UserError: a result would replace a photograph.
    """
    root = source if os.path.isdir(source) else source.parent
    headers = [peek(photo) for photo in photos]
    endings = [
        choose_suffix(photo, kind, alpha) for photo, (_, alpha) in zip(photos, headers, strict=True)
    ]
    names = name_results(
        [photo.relative_to(root) for photo in photos], [suffix for suffix, _ in endings]
    )
    jobs = [
        Job(photo, output / name, pixels / 1e6, notes)
        for photo, name, (pixels, _), (_, notes) in zip(
            photos, names, headers, endings, strict=True
        )
    ]
    originals = {os.path.realpath(photo) for photo in photos}  # Path.resolve stumbles over loops
    for job in jobs:
        if os.path.realpath(job.target) in originals:
            raise UserError(
                f"the result of {job.source} would replace the photograph {job.target}; "
                "choose another --output"
            )
    return jobs


def choose_suffix(photo: Path, kind: str, alpha: bool) -> tuple[str, tuple[str, ...]]:
    """Choose the suffix of a result, and say why where it is not the one asked for."""
    suffix = photo.suffix if kind == "same" else f".{kind}"
    if suffix.lower() not in WRITTEN_SUFFIXES:
        return ".png", (f"saved as png, since {suffix or 'nameless'} files are not written",)
    if alpha and not keeps_alpha(suffix):
        return ".png", (f"saved as png, since {suffix} cannot hold its alpha",)
    return suffix, ()


def name_results(photos: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    """Name results after their photographs, each one differently.

    A result has its photograph's stem. Where that would give two the same name (on a disk that
    takes A for a, too), as with a.jpg and a.tif, all of them have the whole name: a.jpg.png and
    a.tif.png; where even that is taken, or longer than a disk takes, its start and a hash of it.
    So a name never depends on the order of the photographs or on what an earlier run left.
    """
    choices = [
        (
            photo.with_suffix(suffix),
            photo.with_name(photo.name + suffix),
            photo.with_name(
                f"{photo.name[:60]}.{hashlib.sha256(os.fsencode(photo)).hexdigest()[:8]}{suffix}"
            ),
        )
        for photo, suffix in zip(photos, suffixes, strict=True)
    ]
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


def require_writable(folder: Path) -> None:
    """Make a folder if it is missing.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}); choose another --output"
        ) from error


def progress_bar(jobs: Sequence[Job]) -> tqdm:
    """A bar of megapixels, which tell the time left better than photographs do."""
    return tqdm(
        total=sum(job.megapixels for job in jobs),
        desc=f"0/{len(jobs)} photos",
        unit=" MP",
        smoothing=0.05,  # tiles differ in their pace
        bar_format="{desc} |{bar}| {percentage:3.0f}% {rate_noinv_fmt}, {remaining} left",
    )


def enhance_all(jobs: Sequence[Job], enhance: Callable[[Photo], Photo], tally: Tally) -> None:
    """Enhance photographs one by one; the next is read and the last is saved meanwhile.

    At most three photographs are in memory. Interrupted, it lets the one being saved finish.

    Raises:
        UserError: no result can be saved any more.
    """
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        saving: tuple[Job, Future] | None = None
        try:
            for job, photo in read_ahead(jobs, reader):
                try:
                    result = enhance(photo.result())
                except UnreadablePhoto as error:
                    tally.bar.total = max(tally.bar.total - job.megapixels, tally.bar.n)
                    tally.failed(str(error))
                    continue
                except FloatingPointError:
                    reason = "the weights give no finite light map; choose other weights"
                    tally.failed(f"{job.source}: {reason}")
                    continue
                except (MemoryError, RuntimeError) as error:
                    if isinstance(error, RuntimeError) and "memory" not in str(error):
                        raise
                    tally.failed(f"{job.source}: out of memory; give a smaller --tile")
                    continue
                if saving:
                    wait([saving[1]])  # interrupted here, it is counted below
                    previous, saving = saving, None
                    finish(*previous, tally)
                saving = job, writer.submit(write_photo, result, job.target)
                del photo, result  # large, and of no more use here
        finally:
            if saving:
                finish(*saving, tally)


def read_ahead(jobs: Sequence[Job], reader: Executor) -> Iterator[tuple[Job, Future]]:
    """Yield jobs with their photographs, while the next photograph is being read."""
    waiting: deque[tuple[Job, Future]] = deque()
    for job in jobs:
        waiting.append((job, reader.submit(read_photo, job.source)))
        if len(waiting) > 1:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def finish(job: Job, saving: Future, tally: Tally) -> None:
    """Wait until a photograph is saved and count it.

    Raises:
        UserError: the folder takes no more, so that going on is of no use.
    """
    try:
        notes = saving.result()
    except UnwritablePhoto as error:
        tally.failed(f"{job.source}: {error}")
    except (OSError, MemoryError, UserError) as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        reason = f"cannot save {job.target}: {getattr(cause, 'strerror', error)}"
        tally.failed(reason)
        if getattr(cause, "errno", None) in FATAL:
            raise UserError(
                "make room or choose another --output; --skip_existing goes on from here"
            ) from error
    else:
        tally.enhanced(job, [*job.notes, *notes])


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Enhance backlit photographs. Orientation is applied; depth, alpha, colour "
        "profile and EXIF are kept."
    )
    parser.add_argument(
        "-i", "--input", required=True, metavar="PATH", help="a folder of photographs, or one"
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="where the results go"
    )
    parser.add_argument(
        "-c",
        "--unet_pretrain_dir",
        metavar="FILE",
        help="enhancer weights: a path, or the name of a file in pretrained_models/ "
        f"(default: {DEFAULT_WEIGHTS} there)",
    )
    parser.add_argument(
        "--recursive", action="store_true", help="also enhance sub-folders, and keep them"
    )
    parser.add_argument(
        "--skip_existing", action="store_true", help="leave out photographs that have a result"
    )
    parser.add_argument(
        "--format",
        choices=["png", "jpg", "same"],
        default="png",
        help="of the results; jpg: quality 95, 8 bits; same: as each photograph, where that "
        "format is written; what has alpha stays png if need be (default: %(default)s)",
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)"
    )
    parser.add_argument(
        "--tile",
        type=count,
        metavar="PIXELS",
        help="side of the tiles that are computed at a time; the result is the same for all "
        "sizes, memory and speed are not; 0: the whole photograph (default: by device)",
    )
    parser.add_argument(
        "--light_map_scale",
        type=share,
        default=1.0,
        metavar="S",
        help="a fast approximation: estimate the light map on a copy of S times the sides, 0.25 "
        "for instance, and upsample it along the edges (default: 1, exact)",
    )
    parser.add_argument(
        "--amp", action="store_true", help="bfloat16 on CUDA: faster, a little less exact"
    )
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main, parse_arguments())
