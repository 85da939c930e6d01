"""What both training scripts set up before their stages."""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

import torch

from data.datasets import EnhancerImages, batches_per_epoch, in_batches
from data.pairs import counted
from training.journal import Journal
from training.learner import Learner
from training.origin import Origin
from training.plan import Plan
from training.plots import Samples
from training.record import Reading, Record
from training.run import Run
from training.saved_state import damaged, read_state, rebuild, write_photographs
from training.stages import fresh_enhancer
from training.validation import Validation, find_pairs
from utils import checkpoint, distributed, options
from utils.errors import SOME_LEFT_OUT, UserError, tell, warn
from utils.files import lock_until_exit, require_writable, sweep
from utils.memory import keep_freed_memory, peak_memory

CALIBRATION_IMAGES = 32  # set the scales of a text-free encoder's feature maps
LOCK = "run.lock"  # in a run's folder
CPP_COMPILERS = ("g++", "clang++", "cl")  # torch.compile takes its system's


def open_run(args: Namespace) -> tuple[Path, Reading, dict | None]:
    """Prepare the process, and find the run's folder and the state that it goes on from.

    From now until the process ends no other run can open the folder. Where torchrun has started
    several processes, they share the run from here on.

    Args:
        args: of a training script; `device` is changed from a name to this process's device, and
            the pretraining flags to what holds.

    Returns:
        The folder, what was read so far, and the saved state or None.

    Raises:
        UserError: as `find_state`, `Reading`, `find_pairs`, `require_writable` and `choose_device`,
            a name that leads out of save_dir, a folder that another process trains in, or
            --tensorboard without its package.
    """
    keep_freed_memory()
    if Path(args.exp_name).is_absolute() or ".." in Path(args.exp_name).parts:
        raise UserError(f"--exp_name {args.exp_name!r} must name a folder inside --save_dir")
    folder = Path(args.save_dir) / args.exp_name
    args.device = distributed.join(options.choose_device(args.device))
    if args.amp and not options.has_bf16(args.device):
        tell(f"--amp: this {args.device} has no bf16 instructions, so it takes many times as long")
    state = None
    with distributed.together():
        if distributed.is_main():
            take_folder(folder, args.resume)
            state = find_state(folder, args.resume)
    state = distributed.broadcast(state)
    with distributed.together():
        resolve_pretrained_enhancer(args)
        before = None
        if state is not None:
            try:
                before = rebuild(Record, state["record"], "record")
                before.check()
            except ValueError as error:
                raise damaged(folder / "last.pt", error) from error
        if args.tensorboard and find_spec("tensorboard") is None:
            raise UserError(
                "--tensorboard needs a package: pip install tensorboard; or leave it out, since "
                "log.csv and curves.png have the same figures"
            )
        reading = Reading(args, folder, before)
        reading.held_out = find_pairs(args)
        return folder, reading, state


def take_folder(folder: Path, resume: bool) -> None:
    """Make a run's folder this process's own until it ends, and sweep it.

    Raises:
        UserError: it is not there to resume, cannot be written to, or another process trains in it.
    """
    if resume and not os.path.isdir(folder):
        raise UserError(f"no run to resume in {folder}; check --save_dir and --exp_name")
    require_writable(folder, "--save_dir")
    if holder := lock_until_exit(folder / LOCK):
        raise UserError(
            f"{folder} is in use by {holder}; wait until it ends, or choose another --exp_name"
        )
    for below, *_ in os.walk(folder):
        sweep(below)


def find_state(folder: Path, resume: bool) -> dict | None:
    """Find the state that a run goes on from.

    Args:
        folder: {save_dir}/{exp_name}.
        resume: whether the user asked to go on.

    Returns:
        The saved state, or None for a run that starts anew.

    Raises:
        UserError: there is a run that would be overwritten, or as `read_state`.
    """
    last = folder / "last.pt"
    if not resume and last.exists():
        raise UserError(
            f"{folder} holds a run already; add --resume to go on with it, or choose another "
            "--exp_name"
        )
    if not last.exists() and (final := folder / "snapshots_model" / "final.pth").exists():
        raise UserError(
            f"{final} is a finished run's, whose last.pt is gone: it cannot go on and would be "
            "overwritten; choose another --exp_name"
        )
    if not resume:
        return None
    if not last.exists():
        tell(f"{folder} has no saved state yet: the run starts from its beginning")
        return None
    return read_state(last)


