"""The stages of training (docs/method.md 7): loops that both training scripts share."""

from __future__ import annotations

import math
import statistics
from argparse import Namespace
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from data.datasets import EnhancerImages, Part, stream_batches
from models.criteria import (
    ClassificationCriterion,
    PromptCriterion,
    RankingCriterion,
    ResidualCriterion,
    WarmUpCriterion,
)
from models.encoders import Encoder
from models.enhancer import enhance_images, new_enhancer
from training.run import SCORE_WINDOW, Run
from training.schedule import ROUND, WARM_UP
from utils.errors import tell

EXTRA_ITERS = 60  # more while a round's last loss, without RAVE's factor, exceeds thre_train
COLLAPSE_PSNR = 8.0  # dB; an enhancer whose output is so unlike its input is replaced
COLLAPSE_AFTER = 100  # warm-up iterations of the enhancer's own
RESTART_ITERS = 100  # more warm-up for the new enhancer
EXTRA_PROMPT_ITERS = 100  # more while a guidance stage's last loss exceeds thre_prompt


def enhancer_batches(run: Run, images: EnhancerImages, args: Namespace) -> Iterator[list[Part]]:
    """Stream the batches of all stages of the enhancer, from where the run stands.

    Args:
        run: with its saved state restored.
        images: what the enhancer learns from.
        args: train_batch_size, seed, num_workers, accumulate.
    """
    return stream_batches(
        images,
        args.train_batch_size,
        args.seed,
        run.schedule.iteration,
        args.num_workers,
        args.accumulate,
    )


def warm_up(
    run: Run, batches: Iterator[list[Part]], criterion: WarmUpCriterion, args: Namespace
) -> None:
    """Teach the enhancer to keep the image; replace it by a new one whenever it has collapsed.

    Args:
        run: trains its enhancer.
        batches: backlit images (N, 3, H, W) in [0, 1] first in each part.
        criterion: the warm-up's.
        args: num_reconstruction_iters, display_iter, seed, start_light_map, and those of
            `enhancer_step`.
    """
    schedule = run.schedule
    length = args.num_reconstruction_iters
    for parts in run.stage(WARM_UP, 0, length, batches, args.display_iter):
        for share, (backlit, *_) in parts:
            enhanced = enhance_images(run.enhancer.network, backlit, args.amp)
            run.backward(criterion(enhanced, backlit, share=share))
        terms = enhancer_step(run, args)
        run.record(terms, score=terms["psnr"], window=SCORE_WINDOW)
        schedule.since_restart += 1
        if has_collapsed(schedule.since_restart, schedule.scores):
            run.restart_enhancer(fresh_enhancer(args, schedule.restarts + 1))
            run.extend(RESTART_ITERS)
            tell(f"the enhancer has collapsed: restart {schedule.restarts} with new weights")


def has_collapsed(iterations: int, psnrs: Sequence[float]) -> bool:
    """Whether a warm-up has lost the image (docs/method.md 7).

    Args:
        iterations: warm-up iterations of this very enhancer.
        psnrs: its last ones in dB, up to `SCORE_WINDOW`.
    """
    return (
        iterations > COLLAPSE_AFTER
        and len(psnrs) == SCORE_WINDOW
        and statistics.fmean(psnrs) < COLLAPSE_PSNR
    )


def train_round(
    run: Run,
    number: int,
    batches: Iterator[list[Part]],
    criterion: PromptCriterion | ResidualCriterion,
    args: Namespace,
) -> None:
    """Train the enhancer for one round; it ends with its best weights.

    Args:
        run: trains its enhancer.
        number: of the round, from 1.
        batches: what `criterion` takes after the enhanced images.
        criterion: the method's.
        args: round_iters, display_iter, thre_train, and those of `enhancer_step`.
    """
    for parts in run.stage(ROUND, number, args.round_iters, batches, args.display_iter):
        for share, (backlit, *partners) in parts:
            enhanced = enhance_images(run.enhancer.network, backlit, args.amp)
            run.backward(criterion(enhanced, backlit, *partners, share=share))
        terms = enhancer_step(run, args)
        run.record(terms, score=-terms["loss"], window=SCORE_WINDOW)
        if run.is_over and terms["extension"] > args.thre_train:
            run.extend(EXTRA_ITERS)


def enhancer_step(run: Run, args: Namespace) -> dict[str, float]:
    """Take a step of the enhancer at the iteration's learning rate; return the batch's terms.

    Args:
        run: trains its enhancer, and has the gradients of all parts of a batch.
        args: train_lr, lr_warmup_iters, lr_cosine, clip_grad_norm.
    """
    rate = learning_rate(
        args.train_lr,
        run.schedule.iteration,
        args.lr_warmup_iters,
        run.limit if args.lr_cosine else 0,
    )
    for group in run.enhancer.optimizer.param_groups:
        group["lr"] = rate
    return run.step(args.clip_grad_norm)


def learning_rate(base: float, iteration: int, warmup: int, cosine_length: int) -> float:
    """The learning rate of an iteration, counted from 0.

    Args:
        base: the highest rate.
        iteration: how many are done.
        warmup: iterations over which the rate rises linearly; 0 for none.
        cosine_length: iterations over which it falls to 0 along a cosine; 0 keeps it constant.
    """
    rate = base * min(1.0, (iteration + 1) / warmup) if warmup else base
    if cosine_length:
        rate *= 0.5 + 0.5 * math.cos(math.pi * min(1.0, iteration / cosine_length))
    return rate


def train_guidance(
    run: Run,
    stage: str,
    number: int,
    length: int,
    encoder: Encoder,
    dataset: Dataset,
    criterion: ClassificationCriterion | RankingCriterion,
    args: Namespace,
) -> None:
    """Train the guidance for one stage; it ends with its best weights.

    Args:
        run: trains its guidance.
        stage: initialisation or refinement.
        number: of the round that is over, or 0.
        length: in iterations.
        encoder: embeds the images; frozen.
        dataset: images (3, S, S) with labels, or tuples (levels, 3, S, S).
        criterion: for the one or the other.
        args: prompt_batch_size, prompt_display_iter, thre_prompt, num_workers, accumulate, seed,
            amp.
    """
    start, seed = run.schedule.done_in(stage, number), args.seed + number
    batches = stream_batches(
        dataset, args.prompt_batch_size, seed, start, args.num_workers, args.accumulate
    )
    for parts in run.stage(stage, number, length, batches, args.prompt_display_iter):
        for share, (images, *labels) in parts:
            embeddings = embed(encoder, images, args.amp)  # (N, D), or (N, levels, D)
            logits = run.guidance.network(embeddings)  # (..., 2)
            run.backward(criterion(logits, *labels, share=share))
        terms = run.step()
        run.record(terms, score=-terms["loss"], window=1)
        if run.is_over and terms["loss"] > args.thre_prompt:
            run.extend(EXTRA_PROMPT_ITERS)


@torch.no_grad()
def embed(encoder: Encoder, images: Tensor, amp: bool = False) -> Tensor:
    """Embed images (..., 3, H, W) in [0, 1] in one call, as (..., D)."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
        embeddings = encoder.embed(images.flatten(0, -4)).float()
    return embeddings.unflatten(0, images.shape[:-3])


def fresh_enhancer(args: Namespace, restart: int = 0) -> nn.Module:
    """Make an enhancer with new weights, which the run's seed and the restart's number decide."""
    torch.manual_seed(args.seed + restart)
    return new_enhancer(args.start_light_map, args.device)
