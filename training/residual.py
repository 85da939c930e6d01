"""RAVE's residual vector of two folders of photographs, and what is written about it."""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data.datasets import in_batches
from data.photo_store import PhotoStore
from models.encoders import Encoder
from models.interpretation import bootstrap_stability, token_table
from models.residual import Residual, build_residual, embed_photos, shift_residual
from training.encoder_weights import load_vocabulary
from training.plots import save_histogram
from training.saved_state import blank_vector
from utils import checkpoint, distributed
from utils.errors import shows_progress, tell
from utils.files import write_csv

EMBEDDED_AT_ONCE = 32


def write_residual(
    folder: Path,
    encoder: Encoder,
    backlit_photos: PhotoStore,
    well_lit_photos: PhotoStore,
    args: Namespace,
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
    backlit, well_lit = (embed_folder(encoder, each) for each in (backlit_photos, well_lit_photos))
    residual, shifted = build_residual(backlit, well_lit), None
    tokens = folder / "residual_tokens.csv"
    there = distributed.broadcast(tokens.exists())  # one of an earlier vector would mislead
    asked = args.interpret_only or there
    if args.remove_first_n_tokens or (asked and encoder.has_text):
        texts, vocabulary = load_vocabulary(encoder)
        if args.remove_first_n_tokens:
            shifted = shift_residual(residual, vocabulary, args.remove_first_n_tokens)
        if distributed.is_main():
            write_csv(tokens, token_table(texts, vocabulary, residual, shifted))
    guiding = shifted or residual
    if not distributed.is_main():
        return guiding
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
    scores = [
        torch.einsum("n...d,...d->n...", embeddings, guiding.r).flatten()
        for embeddings in (backlit, well_lit)
    ]
    threshold = float(guiding.t.mean())  # over the cells, where those are embedded
    save_histogram(folder / "residual.png", *scores, "cos(E(x), r)", threshold, encoder.name)
    tell(
        f"residual vector of {len(backlit)} backlit and {len(well_lit)} well-lit photographs: "
        f"t = {threshold:.4f}, mean cosine between resampled vectors {stability:.3f}; see {folder}"
    )
    return guiding


def embed_folder(encoder: Encoder, photos: PhotoStore) -> Tensor:
    """Embed photographs, or read their embeddings from the user's cache.

    The processes of a run share the work. Embeddings are kept where the photographs are kept on
    disk, under a name that tells the photographs and the encoder.

    Args:
        encoder: embeds them.
        photos: N centre crops of the encoder's input size.

    Returns:
        (N, D), L2-normalised, on the CPU; (N, cells, D) for an encoder that embeds cells.
    """

    def compute() -> Tensor:
        """Embed this process's part, and gather the others'."""
        own = distributed.shard(len(photos))
        batches = in_batches(photos, EMBEDDED_AT_ONCE, own)
        progress = tqdm(
            (images for _, images in batches),
            "embedding",
            math.ceil(len(own) / EMBEDDED_AT_ONCE),
            leave=False,
            disable=not shows_progress(),
        )
        parts = distributed.gather(embed_photos(encoder, progress))
        return torch.cat(parts)

    if photos.cache_name is None:
        return compute()
    key = f"embeddings-{photos.cache_name}-{encoder.embedding_name}"
    shape = (len(photos), *blank_vector(encoder)["r"].shape)
    return checkpoint.cached_tensor(key, shape, compute)
