"""The residual vector: build, shift and interpret it (RAVE; method.md, 5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from models.encoders import CLIPEncoder, TimmEncoder
from utils.errors import UserError

EMBEDDING_BATCH = 32
RESAMPLES = 200  # of the bootstrap
TABLE_TOKENS = 50


@dataclass(frozen=True)
class Residual:
    """A direction from backlit to well-lit in an encoder's space.

    Attributes:
        r: (D,), L2-normalised; (cells, D) for an encoder that embeds cells.
        t: p . r, where well-lit images lie along r: () or (cells,).
        n: as r, the normalised mean of the backlit embeddings.
        p: likewise of the well-lit ones.
    """

    r: Tensor
    t: Tensor
    n: Tensor
    p: Tensor


@torch.no_grad()
def embed_photos(
    encoder: CLIPEncoder | TimmEncoder,
    photos: Iterable[Image.Image],
    batch_size: int = EMBEDDING_BATCH,
) -> Tensor:
    """Embed photographs in batches with the encoder's own preprocessing (method.md, 2).

    Args:
        encoder: on any device.
        photos: decoded, upright; taken one after another, so a generator keeps few in memory.
        batch_size: how many the encoder sees at once.

    Returns:
        (N, D), L2-normalised, on the CPU.
    """
    embeddings = [
        encoder.embed(torch.stack(batch).to(encoder.mean.device)).cpu()
        for batch in _batches((encoder.preprocess(photo) for photo in photos), batch_size)
    ]
    return torch.cat(embeddings) if embeddings else torch.empty(0, encoder.dim)


def _batches(items: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def build_residual(backlit: Tensor, well_lit: Tensor) -> Residual:
    """Build the residual vector: from the mean backlit embedding to the mean well-lit one.

    Args:
        backlit: (N, D), L2-normalised embeddings, or (N, cells, D).
        well_lit: (M, D) or (M, cells, D), likewise.
    """
    p = F.normalize(well_lit.mean(dim=0), dim=-1)
    n = F.normalize(backlit.mean(dim=0), dim=-1)
    r = F.normalize(p - n, dim=-1)
    return Residual(r=r, t=(p * r).sum(dim=-1), n=n, p=p)


def residual_of_pairs(backlit: Tensor, well_lit: Tensor) -> tuple[Tensor, Tensor]:
    """Build a residual vector for each photograph from its own well-lit partner.

    Args:
        backlit: (N, D) or (N, cells, D), L2-normalised.
        well_lit: the partners', likewise.

    Returns:
        Vectors of the same shape, and thresholds (N,) or (N, cells).
    """
    r = F.normalize(well_lit - backlit, dim=-1)
    return r, (well_lit * r).sum(dim=-1)


def token_scores(vocabulary: Tensor, r: Tensor) -> Tensor:
    """Score texts by their cosine with the residual vector.

    Args:
        vocabulary: (V, D) text embeddings, of any length.
        r: (D,), L2-normalised.

    Returns:
        (V,) in [-1, 1].
    """
    return F.normalize(vocabulary, dim=-1) @ r


def shift_residual(residual: Residual, vocabulary: Tensor, n: int) -> Residual:
    """Remove from r what its n nearest and n farthest tokens mean (method.md, 5).

    Args:
        residual: of `build_residual`.
        vocabulary: (V, D) text embeddings, not normalised.
        n: tokens at either end; 0 shifts nothing. The released code always takes 15.

    Returns:
        The shifted r and its t = p . r; the two means stay.

    Raises:
        UserError: n is negative, or more than half of the vocabulary.
    """
    if not 0 <= n <= len(vocabulary) // 2:
        raise UserError(
            f"cannot remove {n} tokens at either end of a vocabulary of {len(vocabulary)}; give "
            f"--remove_first_n_tokens 0 to {len(vocabulary) // 2}"
        )
    if n == 0:
        return residual
    scores = token_scores(vocabulary, residual.r)
    order = scores.argsort(stable=True)
    a, b = (
        F.normalize((scores[ends, None] * vocabulary[ends]).mean(dim=0), dim=0)
        for ends in (order[-n:], order[:n])
    )
    q = F.normalize(a + b, dim=0)
    r = F.normalize(residual.r - q * (q @ residual.r), dim=0)
    return replace(residual, r=r, t=residual.p @ r)


def bootstrap_stability(
    backlit: Tensor, well_lit: Tensor, resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """Say how much r depends on the very photographs: the mean cosine between resampled vectors.

    Each vector is built from two folders drawn with replacement from the given ones, of the same
    sizes. 1 means that other photographs of the kind would give the same vector.

    Args:
        backlit: (N, D), L2-normalised embeddings.
        well_lit: (M, D), likewise.
        resamples: vectors, at least 2.
        seed: of the draws.

    Returns:
        The mean over all pairs of vectors, in [-1, 1].
    """
    generator = torch.Generator().manual_seed(seed)

    def resample(embeddings: Tensor) -> Tensor:
        return embeddings[torch.randint(len(embeddings), (len(embeddings),), generator=generator)]

    vectors = torch.stack(
        [build_residual(resample(backlit), resample(well_lit)).r for _ in range(resamples)]
    )  # (resamples, D)
    # The sum over all ordered pairs of two different vectors: of all pairs, less the diagonal.
    pairs = vectors.sum(dim=0).square().sum() - vectors.square().sum()
    cells = vectors[0].numel() // vectors.shape[-1]
    return float(pairs / (resamples * (resamples - 1) * cells))


def token_table(
    texts: list[str],
    vocabulary: Tensor,
    residual: Residual,
    shifted: Residual | None = None,
    count: int = TABLE_TOKENS,
) -> list[dict[str, str | int | float]]:
    """List the tokens nearest to and farthest from r, before the shift and after it.

    Args:
        texts: V of them.
        vocabulary: (V, D), their embeddings.
        residual: before the shift.
        shifted: after it, if there was one.
        count: tokens of each list.

    Returns:
        Rows with `vector` (before, after), `end` (nearest, farthest), `rank` from 1, `token`, and
        its cosines `score_before` and `score_after` (empty without a shift).
    """
    before = token_scores(vocabulary, residual.r)
    after = None if shifted is None else token_scores(vocabulary, shifted.r)
    rankings = {"before": before} if after is None else {"before": before, "after": after}
    rows = []
    for vector, scores in rankings.items():
        order = scores.argsort(stable=True).tolist()
        for end, ranked in (("nearest", order[::-1][:count]), ("farthest", order[:count])):
            for rank, index in enumerate(ranked, 1):
                row = {"vector": vector, "end": end, "rank": rank, "token": texts[index]}
                row["score_before"] = float(before[index])
                row["score_after"] = "" if after is None else float(after[index])
                rows.append(row)
    return rows