def create_run(
    args: Namespace,
    folder: Path,
    reading: Reading,
    state: dict | None,
    images: EnhancerImages,
    enhancer: Learner,
    guidance: Learner | None = None,
    constants: dict | None = None,
) -> Run:
    """Create a run, or restore it.

    Args:
        args: of a training script, after `open_run`.
        folder: of the run.
        reading: with all photographs and encoders added.
        state: what was saved; None starts anew.
        images: what the enhancer learns from.
        enhancer: what learns.
        guidance: what learns besides.
        constants: tensors of a new run, computed once; for a resumed one, examples of them.

    Raises:
        UserError: what was saved is damaged.
    """
    sha256 = write_photographs(reading.record.photographs, folder)
    limit = args.num_epochs * batches_per_epoch(len(images), args.train_batch_size)
    limit = min(limit, args.max_iters) if args.max_iters else limit
    origin = Origin(folder, resumed=state is not None)
    validation = None
    if reading.held_out:
        validation = Validation(reading.held_out, args, folder, origin)
    samples = Samples(next(in_batches(images.photos))[1], args.device, args.amp)
    journal = create_journal(args, folder, limit, enhancer, guidance, samples)
    run = Run(
        folder,
        vars(reading.record) | {"photographs": sha256},
        enhancer,
        guidance,
        limit=limit,
        device=args.device,
        journal=journal,
        validation=validation,
    )
    run.constants = constants or {}
    if state is not None:
        run.restore(state)
    if distributed.is_main():
        held_out = validation and validation.photographs
        origin.write_start(args, reading.record, run.schedule.iteration, held_out)
    return run


def create_journal(
    args: Namespace,
    folder: Path,
    limit: int,
    enhancer: Learner,
    guidance: Learner | None,
    samples: Samples,
) -> Journal:
    """Create what writes down a run of `limit` enhancer iterations."""
    lengths = [limit, args.num_reconstruction_iters, args.round_iters]
    if guidance is not None:
        lengths += [args.num_clip_pretrained_iters, args.refinement_iters]
    plan, board = Plan.of(*lengths), None
    if args.tensorboard and distributed.is_main():
        from torch.utils.tensorboard import SummaryWriter  # imports what only this option needs

        board = SummaryWriter(str(folder / "tensorboard"))
    return Journal(
        folder,
        plan,
        samples=samples,
        keep=args.keep,
        board=board,
        display_iter=args.display_iter,
        weights_bytes=sum(value.nbytes for value in enhancer.module.state_dict().values()),
    )


def new_enhancer_learner(args: Namespace) -> Learner:
    """Make the enhancer that a run starts from, and its optimiser.

    Args:
        args: seed, start_light_map, unet_pretrain_dir, device, compile, train_lr, weight_decay,
            ema_decay.

    Raises:
        UserError: as `checkpoint.restore`, or nothing here can compile it.
    """
    enhancer = fresh_enhancer(args)
    if args.unet_pretrain_dir is not None:
        checkpoint.restore(enhancer, args.unet_pretrain_dir, "enhancer weights")
    if args.compile:
        if not any(map(shutil.which, CPP_COMPILERS)):
            raise UserError(
                "--compile needs a C++ compiler such as g++; install one or leave it out"
            )
        # In place, so that weights keep their names; each shape of its input by itself, so that a
        # resumed run, which meets them in another order, computes to the last bit the same.
        enhancer.compile(dynamic=False)
    return Learner.create(enhancer, args.train_lr, args.weight_decay, args.ema_decay)


def resolve_pretrained_enhancer(args: Namespace) -> None:
    """Resolve the pretraining flags; pretrained weights skip the warm-up.

    Args:
        args: load_pretrain_unet, unet_pretrain_dir and num_reconstruction_iters; the last two are
            changed to what holds.

    Raises:
        UserError: weights are asked for and none are named.
    """
    if args.unet_pretrain_dir is None:
        if args.load_pretrain_unet:
            raise UserError("--load_pretrain_unet True needs --unet_pretrain_dir FILE")
    elif args.load_pretrain_unet is False:
        tell(f"{args.unet_pretrain_dir} is ignored, as --load_pretrain_unet False says")
        args.unet_pretrain_dir = None
    else:
        tell(f"starting from {args.unet_pretrain_dir}, so without a warm-up")
        args.num_reconstruction_iters = 0


def tell_end(run: Run, left_out: int) -> int:
    """Say at the end what a run has done; return the script's exit status.

    Args:
        run: that is over.
        left_out: photographs to learn from that could not be read; those held out count, too.
    """
    left_out += run.validation.left_out if run.validation else 0
    memory = peak_memory(run.device) / 2**20
    tell(
        f"{run.schedule.iteration} enhancer iterations done; weights in {run.folder}; peak memory "
        f"{memory:.0f} MiB"
    )
    return tell_left_out(left_out)


def tell_left_out(photos: int) -> int:
    """Say at the end how many photographs were left out; return the script's exit status."""
    if not photos:
        return 0
    warn(f"{counted(photos, 'photograph')} left out as unreadable; named above")
    return SOME_LEFT_OUT


def calibrate(encoder: torch.nn.Module, images: EnhancerImages, device: torch.device) -> None:
    """Scale a text-free identity encoder's feature maps by the first backlit photographs."""
    if encoder.needs_calibration:
        _, photos = next(in_batches(images.photos, CALIBRATION_IMAGES))
        encoder.calibrate(photos.to(device))
