"""The losses that train an enhancer and a guidance (method.md, 3 and 4), over whole batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

# The totals of method.md, 3: warm-up IDENTITY * L_id(WARMUP_STAGES); then IN_ROUNDS * IDENTITY *
# L_id(ROUND_STAGES) + PROMPT * L_prompt for CLIP-LIT and Latent, + RESIDUAL * L_res for RAVE.
IDENTITY_WEIGHT = 25.0
IDENTITY_IN_ROUNDS = 0.9
PROMPT_GUIDANCE_WEIGHT = 320.0
RESIDUAL_GUIDANCE_WEIGHT = 6 * PROMPT_GUIDANCE_WEIGHT
WARMUP_STAGES = (1.0, 1.0, 1.0, 1.0, 1.0)
ROUND_STAGES = (1.0, 1.0, 1.0, 1.0, 0.5)
LOGIT_SCALE = 100.0  # of cosines, CLIP's own


def identity_loss(
    stages_y: Sequence[Tensor], stages_x: Sequence[Tensor], weights: Sequence[float]
) -> Tensor:
    """Compare feature maps: the sum over the batch of sum_k w_k * mean squared difference.

    A sum over the batch, not a mean: the batch size changes its weight against the guidance
    (method.md, 3).

    Args:
        stages_y: the enhanced images' maps, each (N, C, h, w).
        stages_x: the input images' maps, likewise; computed without gradients.
        weights: one for each map; where an encoder has fewer maps than weights, the last count.
    """
    weights = weights[-len(stages_y) :]
    return sum(
        weight * len(y) * F.mse_loss(y, x)
        for weight, y, x in zip(weights, stages_y, stages_x, strict=True)
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


def prompt_guidance_loss(embeddings: Tensor, vectors: Tensor) -> Tensor:
    """Average the probability of "backlit" that two guidance vectors give to enhanced images.

    Args:
        embeddings: (N, D), L2-normalised.
        vectors: (2, D): backlit, well-lit.
    """
    return guidance_logits(embeddings, vectors).softmax(dim=-1)[:, 0].mean()


def residual_guidance_loss(embeddings: Tensor, residual: Tensor, threshold: float) -> Tensor:
    """Average the squared distance of enhanced images from `threshold` along the residual.

    Args:
        embeddings: (N, D), L2-normalised.
        residual: (D,), L2-normalised.
        threshold: t = p . r, where the well-lit images lie.
    """
    return (embeddings @ residual - threshold).square().mean()


def ranking_loss(higher: Tensor, lower: Tensor, margin: float) -> Tensor:
    """Ask that `higher` exceeds `lower`, element by element, by a margin: mean hinge.

    Args:
        higher: probabilities of "backlit", (N,), of the level that should look worse.
        lower: likewise, of the better level.
        margin: in probability.
    """
    return (margin - (higher - lower)).clamp(min=0).mean()
