"""Enhance backlit photographs: a folder in, a folder out.

    python inference.py --input photos/ --output enhanced/ --unet_pretrain_dir weights.pth

Exit status: 0 all done; 1 some photographs failed or folders could not be listed, each is named;
2 refused before any work; 130 and 143 ended by Ctrl-C and SIGTERM. Whatever happens, every file in
the output folder is a whole photograph.
"""

from __future__ import annotations

import argparse
import errno
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import raw
from data.images import (
    IMAGE_SUFFIXES,
    Photo,
    UnreadablePhoto,
    UnwritablePhoto,
    peek,
    read_photo,
    write_photo,
)
from data.listing import list_files
from data.pairs import abridged
from data.raw import undeveloped
from data.result_names import choose_suffix, name_results
from models import load_enhancer
from models.enhancer import UNetEnhancer
from models.fast_light_map import enhance_photo_fast
from models.tiling import enhance_photo
from utils.checkpoint import DEFAULT_WEIGHTS
from utils.errors import SOME_LEFT_OUT, UserError, WorkError, lacks_memory, tell, warn
from utils.files import require_writable
from utils.memory import keep_freed_memory, release_freed_memory
from utils.options import ArgumentParser, choose_device, count, share
from utils.script import exit_with

OTHER_FILES_NAMED = 5  # the rest of those that are no photographs is counted
# Errors in saving that the next photograph would meet too
FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


@dataclass(frozen=True)
class Job:
    """A photograph, where its result goes, its size, and notes on the result's format."""

    source: Path
    target: Path
    megapixels: float
    notes: tuple[str, ...] = ()


@dataclass
class Tally:
    """Count the photographs that are enhanced, skipped and failed, and show the progress."""

    bar: tqdm
    photos: int
    counts: Counter = field(default_factory=Counter)

    def enhanced(self, job: Job, notes: Sequence[str]) -> None:
        """Count a saved photograph and say what could not be kept of it."""
        self._count("enhanced")
        for note in notes:
            warn(f"{job.source}: {note}")

    def failed(self, sentence: str) -> None:
        """Count a photograph without a result and say why."""
        self._count("failed")
        warn(f"failed: {sentence}")

    def _count(self, what: str) -> None:
        self.counts[what] += 1
        done = self.counts["enhanced"] + self.counts["failed"]
        self.bar.set_description_str(f"{done}/{self.photos} photos")

    def advance(self, pixels: float) -> None:
        """Move the bar; rounding must not push it beyond its end."""
        self.bar.update(min(pixels / 1e6, self.bar.total - self.bar.n))

    def __str__(self) -> str:
        return ", ".join(
            f"{self.counts[what]} {what}" for what in ("enhanced", "skipped", "failed")
        )


def main(args: argparse.Namespace) -> int:
    """Enhance the photographs of `args.input`.

    Returns:
        The exit status.

    Raises:
        UserError: an argument is wrong; nothing was enhanced.
    """
    keep_freed_memory()

    # Check everything before the first photograph:
    if not (args.input and args.output):
        raise UserError("--input or --output is empty; give a path for each")
    source, output = Path(args.input), Path(args.output)
    photos, unlisted = find_photos(source, output, args.recursive)
    device = choose_device(args.device)
    if args.amp and device.type != "cuda":
        raise UserError(f"--amp needs CUDA and the device is {device}; leave it out")
    enhancer = load_enhancer(args.unet_pretrain_dir, device)
    jobs = plan(photos, source, output, args.format)
    require_writable(output, "--output")

    # Skip what is done:
    todo = [job for job in jobs if not (args.skip_existing and os.path.isfile(job.target))]
    tally = Tally(progress_bar(todo), len(todo), Counter(skipped=len(jobs) - len(todo)))

    # Enhance the rest:
    status = SOME_LEFT_OUT if unlisted else 0
    with tally.bar:
        try:
            enhance_all(todo, enhancer, device, args, tally)
        except KeyboardInterrupt as error:
            warn("interrupted; --skip_existing goes on from here")
            status = 128 + getattr(error, "signal", 2)
        except WorkError as error:
            warn(f"stopped: {error}")
    tell(str(tally))
    return status or (SOME_LEFT_OUT if tally.counts["failed"] else 0)


def find_photos(source: Path, output: Path, recursive: bool) -> tuple[list[Path], list[str]]:
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
        photos = [p for p in photos if not Path(os.path.realpath(p.parent)).is_relative_to(results)]
        if not photos:
            raise UserError(f"all photographs in {source} lie in --output {output}; choose another")
        if len(photos) < listed:
            warn(f"left alone as results: {listed - len(photos)} in {output}")
    raws = undeveloped(others, photos)
    unlisted += [f"{path} is {raw.WHAT}" for path in raws]
    for sentence in unlisted:
        warn(sentence)
    if others := [path for path in others if path not in raws]:
        names = abridged([path.relative_to(source) for path in others], OTHER_FILES_NAMED)
        warn(f"no photographs, left alone: {names}")
    return photos, unlisted


def plan(photos: Sequence[Path], source: Path, output: Path, kind: str) -> list[Job]:
    """Decide where the result of each photograph goes.

    Args:
        photos: what to enhance, below `source`.
        source: the input folder or file.
        output: the output folder.
        kind: "png", "jpg", or "same" for each photograph's own.

    Raises:
        UserError: a result would replace a photograph.
    """
    root = source if os.path.isdir(source) else source.parent
    sizes, suffixes, notes = [], [], []
    for photo in photos:
        pixels, alpha = peek(photo)
        suffix, note = choose_suffix(photo, kind, alpha)
        sizes.append(pixels / 1e6)
        suffixes.append(suffix)
        notes.append(note)
    names = name_results([photo.relative_to(root) for photo in photos], suffixes)
    targets = [output / name for name in names]
    originals = {os.path.realpath(photo) for photo in photos}  # Path.resolve fails on loops
    for photo, target in zip(photos, targets, strict=True):
        if os.path.realpath(target) in originals:
            raise UserError(
                f"the result of {photo} would replace the photograph {target}; "
                "choose another --output"
            )
    return [Job(*job) for job in zip(photos, targets, sizes, notes, strict=True)]


