"""Enhance backlit photographs: files and folders in, a folder out, or a file for a file.

    python inference.py --input photos/ --output enhanced/ --unet_pretrain_dir weights.pth

Several processes that torchrun or srun starts share the folder out by the files' sizes. They do not
wait for each other before the end, so that one which dies loses its own photographs alone.

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
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch

from data.images import Photo, UnreadablePhoto, UnwritablePhoto, peek, read_photo, write_photo
from data.jobs import Job, share_work
from data.result_names import choose_suffix, result_kind, results_folder
from data.tally import Tally, progress_bar, summary
from models import load_enhancer
from models.enhancer import UNetEnhancer
from models.fast_light_map import fast_light_map
from models.strength import choose_gamma, divide
from models.tiling import photo_light_map
from utils import distributed
from utils.checkpoint import DEFAULT_WEIGHTS
from utils.distributed import PeerLost
from utils.errors import SOME_LEFT_OUT, UserError, WorkError, lacks_memory, tell, warn
from utils.files import require_writable
from utils.memory import keep_freed_memory, release_freed_memory
from utils.options import ArgumentParser, choose_device, count, ending, has_bf16, share, strength
from utils.script import exit_with
from utils.signals import hold_signals, release_signals

LONGEST_RUN = timedelta(days=365)  # that one process waits for the others at the end
FAREWELL = 10  # seconds that one which was interrupted waits for the others to say what they did
REMEDY = "--skip_existing goes on from here"
# Errors in saving that the next photograph would meet too
FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def main(args: argparse.Namespace) -> int:
    """Enhance the photographs of `args.input`.

    Returns:
        The exit status.

    Raises:
        UserError: an argument is wrong; nothing was enhanced.
        PeerLost, KeyboardInterrupt: this process's work has ended, and another one cannot be asked
            what it did.
    """
    keep_freed_memory()

    # Check everything before the first photograph:
    if not all((*args.input, args.output)):
        raise UserError("--input or --output is empty; give a path for each")
    device = distributed.join(choose_device(args.device), quiet=False, patience=LONGEST_RUN)
    with distributed.together():
        if args.amp and not has_bf16(device):
            raise UserError(f"--amp: this {device} has no bf16 instructions; leave it out")
        enhancer = load_enhancer(args.unet_pretrain_dir, device)
        # One process shares the photographs out for all:
        args.format = result_kind(args.input, args.output, args.format, args.suffix)
        shares, skipped, status = None, 0, 0
        if distributed.is_main():
            how = dict(recursive=args.recursive, skip_existing=args.skip_existing)
            how |= dict(tail=args.suffix, parts=distributed.world_size())
            shares, skipped, unlisted = share_work(args.input, args.output, args.format, **how)
            status = SOME_LEFT_OUT if unlisted else 0
        require_writable(results_folder(args.input, args.output), "--output")
    jobs = distributed.broadcast(shares)[distributed.rank()]

    # Enhance this process's part:
    tally = Tally(progress_bar(jobs), len(jobs), Counter(skipped=skipped))
    interrupted = None
    with tally.bar:
        try:
            enhance_all(jobs, enhancer, device, args, tally)
        except KeyboardInterrupt as error:
            interrupted = error
            if distributed.is_first_to_fail():
                warn(f"interrupted; {REMEDY}")
        except WorkError as error:
            warn(f"stopped: {error}")
    if tally.counts["failed"]:
        status = SOME_LEFT_OUT
    if interrupted:
        status = 128 + getattr(interrupted, "signal", 2)

    # Sum up what all did:
    try:
        ends = distributed.gather((tally.counts, status), FAREWELL if interrupted else None)
    except (PeerLost, KeyboardInterrupt) as error:
        say = tell if distributed.is_main() else warn
        say(f"{summary(tally.counts)} by rank {distributed.rank()} alone; {REMEDY}")
        raise (interrupted or error) from None
    tell(summary(sum((counts for counts, _ in ends), Counter())))
    return max(status for _, status in ends)


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
            for job, reading in read_ahead(jobs, reader, args):
                try:
                    photo = reading.result()
                    if photo is None:
                        tally.skipped(job)
                        continue
                    tally.start(job, photo)
                    result = enhance(enhancer, photo, device, args, tally.advance)
                except UnreadablePhoto as error:
                    tally.leave_out(job)
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
                hold_signals()  # each photograph is counted once
                try:
                    if saving:
                        previous, saving = saving, None
                        finish(*previous, tally)
                    target = job.target if photo.alpha is None else job.png or job.target
                    future = writer.submit(write_photo, result, Path(target))
                    saving = job._replace(target=target), future
                finally:
                    release_signals()
                del reading, photo, result  # large, and no longer needed here
        except KeyboardInterrupt:
            hold_signals()  # to the end: torchrun passes on what the terminal has sent already
            raise
        finally:
            if saving:
                finish(*saving, tally)


def read_ahead(
    jobs: Sequence[Job], reader: Executor, args: argparse.Namespace
) -> Iterator[tuple[Job, Future]]:
    """Yield jobs with what `read` gives for them, reading one ahead."""
    waiting: deque[tuple[Job, Future]] = deque()
    for job in jobs:
        waiting.append((job, reader.submit(read, job, args)))
        if len(waiting) > 1:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def read(job: Job, args: argparse.Namespace) -> Photo | None:
    """Read a photograph; None if it has alpha, and a result that is to be kept.

    Raises:
        UnreadablePhoto, MemoryError: as `read_photo`.
    """
    if args.skip_existing and job.png and os.path.isfile(job.png):
        _, alpha = peek(job.source)
        if alpha:  # else that file is another run's, of another --format
            return None
    photo = read_photo(job.source)
    _, notes = choose_suffix(job.source, args.format, photo.alpha is not None)
    photo.notes[:0] = notes
    return photo


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
    how = dict(device=device, tile=args.tile, amp=args.amp, progress=progress)
    if args.light_map_scale < 1:
        light_map = fast_light_map(enhancer, photo.pixels, args.light_map_scale, **how)
    else:
        light_map = photo_light_map(enhancer, photo.pixels, **how)
    exposed = args.auto_exposure
    gamma = choose_gamma(photo.pixels, light_map, args.strength) if exposed else 1.0
    notes = [f"lightened by auto exposure, gamma {gamma:g}"] if gamma != 1 else []
    enhanced = divide(photo.pixels, light_map, args.strength, gamma)  # grey stays grey
    del light_map
    release_freed_memory()  # tiles of other sizes would leave gaps in it
    return replace(photo, pixels=enhanced, notes=photo.notes + notes)


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
            raise WorkError(f"make room or choose another --output; {REMEDY}") from error
    else:
        tally.enhanced(job, notes)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(
        description="Enhance backlit photographs. The orientation is applied; bit depth, alpha, "
        "colour profile and other metadata are kept where the format holds them."
    )
    parser.add_argument(
        "-i",
        "--input",
        required=True,
        nargs="+",
        action="extend",
        metavar="PATH",
        help="photographs and folders of them; of several, each folder keeps its name",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="PATH",
        help="the folder where the results go; for one file also a file, as photo.jpg",
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
        help="of the results; jpg: quality 95, 8 bits; same: each photograph's own, if it can be "
        "written, jpg for HEIC and AVIF; png where the format cannot hold the alpha "
        "(default: png, or what the name of the --output file says)",
    )
    parser.add_argument(
        "--suffix",
        type=ending,
        default="",
        metavar="TEXT",
        help="end the results' names with it: with _new, a.jpg becomes a_new.png",
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
    beyond = parser.add_argument_group("beyond the paper (off by default)")
    beyond.add_argument(
        "--strength",
        type=strength,
        default=1.0,
        metavar="S",
        help="how much light, from 0, the photograph as it is, to 3 (default: 1, the method)",
    )
    beyond.add_argument(
        "--auto_exposure",
        action="store_true",
        help="then lighten each result whose mean luma is below 0.5 (of 0 to 1) by a gamma curve, "
        "until it is there or the gamma is 0.6, and print the gamma",
    )
    beyond.add_argument(
        "--light_map_scale",
        type=share,
        default=1.0,
        metavar="S",
        help="a fast approximation: compute the light map of a copy of S times the sides, 0.25 "
        "for instance, and upsample it along the edges (default: 1, exact)",
    )
    beyond.add_argument(
        "--amp",
        action="store_true",
        help="bfloat16: faster, a little less exact; on CUDA, and on CPUs with instructions for it",
    )
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main, parse_arguments())
