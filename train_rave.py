"""Train an enhancer by RAVE: a residual vector in an encoder's latent space is its only guidance.

    python train_rave.py -b backlit/ -r well_lit/ --exp_name rave --train_lr 0.00002 \
        --num_reconstruction_iters 1000 --load_pretrain_unet False

The vector points from the mean backlit embedding to the mean well-lit one. Nothing but the enhancer
is trained: it moves its results along the vector while the identity loss keeps their content.
"""

from __future__ import annotations

import argparse
import csv
from functools import partial
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.datasets import EnhancerImages, batches_per_epoch, read_photos, stream_batches
from data.images import list_photos
from models.criterion import Criterion, luma_psnr
from models.encoders import CLIPEncoder, TimmEncoder, load_encoders
from models.enhancer import enhance_images, new_enhancer
from models.losses import RESIDUAL_GUIDANCE_WEIGHT, residual_guidance_loss
from models.residual import (
    Residual,
    bootstrap_stability,
    build_residual,
    embed_photos,
    shift_residual,
    token_table,
)
from models.vocabulary import embed_vocabulary, vocabulary_texts
from utils import checkpoint, options
from utils.cache import cached_tensor
from utils.errors import UserError, exit_with
from utils.plots import save_residual_histogram
from utils.rounds import (
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
from utils.training import Interrupted, Run, open_folder

CALIBRATION_IMAGES = 32  # set the scales of a text-free encoder's feature maps


def embed_folder(
    encoder: CLIPEncoder | TimmEncoder, paths: list[Path]
) -> tuple[list[Path], Tensor]:
    """Embed photographs; return those that could be read and their embeddings (N, D)."""
    readable: list[Path] = []

    def photos():
        for path, photo in tqdm(read_photos(paths), "embedding", len(paths), leave=False):
            readable.append(path)
            yield photo

    embeddings = embed_photos(encoder, photos())
    if not readable:
        raise UserError(f"no photograph in {paths[0].parent} can be read; check the folder")
    return readable, embeddings


def residual_of_each(
    residual: Residual, backlit: tuple[list[Path], Tensor], well_lit: tuple[list[Path], Tensor]
) -> tuple[Tensor, Tensor]:
    """Give every backlit photograph that has a well-lit partner a vector of its own.

    Args:
        residual: of the folders, for photographs without a partner.
        backlit: paths and embeddings (N, D).
        well_lit: paths and embeddings (M, D); a partner has the same stem.

    Returns:
        Vectors (N, D) and thresholds (N,).
    """
    partners = {path.stem: row for row, path in enumerate(well_lit[0])}
    vectors, thresholds = [], []
    for path, embedding in zip(*backlit, strict=True):
        own = residual
        if path.stem in partners:
            own = build_residual(embedding[None], well_lit[1][partners[path.stem], None])
        vectors.append(own.r)
        thresholds.append(own.t)
    return torch.stack(vectors), torch.tensor(thresholds)


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
    if args.remove_first_n_tokens or (args.interpret_only and encoder.has_text):
        texts = vocabulary_texts()
        vocabulary = cached_tensor(
            f"vocabulary-{encoder.fingerprint}",
            (len(texts), encoder.dim),
            partial(embed_vocabulary, encoder, texts),
        )
        if args.remove_first_n_tokens:
            shifted = shift_residual(residual, vocabulary, args.remove_first_n_tokens)
        rows = token_table(texts, vocabulary, residual, shifted)
        with checkpoint.atomic_path(folder / "residual_tokens.csv") as temporary:
            with temporary.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, rows[0])
                writer.writeheader()
                writer.writerows(rows)
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
    scores = [(embeddings @ guiding.r).numpy() for embeddings in (backlit, well_lit)]
    save_residual_histogram(folder / "residual.png", *scores, guiding.t, encoder.name)
    print(
        f"residual vector of {len(backlit)} backlit and {len(well_lit)} well-lit photographs: "
        f"t = {guiding.t:.4f}, mean cosine between resampled vectors {stability:.3f}; see {folder}"
    )
    return guiding


def main(args: argparse.Namespace) -> int | None:
    """Build the residual vector, warm the enhancer up, then train it round by round."""
    # Setup run:
    folder = Path(args.save_dir) / args.exp_name
    device = args.device = options.choose_device(args.device)
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
    )
    criterion = Criterion(*encoders, args.identity_scale)
    if args.remove_first_n_tokens and not encoders[0].has_text:
        raise UserError(
            f"--remove_first_n_tokens needs a text side, and {encoders[0].name} has none; choose "
            "a CLIP as --guidance_encoder"
        )

    # Build the residual vector:
    backlit_paths = list_photos(args.backlit_images_path)
    if state is None:
        backlit = embed_folder(encoders[0], backlit_paths)
        well_lit = embed_folder(encoders[0], list_photos(args.well_lit_images_path))
        residual = write_residual(folder, encoders[0], backlit[1], well_lit[1], args)
        vectors, thresholds = residual.r, torch.tensor(residual.t)
        if args.paired_residual:
            vectors, thresholds = residual_of_each(residual, backlit, well_lit)
    if args.interpret_only:
        return

    # Load photographs:
    images = EnhancerImages(backlit_paths, args.image_size, args.seed, args.cache, folder / "cache")
    criterion.calibrate(images.first(CALIBRATION_IMAGES).to(device))

    # Create the enhancer:
    def fresh_enhancer(number: int) -> nn.Module:
        torch.manual_seed(args.seed + number)
        return new_enhancer(args.start_light_map)

    learner = enhancer_learner(fresh_enhancer(0), args)
    run = Run(folder, deciding, {"enhancer": learner})
    if state is None:
        run.constants = {"vectors": vectors, "thresholds": thresholds}
    else:
        run.restore(state)
    vectors, thresholds = (run.constants[name].to(device) for name in ("vectors", "thresholds"))

    # Define what an iteration minimises:
    def warm_up_terms(enhanced: Tensor, backlit: Tensor, _: Tensor) -> dict:
        psnr = luma_psnr(enhanced, backlit)
        return {"loss": criterion.warm_up(enhanced, backlit), "psnr": psnr, "score": psnr}

    def round_terms(enhanced: Tensor, backlit: Tensor, indices: Tensor) -> dict:
        r, t = (
            (vectors[indices], thresholds[indices]) if vectors.dim() == 2 else (vectors, thresholds)
        )

        def guidance(embeddings: Tensor) -> Tensor:
            return RESIDUAL_GUIDANCE_WEIGHT * residual_guidance_loss(embeddings, r, t)

        guided, identity = criterion.round(enhanced, backlit, guidance)
        loss = guided + identity
        return {"loss": loss, "guidance": guided, "identity": identity, "score": -loss.item()}

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
            if schedule.iteration >= limit:
                break
            schedule.begin(ROUND, number, ROUND_ITERS)
            train_round(run, partial(step, round_terms), args, limit)
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
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_with(main, parse_arguments())