def progress_bar(jobs: Sequence[Job]) -> tqdm:
    """Make a bar of megapixels, which predict the time left better than photographs do."""
    return tqdm(
        total=sum(job.megapixels for job in jobs),
        desc=f"0/{len(jobs)} photos",
        unit=" MP",
        smoothing=0.05,  # the pace of tiles varies
        bar_format="{desc} |{bar}| {percentage:3.0f}% {rate_noinv_fmt}, {remaining} left",
    )


def enhance_all(
    jobs: Sequence[Job],
    enhancer: UNetEnhancer,
    device: torch.device,
    args: argparse.Namespace,
    tally: Tally,
) -> None:
    """Enhance photographs in turn, while the next one is read and the last one is saved.

    At most three photographs are in memory. An interruption lets the one being saved finish.

    Raises:
        WorkError: no further result can be saved.
    """
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        saving: tuple[Job, Future] | None = None
        try:
            for job, reading in read_ahead(jobs, reader):
                try:
                    result = enhance(enhancer, reading.result(), device, args, tally.advance)
                except UnreadablePhoto as error:
                    tally.bar.total = max(tally.bar.total - job.megapixels, tally.bar.n)
                    tally.failed(str(error))
                    continue
                except FloatingPointError:
                    reason = "the weights give no finite light map; choose other weights"
                    tally.failed(f"{job.source}: {reason}")
                    continue
                except (MemoryError, RuntimeError) as error:
                    if not lacks_memory(error):
                        raise
                    tally.failed(f"{job.source}: out of memory; give a smaller --tile")
                    continue
                if saving:
                    wait([saving[1]])  # interrupted here, it is counted below
                    previous, saving = saving, None
                    finish(*previous, tally)
                saving = job, writer.submit(write_photo, result, job.target)
                del reading, result  # large, and no longer needed here
        finally:
            if saving:
                finish(*saving, tally)


def read_ahead(jobs: Sequence[Job], reader: Executor) -> Iterator[tuple[Job, Future]]:
    """Yield jobs with their photographs, reading one ahead."""
    waiting: deque[tuple[Job, Future]] = deque()
    for job in jobs:
        waiting.append((job, reader.submit(read_photo, job.source)))
        if len(waiting) > 1:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def enhance(
    enhancer: UNetEnhancer,
    photo: Photo,
    device: torch.device,
    args: argparse.Namespace,
    progress: Callable[[float], None],
) -> Photo:
    """Enhance a photograph's pixels and keep the rest of it; report pixels done to `progress`.

    Raises:
        FloatingPointError: the light map is not finite.
    """
    colours = np.broadcast_to(photo.pixels, (*photo.pixels.shape[:2], 3))
    how = dict(device=device, tile=args.tile, amp=args.amp, progress=progress)
    if args.light_map_scale < 1:
        enhanced = enhance_photo_fast(enhancer, colours, args.light_map_scale, **how)
    else:
        enhanced = enhance_photo(enhancer, colours, **how)
    release_freed_memory()  # tiles of other sizes would leave gaps in it
    # All channels share one light map, so grey stays grey and any channel will do.
    return replace(photo, pixels=enhanced[..., : photo.pixels.shape[2]])


def finish(job: Job, saving: Future, tally: Tally) -> None:
    """Wait until a photograph is saved, and count it.

    Raises:
        WorkError: no further result can be saved either.
    """
    try:
        notes = saving.result()
    except UnwritablePhoto as error:
        tally.failed(f"{job.source}: {error}")
    except (OSError, MemoryError, UserError) as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        tally.failed(f"cannot save {job.target}: {getattr(cause, 'strerror', error)}")
        if getattr(cause, "errno", None) in FATAL:
            raise WorkError(
                "make room or choose another --output; --skip_existing goes on from here"
            ) from error
    else:
        tally.enhanced(job, [*job.notes, *notes])


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(
        description="Enhance backlit photographs. The orientation is applied; bit depth, alpha, "
        "colour profile and other metadata are kept where the format holds them."
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
        "--recursive", action="store_true", help="include sub-folders; the results keep them"
    )
    parser.add_argument(
        "--skip_existing", action="store_true", help="skip photographs that have a result"
    )
    parser.add_argument(
        "--format",
        choices=["png", "jpg", "same"],
        default="png",
        help="of the results; jpg: quality 95, 8 bits; same: each photograph's own, if it can be "
        "written, jpg for HEIC and AVIF; png where the format cannot hold the alpha "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)"
    )
    parser.add_argument(
        "--tile",
        type=count,
        metavar="PIXELS",
        help="side of the tiles that are computed one by one; it changes memory and speed, not "
        "the result; 0: the whole photograph at once (default: chosen by device)",
    )
    parser.add_argument(
        "--light_map_scale",
        type=share,
        default=1.0,
        metavar="S",
        help="a fast approximation: compute the light map of a copy of S times the sides, 0.25 "
        "for instance, and upsample it along the edges (default: 1, exact)",
    )
    parser.add_argument(
        "--amp", action="store_true", help="bfloat16 on CUDA: faster, a little less exact"
    )
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main, parse_arguments())
