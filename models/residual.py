"""The residual vector of RAVE: build it and shift it (docs/method.md 5)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.encoders import Encoder
from utils.errors import UserError


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
def embed_photos(encoder: Encoder, batches: Iterable[Tensor]) -> Tensor:
    """Embed photographs that CLIP's own preprocessing has cut (docs/method.md 2).

    Args:
        encoder: on any device.
        batches: (N, 3, S, S) in [0, 1], S being the encoder's input size.

    Returns:
        (N, D), L2-normalised, on the CPU; (N, cells, D) for an encoder that embeds cells.
    """
    return torch.cat([encoder.embed(images.to(encoder.mean.device)).cpu() for images in batches])


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
    """Remove from r what its n nearest and n farthest tokens mean (docs/method.md 5).

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
            f"cannot remove {n} tokens at either end of a vocabulary of {len(vocabulary)}, only "
            f"0 to {len(vocabulary) // 2}"
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
