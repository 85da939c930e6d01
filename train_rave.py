"""Train an enhancer by RAVE: a residual vector in an encoder's latent space is its only guidance.

    python train_rave.py -b backlit/ -r well_lit/ --exp_name rave --train_lr 0.00002 \
        --num_reconstruction_iters 1000 --load_pretrain_unet False

The vector points from the mean backlit embedding to the mean well-lit one. Nothing but the enhancer
is trained: it moves its results along the vector while the identity loss keeps their content.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.datasets import EnhancerImages, batches_per_epoch, read_photos, stream_batches
from data.images import list_photos
from models.criteria import CALIBRATION_IMAGES, Criterion
from models.encoders import CLIPEncoder, TimmEncoder, load_encoders
from models.enhancer import enhance_images, new_enhancer
from models.losses import RESIDUAL_GUIDANCE_WEIGHT, residual_guidance_loss
from models.residual import (
    Residual,
    bootstrap_stability,
    build_residual,
    embed_photos,
    residual_of_pairs,
    shift_residual,
    token_table,
)
from models.vocabulary import embed_vocabulary
from training.plots import save_histogram
from training.run import Interrupted, Run, open_folder, write_csv
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


def embed_folder(encoder: CLIPEncoder | TimmEncoder, folder: str) -> Tensor:
    """Embed a folder's photographs, those that can be read, as (N, D)."""
    paths = list_photos(folder)
    photos = tqdm(read_photos(paths), "embedding", len(paths), leave=False)
    embeddings = embed_photos(encoder, (photo for _, photo in photos))
    if not len(embeddings):
        raise UserError(f"no photograph in {folder} can be read; check the folder")
    return embeddings


@torch.no_grad()
def vectors_of_pairs(
    encoder: CLIPEncoder | TimmEncoder,
    backlit: Tensor,
    partners: Tensor,
    own: Tensor,
    r: Tensor,
    t: Tensor,
) -> tuple[Tensor, Tensor]:
    """Give each photograph of a batch that has a partner the residual vector of its own pair.

    Args:
        encoder: of the guidance.
        backlit: (N, 3, H, W) in [0, 1].
        partners: likewise.
        own: (N,) bool, which have a partner.
        r: the folders' vector (D,) or (cells, D), for the others.
        t: its threshold () or (cells,).

    Returns:
        Vectors (N, D) and thresholds (N,), or (N, cells, D) and (N, cells).
    """
    embeddings = encoder.embed(torch.cat([backlit, partners]))
    vectors, thresholds = residual_of_pairs(*embeddings.chunk(2))
    own = own.view(-1, *[1] * t.dim())
    return torch.where(own[..., None], vectors, r), torch.where(own, thresholds, t)


