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

import torch

from data.datasets import GUIDANCE_SIZE, EnhancerImages
from data.photo_store import choose_cache, load_photos
from models.criteria import PromptCriterion, WarmUpCriterion
from models.encoders import Encoder
from models.latent_learner import LatentPromptLearner
from models.prompt_learner import LENGTH_PROMPT, PromptLearner
from training.encoder_weights import load_encoders, restore_guidance
from training.guidance import initialise_guidance, refine_guidance
from training.learner import Learner
from training.setup import calibrate, create_run, new_enhancer_learner, open_run, tell_end
from training.stages import enhancer_batches, train_round, warm_up
from utils import options
from utils.errors import UserError, tell
from utils.script import exit_with

PROMPT_LR = {"clip-lit": 5e-6, "clip-lit-latent": 5e-4}


def main(args: argparse.Namespace) -> int:
    """Initialise the guidance, warm the enhancer up, then train both; returns the exit status."""
    # Setup run:
    if args.prompt_lr is None:
        args.prompt_lr = PROMPT_LR[args.mode]
    resolve_pretrained_guidance(args)
    folder, reading, state = open_run(args)
    enhancer = new_enhancer_learner(args)

    # Load encoders:
    encoder, identity_encoder = load_encoders(
        args.guidance_encoder,
        args.clip_weights,
        args.identity_encoder,
        args.identity_weights,
        args.device,
        args.guidance_stages,
    )
    reading.add_encoders(encoder, identity_encoder)
    guidance = Learner.create(new_guidance(encoder, args), args.prompt_lr, args.weight_decay)

    # Load photographs:
    sizes = [args.image_size, GUIDANCE_SIZE]
    folders = [(reading.backlit, sizes), (reading.well_lit, [GUIDANCE_SIZE])]
    cache = choose_cache(args.cache, folders)
    (photos, backlit), (well_lit,) = (load_photos(*folder, cache) for folder in folders)
    images = EnhancerImages(photos, args.seed)
    left_out = reading.add_photos([photos], [well_lit])
    calibrate(identity_encoder, images, args.device)

    # Train in turn:
    with create_run(args, folder, reading, state, images, enhancer, guidance) as run:
        keep = WarmUpCriterion(identity_encoder, args.identity_scale)
        batches = enhancer_batches(run, images, args)
        initialise_guidance(run, encoder, backlit, well_lit, args)
        warm_up(run, batches, keep, args)
        for number in run.rounds():
            vectors = guidance.module.vectors().detach()
            lift = PromptCriterion(encoder, identity_encoder, vectors, args.identity_scale)
            train_round(run, number, batches, lift, args)
            if not run.finished:
                refine_guidance(run, number, encoder, backlit, well_lit, args)
        run.save_results()
    return tell_end(run, left_out)


def new_guidance(encoder: Encoder, args: argparse.Namespace) -> PromptLearner | LatentPromptLearner:
    """Make the guidance of `args.mode`, with the weights that `args` may name.

    Raises:
        UserError: prompts for an encoder without a text side, or weights of another kind.
    """
    torch.manual_seed(args.seed)
    if args.mode == "clip-lit-latent":
        guidance: PromptLearner | LatentPromptLearner = LatentPromptLearner(encoder.dim)
    elif encoder.has_text:
        guidance = PromptLearner(encoder, args.length_prompt)
    else:
        raise UserError(
            f"{encoder.name} has no text side, which prompts need; take a CLIP such as ViT-B-32 as "
            "--guidance_encoder, or --mode clip-lit-latent"
        )
    if args.guidance_pretrain_dir is not None:
        restore_guidance(guidance, args.guidance_pretrain_dir)
    return guidance.to(args.device)


def resolve_pretrained_guidance(args: argparse.Namespace) -> None:
    """Resolve the pretraining flags; pretrained guidance skips the initialisation.

    Raises:
        UserError: weights are asked for and none are named.
    """
    if args.guidance_pretrain_dir is None:
        if args.load_pretrain_guidance:
            raise UserError("--load_pretrain_guidance True needs --guidance_pretrain_dir FILE")
    elif args.load_pretrain_guidance is False:
        tell(f"{args.guidance_pretrain_dir} is ignored, as --load_pretrain_guidance False says")
        args.guidance_pretrain_dir = None
    else:
        tell(f"guidance from {args.guidance_pretrain_dir}, so without an initialisation")
        args.num_clip_pretrained_iters = 0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the defaults are the published setting."""
    parser = options.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--mode", choices=list(PROMPT_LR), default="clip-lit", help="what the guidance is"
    )
    options.add_photo_arguments(parser)
    options.add_encoder_arguments(parser)
    options.add_enhancer_arguments(parser, num_epochs=3000)
    options.add_run_arguments(parser)
    options.add_beyond_paper_arguments(parser)
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
    group.add_argument(
        "--refinement_iters",
        type=options.positive_int,
        default=1000,
        help="length of the refinement after each round",
    )
    group.add_argument(
        "--prompt_batch_size",
        type=options.positive_int,
        default=16,
        help="images, or tuples, in a guidance step",
    )
    group.add_argument(
        "--thre_prompt",
        type=options.nonnegative,
        default=60.0,
        help="a guidance stage goes on while its last loss exceeds this",
    )
    group.add_argument(
        "--prompt_display_iter",
        type=options.positive_int,
        default=20,
        help="guidance iterations between checks for the best weights, log lines and saved states",
    )
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
    return options.parse(parser, argv)


if __name__ == "__main__":
    exit_with(main, parse_arguments())
