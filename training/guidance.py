"""The stages in which the guidance of CLIP-LIT and CLIP-LIT-Latent learns (docs/method.md 4)."""

from __future__ import annotations

from argparse import Namespace

import torch
from torch import Tensor

from data.datasets import GuidanceImages, LevelTuples, in_batches
from data.photo_store import PhotoStore
from models.criteria import ClassificationCriterion, RankingCriterion
from models.encoders import Encoder
from models.enhancer import enhance_images, new_enhancer
from models.losses import p_backlit
from training.plots import save_histogram
from training.run import Run
from training.schedule import INITIALISATION, LEVELS_KEPT, REFINEMENT
from training.stages import embed, train_guidance
from utils import distributed


def initialise_guidance(
    run: Run, encoder: Encoder, backlit: PhotoStore, well_lit: PhotoStore, args: Namespace
) -> None:
    """Teach the guidance to tell the two folders apart.

    Args:
        run: trains its guidance.
        encoder: embeds for it.
        backlit: photographs of guidance size.
        well_lit: likewise.
        args: num_clip_pretrained_iters and those of `train_guidance`.
    """
    if run.schedule.is_behind(INITIALISATION, 0):
        return
    images = GuidanceImages(backlit, well_lit, args.seed)
    criterion = ClassificationCriterion()
    length = args.num_clip_pretrained_iters
    train_guidance(run, INITIALISATION, 0, length, encoder, images, criterion, args)
    plot_separation(run, encoder, backlit, well_lit, args)


def refine_guidance(
    run: Run,
    number: int,
    encoder: Encoder,
    backlit: PhotoStore,
    well_lit: PhotoStore,
    args: Namespace,
) -> None:
    """Teach the guidance to rank backlit, enhanced and well-lit images, after a round.

    Args:
        run: trains its guidance; the best weights of the last rounds' enhancers are kept in its
            constants as "rounds".
        number: of the round that is over.
        encoder: embeds for the guidance.
        backlit: photographs of guidance size.
        well_lit: likewise.
        args: refinement_iters and those of `train_guidance`.
    """
    if run.schedule.is_behind(REFINEMENT, number):
        return
    rounds = {**run.constants.get("rounds", {}), number: run.enhancer.best}
    run.constants["rounds"] = {key: rounds[key] for key in sorted(rounds)[-LEVELS_KEPT:]}
    older_to_newer = [
        enhanced_level(weights, backlit, args) for weights in run.constants["rounds"].values()
    ]
    tuples = LevelTuples(backlit, older_to_newer, well_lit, args.seed + number)
    criterion = RankingCriterion()
    length = args.refinement_iters
    train_guidance(run, REFINEMENT, number, length, encoder, tuples, criterion, args)
    plot_separation(run, encoder, backlit, well_lit, args)


@torch.no_grad()
def enhanced_level(weights: dict[str, Tensor], photos: PhotoStore, args: Namespace) -> Tensor:
    """Enhance the backlit photographs at guidance size, in memory: (M, 3, S, S) uint8.

    The processes of a run share the work.

    Args:
        weights: an enhancer's.
        photos: M of them.
        args: device, amp.
    """
    enhancer = new_enhancer(device=args.device)
    enhancer.load_state_dict(weights)
    results = torch.zeros(len(photos), 3, photos.size, photos.size, dtype=torch.uint8)
    own = distributed.shard(len(photos))
    for rows, images in in_batches(photos, rows=own):
        enhanced = enhance_images(enhancer, images.to(args.device), args.amp)
        results[rows.start : rows.stop] = (enhanced * 255).round().to(torch.uint8).cpu()
    distributed.complete(results)
    return results


@torch.no_grad()
def plot_separation(
    run: Run, encoder: Encoder, backlit: PhotoStore, well_lit: PhotoStore, args: Namespace
) -> None:
    """Draw which P(backlit) the guidance gives to the photographs of either folder."""
    number = f"round{run.schedule.round}" if run.schedule.round else "epoch0"
    scores = []
    for photos in (backlit, well_lit):
        score = torch.zeros(len(photos))
        for rows, images in in_batches(photos, rows=distributed.shard(len(photos))):
            embeddings = embed(encoder, images.to(args.device), args.amp)
            score[rows.start : rows.stop] = p_backlit(run.guidance.module(embeddings)).cpu()
        distributed.complete(score)
        scores.append(score)
    if distributed.is_main():
        save_histogram(run.folder / f"separation_{number}.png", *scores, "P(backlit)")