def write_residual(
    folder: Path,
    encoder: CLIPEncoder | TimmEncoder,
    backlit: Tensor,
    well_lit: Tensor,
    args: argparse.Namespace,
) -> Residual:
    """Build, shift and interpret the residual vector; write what was found to the run's folder.

    Writes `residual.pt` (r, t, n, p, both folders' sizes, the encoder, the stability),
    `residual.png`, and for an encoder with a text side `residual_tokens.csv`.

    Args:
        folder: of the run.
        encoder: gave the embeddings.
        backlit: (N, D), L2-normalised.
        well_lit: (M, D), likewise.
        args: remove_first_n_tokens, interpret_only, seed.

    Returns:
        The vector that guides, shifted if that was asked for.

    Raises:
        UserError: a shift with a text-free encoder.
    """
    residual = build_residual(backlit, well_lit)
    shifted = None
    tokens = folder / "residual_tokens.csv"
    asked = args.interpret_only or tokens.exists()  # one of an earlier vector would mislead
    if args.remove_first_n_tokens or (asked and encoder.has_text):
        texts, vocabulary = embed_vocabulary(encoder)
        if args.remove_first_n_tokens:
            shifted = shift_residual(residual, vocabulary, args.remove_first_n_tokens)
        rows = token_table(texts, vocabulary, residual, shifted)
        write_csv(tokens, rows)
    guiding = shifted or residual
    stability = bootstrap_stability(backlit, well_lit, seed=args.seed)
    contents = {
        "r": guiding.r,
        "t": guiding.t,
        "n": guiding.n,
        "p": guiding.p,
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
    print(
        f"residual vector of {len(backlit)} backlit and {len(well_lit)} well-lit photographs: "
        f"t = {threshold:.4f}, mean cosine between resampled vectors {stability:.3f}; see {folder}"
    )
    return guiding


def main(args: argparse.Namespace) -> int | None:
    """Build the residual vector, warm the enhancer up, then train it round by round."""
    # Setup run:
    keep_freed_memory()
    folder = Path(args.save_dir) / args.exp_name
    device = args.device = options.choose_device(args.device)
    if args.interpret_only and (folder / "last.pt").exists():
        raise UserError(f"{folder} holds a training run; give --interpret_only another --exp_name")
    deciding = options.deciding(args)
    state = open_folder(folder, args.resume, deciding)
    settle_pretrained(args)

    # Load encoders:
    encoders = load_encoders(
        args.guidance_encoder,
        args.clip_weights,
        args.identity_encoder,
        args.identity_weights,
        device,
        args.guidance_stages,
        args.guidance_grid,
    )
    criterion = Criterion(*encoders, args.identity_scale)
    if args.remove_first_n_tokens and not encoders[0].has_text:
        raise UserError(
            f"--remove_first_n_tokens needs a text side, and {encoders[0].name} has none; choose "
            "a CLIP as --guidance_encoder"
        )

    # Build the residual vector:
    if state is None:
        backlit = embed_folder(encoders[0], args.residual_backlit_path or args.backlit_images_path)
        well_lit = embed_folder(
            encoders[0], args.residual_well_lit_path or args.well_lit_images_path
        )
        residual = write_residual(folder, encoders[0], backlit, well_lit, args)
    if args.interpret_only:
        return None

    # Load photographs:
    images = EnhancerImages(
        list_photos(args.backlit_images_path),
        args.image_size,
        args.seed,
        args.cache,
        folder / "cache",
        partners=list_photos(args.well_lit_images_path) if args.paired_residual else None,
    )
    criterion.calibrate(images.first(CALIBRATION_IMAGES).to(device))

    # Create the enhancer:
    def fresh_enhancer(number: int) -> nn.Module:
        torch.manual_seed(args.seed + number)
        return new_enhancer(args.start_light_map)

    learner = enhancer_learner(fresh_enhancer(0), args)
    run = Run(folder, deciding, {"enhancer": learner})
    if state is None:
        run.constants = {"r": residual.r, "t": residual.t}
    else:
        run.restore(state)
    r, t = run.constants["r"].to(device), run.constants["t"].to(device)

    # Define what an iteration minimises:
    def warm_up_terms(enhanced: Tensor, backlit: Tensor, *_: object) -> dict:
        return criterion.warm_up(enhanced, backlit)

    def round_terms(
        enhanced: Tensor, backlit: Tensor, indices: Tensor, partners: Tensor | None
    ) -> dict:
        vectors, thresholds = r, t
        if partners is not None:
            own = images.has_partner.to(device)[indices]
            vectors, thresholds = vectors_of_pairs(encoders[0], backlit, partners, own, r, t)

        def guidance(embeddings: Tensor) -> Tensor:
            return RESIDUAL_GUIDANCE_WEIGHT * residual_guidance_loss(
                embeddings, vectors, thresholds
            )

        return criterion.round(enhanced, backlit, guidance)

    # Warm up, then train round by round:
    limit = iteration_limit(args, batches_per_epoch(len(images), args.train_batch_size))
    schedule = run.schedule
    batches = stream_batches(
        images, args.train_batch_size, args.seed, schedule.iteration, args.num_workers
    )
    forward = partial(enhance_images, amp=args.amp)
    step = partial(enhancer_step, run, batches, forward, args=args, limit=limit)
    try:
        if schedule.stage in ("start", WARM_UP):
            warm_up(run, partial(step, warm_up_terms), fresh_enhancer, args, limit)
        for number in count(max(1, schedule.round)):
            schedule.begin(ROUND, number, ROUND_ITERS)
            train_round(run, partial(step, round_terms), args, limit)
            if schedule.iteration >= limit:
                break
    except Interrupted:
        print(
            f"\nstopped at iteration {schedule.iteration}; the same command with --resume goes on"
        )
        return 130
    checkpoint.save_weights(learner.result(), folder / "snapshots_model" / "final.pth")
    print(f"{schedule.iteration} iterations done; weights in {folder / 'snapshots_model'}")
    return None


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the defaults are the published setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_photo_arguments(parser)
    options.add_encoder_arguments(parser)
    options.add_training_arguments(parser, num_epochs=2000)
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
    group.add_argument(
        "--paired_residual",
        action="store_true",
        help="give a backlit photograph with a well-lit one of its name a vector of its own",
    )
    group.add_argument(
        "--guidance_grid",
        type=options.positive_int,
        default=1,
        metavar="G",
        help="embed a timm/NAME in G x G cells, so that the guidance sees where light is missing",
    )
    group.add_argument(
        "--residual_backlit_path",
        metavar="FOLDER",
        help="build the vector from these backlit photographs instead of those trained on",
    )
    group.add_argument(
        "--residual_well_lit_path", metavar="FOLDER", help="and from these well-lit ones"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_with(main, parse_arguments())
