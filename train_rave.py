r"""Train an enhancer by RAVE: a residual vector in an encoder's latent space is its only guidance.

    python train_rave.py -b backlit/ -r well_lit/ --exp_name rave --train_lr 0.00002 \
        --num_reconstruction_iters 1000 --load_pretrain_unet False

The vector points from the mean backlit embedding to the mean well-lit one. Nothing but the enhancer
is trained: it moves its results along the vector while the identity loss keeps their content.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from tqdm import tqdm

from data.datasets import EnhancerImages, in_batches, stream_batches
from data.listing import list_photos
from data.photo_store import CentreCrop, PhotoStore, load_photos
from models.criteria import ResidualCriterion, WarmUpCriterion
from models.encoders import Encoder
from models.interpretation import bootstrap_stability, token_table
from models.residual import Residual, build_residual, embed_photos, shift_residual
from training.encoder_weights import load_encoders, load_vocabulary
from training.plots import save_histogram
from training.saved_state import blank_vector
from training.setup import calibrate, create_run, new_enhancer_learner, open_run, tell_left_out
from training.stages import train_round, warm_up
from utils import checkpoint, options
from utils.errors import UserError, tell
from utils.files import write_csv
from utils.script import exit_with

EMBEDDED_AT_ONCE = 32


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
    partners = [args.image_size] if args.paired_residual else []
    sizes = [*crops, args.image_size]
    backlit = load_photos(list_photos(args.backlit_images_path), sizes, args.cache)
    sizes = [*crops, *partners]
    well_lit = load_photos(list_photos(args.well_lit_images_path), sizes, args.cache)
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
        batches = stream_batches(
            images, args.train_batch_size, args.seed, run.schedule.iteration, args.num_workers
        )
        warm_up(run, batches, keep, args)
        for number in run.rounds():
            train_round(run, number, batches, lift, args)
        checkpoint.save_weights(run.enhancer.result(), folder / "snapshots_model" / "final.pth")
    tell(f"{run.schedule.iteration} iterations done; weights in {folder / 'snapshots_model'}")
    return tell_left_out(left_out)


def write_residual(
    folder: Path,
    encoder: Encoder,
    backlit_photos: PhotoStore,
    well_lit_photos: PhotoStore,
    args: argparse.Namespace,
) -> Residual:
    """Build, shift and interpret the residual vector; write what was found to the run's folder.

    Writes `residual.pt` (r, t, n, p, both folders' sizes, the encoder, the stability),
    `residual.png`, and for an encoder with a text side `residual_tokens.csv`.

    Args:
        folder: of the run.
        encoder: embeds the photographs.
        backlit_photos: centre crops of the encoder's input size.
        well_lit_photos: likewise.
        args: remove_first_n_tokens, interpret_only, seed.

    Returns:
        The vector that guides, shifted if that was asked for.
    """
    embeddings = []
    for photos in (backlit_photos, well_lit_photos):
        batches = in_batches(photos, EMBEDDED_AT_ONCE)
        total = math.ceil(len(photos) / EMBEDDED_AT_ONCE)
        embeddings.append(embed_photos(encoder, tqdm(batches, "embedding", total, leave=False)))
    backlit, well_lit = embeddings  # (N, D) and (M, D)
    residual, shifted = build_residual(backlit, well_lit), None
    tokens = folder / "residual_tokens.csv"
    asked = args.interpret_only or tokens.exists()  # one of an earlier vector would mislead
    if args.remove_first_n_tokens or (asked and encoder.has_text):
        texts, vocabulary = load_vocabulary(encoder)
        if args.remove_first_n_tokens:
            shifted = shift_residual(residual, vocabulary, args.remove_first_n_tokens)
        write_csv(tokens, token_table(texts, vocabulary, residual, shifted))
    guiding = shifted or residual
    stability = bootstrap_stability(backlit, well_lit, seed=args.seed)
    contents = {
        **vars(guiding),  # r, t, n, p
        "encoder": encoder.name,
        "encoder_sha256": encoder.fingerprint,
        "backlit_images": len(backlit),
        "well_lit_images": len(well_lit),
        "removed_tokens": args.remove_first_n_tokens,
        "bootstrap_mean_cosine": stability,
    }
    checkpoint.save(contents, folder / "residual.pt")
    scores = [(embeddings * guiding.r).sum(dim=-1).flatten() for embeddings in (backlit, well_lit)]
    threshold = float(guiding.t.mean())  # over the cells, where those are embedded
    save_histogram(folder / "residual.png", *scores, "cos(E(x), r)", threshold, encoder.name)
    tell(
        f"residual vector of {len(backlit)} backlit and {len(well_lit)} well-lit photographs: "
        f"t = {threshold:.4f}, mean cosine between resampled vectors {stability:.3f}; see {folder}"
    )
    return guiding


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
        "--paired_residual",
        action="store_true",
        help="give a backlit photograph with a well-lit one of its name a vector of its own",
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
