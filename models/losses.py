"""The terms that training minimises, without their outer weights (docs/method.md 3 and 4).

`criteria.py` weights them and puts the totals together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LOGIT_SCALE = 100.0  # of cosines, CLIP's own


def identity_loss(
    maps_y: Sequence[Tensor], maps_x: Sequence[Tensor], weights: Sequence[float]
) -> Tensor:
    """Compare feature maps: the sum over the batch of sum_k w_k * mean squared difference.

    A sum over the batch, not a mean: the batch size changes its weight against the guidance
    (docs/method.md 3).

    Args:
        maps_y: the enhanced images' feature maps, each (N, C, h, w).
        maps_x: the input images', likewise; computed without gradients.
        weights: one for each map; of an encoder with fewer maps, the last weights count.
    """
    weights = weights[-len(maps_y) :]
    return sum(
        weight * len(y) * F.mse_loss(y, x)
        for weight, y, x in zip(weights, maps_y, maps_x, strict=True)
    )


def guidance_logits(embeddings: Tensor, vectors: Tensor) -> Tensor:
    """Score embeddings against guidance vectors: `100 * cos`.

    Args:
        embeddings: (N, D), L2-normalised.
        vectors: (2, D): backlit, well-lit; of any length.

    Returns:
        (N, 2).
    """
    return LOGIT_SCALE * embeddings @ F.normalize(vectors, dim=-1).T


def p_backlit(logits: Tensor) -> Tensor:
    """Turn guidance logits (..., 2) into the probability of "backlit", (...)."""
    return logits.softmax(dim=-1)[..., 0]


def prompt_guidance_loss(embeddings: Tensor, vectors: Tensor) -> Tensor:
    """Average the probability of "backlit" that two guidance vectors give to enhanced images.

    Args:
        embeddings: (N, D), L2-normalised.
        vectors: (2, D): backlit, well-lit.
    """
    return p_backlit(guidance_logits(embeddings, vectors)).mean()


def residual_guidance_loss(
    embeddings: Tensor,
    residual: Tensor,
    threshold: Tensor | float,
    partners: Tensor | None = None,
    has_partner: Tensor | None = None,
) -> Tensor:
    """Average the squared distance of enhanced images from `threshold` along the residual.

    Beyond the paper, an image with a partner counts with its squared distance from that one's
    embedding instead, in all directions.

    Args:
        embeddings: (N, D), L2-normalised; or (N, cells, D).
        residual: (D,), L2-normalised, or (cells, D).
        threshold: t = p . r, where the well-lit images lie: (), or (cells,).
        partners: embeddings of well-lit images of the same scenes, as `embeddings`.
        has_partner: (N,) bool, where `partners` holds one.
    """
    distances = ((embeddings * residual).sum(dim=-1) - threshold).square()
    if partners is not None:
        own = has_partner.view(-1, *[1] * (distances.dim() - 1))
        distances = torch.where(own, (embeddings - partners).square().sum(dim=-1), distances)
    return distances.mean()


def ranking_loss(higher: Tensor, lower: Tensor, margin: float) -> Tensor:
    """Ask that `higher` exceeds `lower`, element by element, by a margin: mean hinge.

    Args:
        higher: probabilities of "backlit", (N,), of the level that should look worse.
        lower: likewise, of the better level.
        margin: in probability.
    """
    return (margin - (higher - lower)).clamp(min=0).mean()
