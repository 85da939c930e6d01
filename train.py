"""Train an enhancer by CLIP-LIT or CLIP-LIT-Latent: guidance and enhancer learn in turn.

    python train.py -b backlit/ -r well_lit/ --mode clip-lit --exp_name clip_lit \\
        --train_lr 0.00002 --prompt_lr 0.000005 --num_reconstruction_iters 1000 \\
        --num_clip_pretrained_iters 8000 --load_pretrain_unet False --load_pretrain_guidance False

The guidance is a pair of prompts, backlit and well-lit (clip-lit), or of latent vectors
(clip-lit-latent). It first learns to tell the two folders apart. Then, round by round, the enhancer
learns to look well-lit to it, and it learns to tell the enhancer's results from well-lit images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.augment import TURN_SHARE
from data.datasets import (
    GUIDANCE_SIZE,
    EnhancerImages,
    GuidanceImages,
    LevelTuples,
    Turns,
    batches_per_epoch,
    stream_batches,
    to_unit,
)
from data.images import list_photos
from data.photo_store import PhotoStore
from models.criteria import CALIBRATION_IMAGES, Criterion
from models.encoders import CLIPEncoder, TimmEncoder, load_encoders
from models.enhancer import enhance_images, new_enhancer
from models.latent_learner import LatentPromptLearner
from models.losses import PROMPT_GUIDANCE_WEIGHT, prompt_guidance_loss, refinement_loss
from models.prompt_learner import LENGTH_PROMPT, PromptLearner
from training.plots import save_histogram
from training.run import Interrupted, Learner, Run, Terms, check_finite, open_folder, run_stage
from training.stages import (
    ROUND,
    ROUND_ITERS,
    WARM_UP,
    enhancer_learner,
    enhancer_step,
    iteration_limit,
    settle_pretrained,
    train_round,
    warm_up,
)
from utils import checkpoint, options
from utils.errors import UserError, exit_with
from utils.memory import keep_freed_memory

INITIALISATION = "initialisation"
REFINEMENT = "refinement"
REFINEMENT_ITERS = 1000
EXTRA_PROMPT_ITERS = 100  # more while the loss exceeds thre_prompt
PROMPT_LR = {"clip-lit": 5e-6, "clip-lit-latent": 5e-4}
TURNS_AT_ONCE = 64  # images in a call where all turns are embedded
PHOTOS_AT_ONCE = 8  # in memory, where all are enhanced or embedded

Guidance = PromptLearner | LatentPromptLearner
Encoder = CLIPEncoder | TimmEncoder


def new_guidance(encoder: Encoder, args: argparse.Namespace) -> Guidance:
    """Make the guidance of `args.mode`, with the weights that `args` may name."""
    torch.manual_seed(args.seed)
    if args.mode == "clip-lit":
        guidance: Guidance = PromptLearner(encoder, args.length_prompt)
    else:
        guidance = LatentPromptLearner(encoder.dim)
    if args.guidance_pretrain_dir is not None:
        guidance.restore(args.guidance_pretrain_dir)
    return guidance.to(args.device)


@torch.no_grad()
def embed(encoder: Encoder, images: Tensor, args: argparse.Namespace) -> Tensor:
    """Embed images (N, 3, H, W) in [0, 1] in one call, as (N, D)."""
    with torch.autocast(args.device.type, torch.bfloat16, enabled=args.amp):
        return encoder.embed(images.to(args.device)).float()


def embed_turns(
    encoder: Encoder, turns: Turns, iterations: int, levels: int, args: argparse.Namespace
) -> Tensor | None:
    """Embed what the draws that only flip or transpose can show, if a stage meets it repeatedly.

    Args:
        encoder: the guidance encoder.
        turns: of the stage's images.
        iterations: the length of the stage.
        levels: images in an item.
        args: device, amp, num_workers, prompt_batch_size.

    Returns:
        (len(turns), D), or None where embedding each image as it comes is less work.
    """
    if TURN_SHARE * iterations * args.prompt_batch_size * levels < len(turns):
        return None
    batches = DataLoader(
        turns, TURNS_AT_ONCE, num_workers=args.num_workers, generator=torch.Generator()
    )
    progress = tqdm(batches, desc="embedding", unit="batch", leave=False, disable=None)
    return torch.cat([embed(encoder, images, args) for images in progress])


def embed_batch(
    encoder: Encoder,
    images: Tensor,
    places: Tensor,
    turned: Tensor | None,
    args: argparse.Namespace,
) -> Tensor:
    """Embed the images of a batch, as (..., D), looking up what is known.

    Args:
        encoder: the guidance encoder.
        images: (..., 3, H, W) in [0, 1].
        places: (...) rows of `turned`, -1 where an image is not among them.
        turned: what `embed_turns` gives.
        args: device, amp.
    """
    shape, images, places = places.shape, images.flatten(0, -4), places.flatten()
    if turned is None:
        return embed(encoder, images, args).unflatten(0, shape)
    embeddings, new = turned[places.clamp(min=0)], places < 0
    if new.any():
        embeddings[new] = embed(encoder, images[new], args)
    return embeddings.unflatten(0, shape)


def train_guidance(
    run: Run,
    dataset: GuidanceImages | LevelTuples,
    loss_of: Callable[..., Tensor],
    args: argparse.Namespace,
) -> None:
    """Train the guidance for the stage that the schedule has begun, then return to its best.

    Args:
        run: its "guidance" learns.
        dataset: what the stage shows.
        loss_of: maps a batch of `dataset` to the loss.
        args: prompt_batch_size, prompt_display_iter, thre_prompt, num_workers, seed.
    """
    schedule, learner = run.schedule, run.learners["guidance"]
    seed = args.seed + schedule.round
    batches = stream_batches(dataset, args.prompt_batch_size, seed, schedule.done, args.num_workers)
    name = f"round{schedule.round}" if schedule.round else "epoch0"
    path = run.folder / "snapshots_guidance" / f"best_guidance_learner_{name}.pth"

    def step() -> Terms:
        loss = loss_of(next(batches))
        check_finite(loss, run)
        learner.step(loss)
        return {"loss": loss.item(), "score": -loss.item()}

    run_stage(
        run,
        learner,
        step,
        display_iter=args.prompt_display_iter,
        extend=lambda terms: EXTRA_PROMPT_ITERS if terms["loss"] > args.thre_prompt else 0,
        on_best=lambda: checkpoint.save_weights(learner.result(), path),
    )
    learner.return_to_best()


@torch.no_grad()
def enhanced_level(
    weights: dict[str, Tensor], photos: PhotoStore, args: argparse.Namespace
) -> Tensor:
    """Enhance the backlit photographs at guidance size, in memory: (M, 3, 256, 256) uint8.

    Args:
        weights: an enhancer's.
        photos: M of them.
        args: device, amp.
    """
    enhancer = new_enhancer()
    enhancer.load_state_dict(weights)
    enhancer.to(args.device)
    results = []
    for images in in_batches(photos):
        enhanced = enhance_images(enhancer, images.to(args.device), args.amp)
        results.append((enhanced * 255).round().to(torch.uint8).cpu())
    return torch.cat(results)


@torch.no_grad()
def p_backlit(
    guidance: Guidance, encoder: Encoder, photos: PhotoStore, args: argparse.Namespace
) -> Tensor:
    """The probability of "backlit" that the guidance gives to each photograph, (M,)."""
    embeddings = torch.cat([embed(encoder, images, args) for images in in_batches(photos)])
    return guidance.logits(embeddings).softmax(dim=-1)[:, 0].cpu()


def in_batches(photos: PhotoStore) -> Iterator[Tensor]:
    """The photographs as they are, in order, (N, 3, S, S) float32 in [0, 1] at a time."""
    for first in range(0, len(photos), PHOTOS_AT_ONCE):
        rows = range(first, min(first + PHOTOS_AT_ONCE, len(photos)))
        yield torch.stack([to_unit(photos[row]) for row in rows])


def settle_guidance(args: argparse.Namespace) -> None:
    """Decide whether guidance weights are loaded; loading them leaves no initialisation. Say so.

    Raises:
        UserError: weights are asked for and none are named.
    """
    if args.guidance_pretrain_dir is None:
        if args.load_pretrain_guidance:
            raise UserError("--load_pretrain_guidance True needs --guidance_pretrain_dir FILE")
    elif args.load_pretrain_guidance is False:
        print(f"{args.guidance_pretrain_dir} is ignored, as --load_pretrain_guidance False says")
        args.guidance_pretrain_dir = None
    else:
        print(f"guidance from {args.guidance_pretrain_dir}, so without an initialisation")
        args.num_clip_pretrained_iters = 0


def main(args: argparse.Namespace) -> int | None:
    """Initialise the guidance, warm the enhancer up, then train both in turn."""
    # Setup run:
    keep_freed_memory()
    folder = Path(args.save_dir) / args.exp_name
    device = args.device = options.choose_device(args.device)
    if args.prompt_lr is None:
        args.prompt_lr = PROMPT_LR[args.mode]
    deciding = options.deciding(args)
    state = open_folder(folder, args.resume, deciding)
    settle_pretrained(args)
    settle_guidance(args)

    # Load encoders:
    encoder, identity_encoder = load_encoders(
        args.guidance_encoder,
        args.clip_weights,
        args.identity_encoder,
        args.identity_weights,
        device,
        args.guidance_stages,
    )
    criterion = Criterion(encoder, identity_encoder, args.identity_scale)

    # Load photographs:
    cache = folder / "cache"
    backlit_paths = list_photos(args.backlit_images_path)
    well_lit_paths = list_photos(args.well_lit_images_path)
    images = EnhancerImages(backlit_paths, args.image_size, args.seed, args.cache, cache)
    backlit = PhotoStore(images.photos.paths, GUIDANCE_SIZE, args.cache, cache)
    well_lit = PhotoStore(well_lit_paths, GUIDANCE_SIZE, args.cache, cache)
    criterion.calibrate(images.first(CALIBRATION_IMAGES).to(device))

    # Create guidance and enhancer:
    def fresh_enhancer(number: int) -> nn.Module:
        torch.manual_seed(args.seed + number)
        return new_enhancer(args.start_light_map)

    guidance = Learner.create(new_guidance(encoder, args), args.prompt_lr, args.weight_decay)
    enhancer = enhancer_learner(fresh_enhancer(0), args)
    run = Run(folder, deciding, {"guidance": guidance, "enhancer": enhancer}, {"rounds": {}})
    if state is not None:
        run.restore(state)
    schedule = run.schedule

    # Define what an iteration minimises:
    def initialisation_loss(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        shown, places, labels = batch
        embeddings = embed_batch(encoder, shown, places, turned, args)
        return F.cross_entropy(guidance.module.logits(embeddings), labels.to(device))

    def refinement_loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        embeddings = embed_batch(encoder, *batch, turned, args)  # (N, levels, D)
        logits = guidance.module.logits(embeddings.flatten(0, 1))
        probabilities = logits.softmax(dim=-1)[:, 0].unflatten(0, embeddings.shape[:2])
        return refinement_loss(probabilities.unbind(dim=1))

    def warm_up_terms(enhanced: Tensor, backlit: Tensor, *_: object) -> dict:
        return criterion.warm_up(enhanced, backlit)

    def round_terms(enhanced: Tensor, backlit: Tensor, *_: object) -> dict:
        def guide(embeddings: Tensor) -> Tensor:
            return PROMPT_GUIDANCE_WEIGHT * prompt_guidance_loss(embeddings, vectors)

        return criterion.round(enhanced, backlit, guide)

    def plot_separation() -> None:
        name = f"round{schedule.round}" if schedule.round else "epoch0"
        probabilities = [
            p_backlit(guidance.module, encoder, photos, args) for photos in (backlit, well_lit)
        ]
        save_histogram(folder / f"separation_{name}.png", *probabilities, "P(backlit)")

    # Train in turn:
    limit = iteration_limit(args, batches_per_epoch(len(images), args.train_batch_size))
    batches = stream_batches(
        images, args.train_batch_size, args.seed, schedule.iteration, args.num_workers
    )
    forward = partial(enhance_images, amp=args.amp)
    step = partial(enhancer_step, run, batches, forward, args=args, limit=limit)
    try:
        if schedule.stage in ("start", INITIALISATION):
            schedule.begin(INITIALISATION, 0, args.num_clip_pretrained_iters)
            dataset = GuidanceImages(backlit, well_lit, args.seed)
            turned = embed_turns(encoder, dataset.turns, args.num_clip_pretrained_iters, 1, args)
            train_guidance(run, dataset, initialisation_loss, args)
            plot_separation()
        if schedule.stage in (INITIALISATION, WARM_UP):
            warm_up(run, partial(step, warm_up_terms), fresh_enhancer, args, limit)
        for number in count(max(1, schedule.round)):
            if (schedule.stage, schedule.round) != (REFINEMENT, number):
                vectors = guidance.module.vectors().detach()
                schedule.begin(ROUND, number, ROUND_ITERS)
                train_round(run, partial(step, round_terms), args, limit)
                if schedule.iteration >= limit:
                    break
                rounds = {**run.constants["rounds"], number: enhancer.best}
                run.constants["rounds"] = {key: rounds[key] for key in sorted(rounds)[-2:]}
            schedule.begin(REFINEMENT, number, REFINEMENT_ITERS)
            older_and_newer = [
                enhanced_level(weights, backlit, args)
                for weights in run.constants["rounds"].values()
            ]
            levels = [backlit, *older_and_newer, well_lit]
            dataset = LevelTuples(levels, args.seed + number)
            turned = embed_turns(encoder, dataset.turns, REFINEMENT_ITERS, len(levels), args)
            train_guidance(run, dataset, refinement_loss_of, args)
            plot_separation()
    except Interrupted:
        print(f"\nstopped at {schedule.stage} {schedule.done}; add --resume to go on")
        return 130
    checkpoint.save_weights(enhancer.result(), folder / "snapshots_model" / "final.pth")
    checkpoint.save_weights(guidance.result(), folder / "snapshots_guidance" / "final.pth")
    print(f"{schedule.iteration} enhancer iterations done; weights in {folder}")
    return None


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the defaults are the published setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=list(PROMPT_LR), default="clip-lit")
    options.add_photo_arguments(parser)
    options.add_encoder_arguments(parser)
    options.add_training_arguments(parser, num_epochs=3000)
    group = parser.add_argument_group("guidance")
    group.add_argument(
        "--prompt_lr",
        type=options.nonnegative,
        help="default: 5e-6 for clip-lit, 5e-4 for clip-lit-latent",
    )
    group.add_argument(
        "--num_clip_pretrained_iters",
        type=options.count,
        default=8000,
        help="length of the initialisation",
    )
    group.add_argument("--prompt_batch_size", type=options.positive_int, default=16)
    group.add_argument(
        "--thre_prompt",
        type=float,
        default=60.0,
        help="a stage goes on while its loss exceeds this",
    )
    group.add_argument("--prompt_display_iter", type=options.positive_int, default=20)
    group.add_argument(
        "--length_prompt",
        type=options.positive_int,
        default=LENGTH_PROMPT,
        help="words of a prompt (clip-lit)",
    )
    group.add_argument(
        "--guidance_pretrain_dir", metavar="FILE", help="guidance weights to start from"
    )
    group.add_argument(
        "--load_pretrain_guidance",
        type=options.str2bool,
        metavar="True|False",
        help="False ignores --guidance_pretrain_dir (default: load it if it is given)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_with(main, parse_arguments())
