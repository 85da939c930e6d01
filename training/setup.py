"""What both training scripts set up before their stages."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path

import torch

from data.datasets import EnhancerImages, batches_per_epoch, in_batches
from data.pairs import counted
from training.learner import Learner
from training.run import LAYOUT, Run
from training.stages import fresh_enhancer
from utils import checkpoint, options
from utils.errors import SOME_LEFT_OUT, UserError, tell, warn
from utils.files import require_writable
from utils.memory import keep_freed_memory

CALIBRATION_IMAGES = 32  # set the scales of a text-free encoder's feature maps
CPP_COMPILERS = ("g++", "clang++", "cl")  # torch.compile takes its system's


def open_run(args: Namespace) -> tuple[Path, dict, dict | None]:
    """Prepare the process, and find the run's folder and the state that it goes on from.

    Args:
        args: of a training script; `device` is changed from a name to a device, and the
            pretraining flags to what holds.

    Returns:
        The folder, the arguments that decide the result, and the saved state or None.

    Raises:
        UserError: as `open_folder`, `require_writable` and `choose_device`, or a name that leads
            out of save_dir.
    """
    keep_freed_memory()
    if not args.exp_name or Path(args.exp_name).is_absolute() or ".." in Path(args.exp_name).parts:
        raise UserError(f"--exp_name {args.exp_name!r} must name a folder inside --save_dir")
    folder = Path(args.save_dir) / args.exp_name
    args.device = options.choose_device(args.device)
    deciding = options.deciding(args)
    state = open_folder(folder, args.resume, deciding)
    require_writable(folder, "--save_dir")
    resolve_pretrained_enhancer(args)
    return folder, deciding, state


def open_folder(folder: Path, resume: bool, arguments: dict) -> dict | None:
    """Find the state that a run goes on from.

    Args:
        folder: {save_dir}/{exp_name}.
        resume: whether the user asked to go on.
        arguments: those that decide the result; a run goes on only with the same.

    Returns:
        The saved state, or None for a run that starts anew.

    Raises:
        UserError: there is a run that would be overwritten, none to resume, or one with other
            arguments or of another version of this code.
    """
    last = folder / "last.pt"
    if not resume:
        if last.exists():
            raise UserError(
                f"{folder} holds a run already; add --resume to go on with it, or choose another "
                "--exp_name"
            )
        return None
    if not folder.is_dir():
        raise UserError(f"no run to resume in {folder}; check --save_dir and --exp_name")
    if not last.exists():
        tell(f"{folder} has no saved state yet: the run starts from its beginning")
        return None
    state = checkpoint.load(last)
    if not isinstance(state, dict) or state.get("layout") != LAYOUT:
        raise UserError(
            f"{last} was saved by another version of this code, which alone can go on with it; "
            "its weights in snapshots_model serve as --unet_pretrain_dir of a new run"
        )
    before = state["arguments"]
    changed = sorted(name for name in arguments if arguments[name] != before.get(name))
    if changed:
        was = ", ".join(f"--{name} was {before.get(name)}" for name in changed)
        raise UserError(f"the run in {folder} had other arguments: {was}; give the same to resume")
    return state


def create_run(
    args: Namespace,
    folder: Path,
    deciding: dict,
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
        deciding: the arguments that decide the result.
        state: what was saved; None starts anew.
        images: what the enhancer learns from.
        enhancer: what learns.
        guidance: what learns besides.
        constants: tensors of a new run, computed once.
    """
    limit = args.num_epochs * batches_per_epoch(len(images), args.train_batch_size)
    run = Run(
        folder,
        deciding,
        enhancer,
        guidance,
        limit=min(limit, args.max_iters) if args.max_iters else limit,
        device=args.device,
        samples=next(in_batches(images.photos)),
        amp=args.amp,
    )
    run.constants = constants or {}
    if state is not None:
        run.restore(state)
    return run


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


def tell_left_out(photos: int) -> int:
    """Say at the end how many photographs were left out; return the script's exit status."""
    if not photos:
        return 0
    warn(f"{counted(photos, 'photograph')} left out as unreadable; named above")
    return SOME_LEFT_OUT


def calibrate(encoder: torch.nn.Module, images: EnhancerImages, device: torch.device) -> None:
    """Scale a text-free identity encoder's feature maps by the first backlit photographs."""
    if encoder.needs_calibration:
        encoder.calibrate(next(in_batches(images.photos, CALIBRATION_IMAGES)).to(device))
