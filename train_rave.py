r"""Train an enhancer by RAVE: a residual vector in an encoder's latent space is its only guidance.

    python train_rave.py -b backlit/ -r well_lit/ --exp_name rave --train_lr 0.00002 \
        --num_reconstruction_iters 1000 --load_pretrain_unet False

The vector points from the mean backlit embedding to the mean well-lit one. Nothing but the enhancer
is trained: it moves its results along the vector while the identity loss keeps their content.
"""

from __future__ import annotations

import argparse

from data.datasets import EnhancerImages
from data.photo_store import choose_cache, load_photos
from data.squares import CentreCrop
from models.criteria import ResidualCriterion, WarmUpCriterion
from training.encoder_weights import load_encoders
from training.residual import write_residual
from training.saved_state import blank_vector
from training.setup import (
    calibrate,
    create_run,
    new_enhancer_learner,
    open_run,
    tell_end,
    tell_left_out,
)
from training.stages import enhancer_batches, train_round, warm_up
from utils import options
from utils.errors import UserError
from utils.script import exit_with


def main(args: argparse.Namespace) -> int:
    """Build the residual vector, warm the enhancer up, train it; returns the exit status."""
    # Setup run:
    folder, reading, state = open_run(args)
    if args.interpret_only and (folder / "last.pt").exists():
        raise UserError(f"{folder} holds a training run; give --interpret_only another --exp_name")
    enhancer = new_enhancer_learner(args)

    # Load encoders:
    guidance_encoder, identity_encoder = load_encoders(
        args.guidance_encoder,
        args.clip_weights,
        None if args.interpret_only else args.identity_encoder,
        args.identity_weights,
        args.device,
        args.guidance_stages,
        args.guidance_grid,
    )
    reading.add_encoders(guidance_encoder, identity_encoder)
    if args.remove_first_n_tokens and not guidance_encoder.has_text:
        raise UserError(
            f"--remove_first_n_tokens needs a text side, and {guidance_encoder.name} has none; "
            "choose a CLIP as --guidance_encoder"
        )

    # Load photographs:
    crops = [] if state else [CentreCrop(guidance_encoder.input_size)]  # only a new vector's
    partners = [args.image_size] if args.paired_guidance else []
    folders = [
        (reading.backlit, [*crops, args.image_size]),
        (reading.well_lit, [*crops, *partners]),
    ]
    cache = choose_cache(args.cache, folders)
    backlit, well_lit = (load_photos(*folder, cache) for folder in folders)
    left_out = reading.add_photos(backlit, well_lit)

    # Build the residual vector:
    constants = blank_vector(guidance_encoder)
    if state is None:
        residual = write_residual(folder, guidance_encoder, backlit.pop(0), well_lit.pop(0), args)
        constants = {"r": residual.r, "t": residual.t}
    if args.interpret_only:
        return tell_left_out(left_out)
    images = EnhancerImages(*backlit, args.seed, *well_lit)
    calibrate(identity_encoder, images, args.device)

    # Warm up, then train round by round:
    with create_run(args, folder, reading, state, images, enhancer, constants=constants) as run:
        r, t = (run.constants[name].to(args.device) for name in ("r", "t"))
        keep = WarmUpCriterion(identity_encoder, args.identity_scale)
        lift = ResidualCriterion(guidance_encoder, identity_encoder, r, t, args.identity_scale)
        batches = enhancer_batches(run, images, args)
        warm_up(run, batches, keep, args)
        for number in run.rounds():
            train_round(run, number, batches, lift, args)
        run.save_results()
    return tell_end(run, left_out)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the defaults are the published setting."""
    parser = options.ArgumentParser(description=__doc__)
    options.add_photo_arguments(parser)
    options.add_encoder_arguments(parser)
    options.add_enhancer_arguments(parser, num_epochs=2000)
    options.add_run_arguments(parser)
    beyond = options.add_beyond_paper_arguments(parser)
    group = parser.add_argument_group("residual vector")
    group.add_argument(
        "--remove_first_n_tokens",
        type=options.count,
        default=0,
        metavar="N",
        help="shift the vector away from what its N nearest and N farthest tokens mean",
    )
    group.add_argument(
        "--interpret_only", action="store_true", help="write what the vector means, train nothing"
    )
    beyond.add_argument(
        "--paired_guidance",
        action="store_true",
        help="guide a photograph with a well-lit one of its name towards that one's embedding",
    )
    beyond.add_argument(
        "--guidance_grid",
        type=options.number(int, least=1, most=64),
        default=1,
        metavar="G",
        help="embed a timm/NAME in G x G cells, so that the guidance sees where light is missing",
    )
    return options.parse(parser, argv)


if __name__ == "__main__":
    exit_with(main, parse_arguments())
