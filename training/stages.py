"""The enhancer's warm-up and rounds, which both training scripts share (method.md, 7)."""

from __future__ import annotations

import shutil
import statistics
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from training.run import (
    SCORE_WINDOW,
    Learner,
    Run,
    Terms,
    check_finite,
    learning_rate,
    run_stage,
    save_samples,
)
from utils import checkpoint
from utils.errors import UserError

WARM_UP = "warm-up"
ROUND = "round"
ROUND_ITERS = 2100
EXTRA_ITERS = 60  # more while the loss exceeds thre_train
COLLAPSE_PSNR = 8.0  # dB; an enhancer whose output is so unlike its input is replaced
COLLAPSE_AFTER = 100  # warm-up iterations
RESTART_ITERS = 100  # more warm-up for the new enhancer
SAMPLE_DISPLAYS = 10  # a grid of samples every so many displays
CPP_COMPILERS = ("g++", "clang++", "cl")  # torch.compile takes its system's

Batches = Iterator[tuple[Tensor, Tensor]]
Enhance = Callable[[nn.Module, Tensor], Tensor]


def enhancer_step(
    run: Run,
    batches: Batches,
    enhance: Enhance,
    criterion: Callable[..., dict[str, Tensor | float]],
    args: Namespace,
    limit: int,
) -> Terms:
    """Train the enhancer on one batch.

    Args:
        run: its "enhancer" learns.
        batches: images (N, 3, H, W) in [0, 1] and their indices (N,); or (N, 2, 3, H, W), images
            with their partners.
        enhance: maps the enhancer and images to enhanced images.
        criterion: maps enhanced images, images, indices and partners to named terms; their
            "loss" is minimised, and "score" says how good the iteration was.
        args: train_lr, lr_warmup_iters, lr_cosine, clip_grad_norm, display_iter, device.
        limit: enhancer iterations of the whole run.

    Raises:
        UserError: the loss is not finite.
    """
    learner, schedule = run.learners["enhancer"], run.schedule
    images, indices = next(batches)
    images = images.to(args.device, non_blocking=True)
    images, partners = images.unbind(dim=1) if images.dim() == 5 else (images, None)
    rate = learning_rate(
        args.train_lr, schedule.iteration, args.lr_warmup_iters, limit if args.lr_cosine else 0
    )
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
    enhanced = enhance(learner.module, images)
    terms = criterion(enhanced, images, indices.to(args.device), partners)
    check_finite(terms["loss"], run)
    learner.step(terms["loss"], args.clip_grad_norm)
    number = schedule.iteration + 1
    if number == 1 or number % (SAMPLE_DISPLAYS * args.display_iter) == 0:
        path = run.folder / "samples" / f"iter_{number}.png"
        save_samples(images, enhanced.detach(), path)
    return {name: float(torch.as_tensor(value).detach()) for name, value in terms.items()}


def save_best_enhancer(run: Run) -> None:
    """Write the enhancer as the best of its round and under its iteration's number."""
    folder = run.folder / "snapshots_model"
    module = run.learners["enhancer"].result()
    checkpoint.save_weights(module, folder / f"best_model_round{run.schedule.round}.pth")
    checkpoint.save_weights(module, folder / f"iter_{run.schedule.iteration}.pth")


def warm_up(
    run: Run,
    step: Callable[[], Terms],
    new_enhancer: Callable[[int], nn.Module],
    args: Namespace,
    limit: int,
) -> None:
    """Teach the enhancer to keep the image; replace it by a new one whenever it has collapsed.

    Args:
        run: begins or continues its warm-up.
        step: one iteration; its terms have a "psnr", its score.
        new_enhancer: makes an enhancer with fresh weights from a restart's number.
        args: num_reconstruction_iters, display_iter.
        limit: enhancer iterations of the whole run.

    Raises:
        Interrupted, UserError: as `run_stage`.
    """
    schedule = run.schedule
    schedule.begin(WARM_UP, 0, args.num_reconstruction_iters)

    def watched_step() -> Terms:
        terms = step()
        last = [*schedule.scores, terms["score"]][-SCORE_WINDOW:]
        lost = len(last) == SCORE_WINDOW and statistics.fmean(last) < COLLAPSE_PSNR
        if schedule.done + 1 > COLLAPSE_AFTER and lost:
            schedule.restarts += 1
            print(f"\nthe enhancer has collapsed: restart {schedule.restarts} with new weights")
            run.learners["enhancer"].restart(new_enhancer(schedule.restarts))
            schedule.forget_scores()
            del terms["score"]  # it is the collapsed enhancer's
            schedule.length += RESTART_ITERS
        return terms

    run_stage(
        run,
        run.learners["enhancer"],
        watched_step,
        display_iter=args.display_iter,
        limit=limit,
        on_best=partial(save_best_enhancer, run),
    )
    run.learners["enhancer"].return_to_best()


def train_round(run: Run, step: Callable[[], Terms], args: Namespace, limit: int) -> None:
    """Train the enhancer for the round that the schedule has begun, then return to its best.

    Raises:
        Interrupted, UserError: as `run_stage`.
    """
    run_stage(
        run,
        run.learners["enhancer"],
        step,
        display_iter=args.display_iter,
        limit=limit,
        extend=lambda terms: EXTRA_ITERS if terms["loss"] > args.thre_train else 0,
        on_best=partial(save_best_enhancer, run),
    )
    run.learners["enhancer"].return_to_best()


def settle_pretrained(args: Namespace) -> None:
    """Decide whether enhancer weights are loaded; loading them leaves no warm-up. Say so.

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
        print(f"{args.unet_pretrain_dir} is ignored, as --load_pretrain_unet False says")
        args.unet_pretrain_dir = None
    else:
        print(f"starting from {args.unet_pretrain_dir}, so without a warm-up")
        args.num_reconstruction_iters = 0


def enhancer_learner(enhancer: nn.Module, args: Namespace) -> Learner:
    """Train an enhancer with the optimiser that `args` describe, from weights they may name.

    Raises:
        UserError: as `checkpoint.restore`, or nothing here can compile it.
    """
    if args.unet_pretrain_dir is not None:
        checkpoint.restore(enhancer, args.unet_pretrain_dir, "enhancer weights")
    enhancer = enhancer.to(args.device)
    if args.compile:
        if not any(map(shutil.which, CPP_COMPILERS)):
            raise UserError(
                "--compile needs a C++ compiler such as g++; install one or leave it out"
            )
        # In place, so that weights keep their names; each shape of its input by itself, so that a
        # resumed run, which meets them in another order, computes to the last bit the same.
        enhancer.compile(dynamic=False)
    return Learner.create(enhancer, args.train_lr, args.weight_decay, args.ema_decay)


def iteration_limit(args: Namespace, batches_per_epoch: int) -> int:
    """Enhancer iterations of a run: num_epochs passes, or max_iters if that is fewer."""
    limit = args.num_epochs * batches_per_epoch
    return min(limit, args.max_iters) if args.max_iters else limit
